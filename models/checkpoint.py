"""Reads checkpoints, renames their tensors to ours and loads them strictly; writes ours."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from models.builder import Options, build_segmentor
from models.errors import CheckpointError
from models.segmentor import Segmentor

# Training-only tensors: the auxiliary head never runs here, and no one reads the counters.
IGNORED_PREFIX = "auxiliary_head."
IGNORED_SUFFIX = ".num_batches_tracked"

# In APNB query and key are one projection, listed twice by mmsegmentation and once by us.
ALIAS, ALIASED = "decode_head.context.stages.0.query_project.", "decode_head.context.stages.0.key_project."


@dataclass(frozen=True)
class Checkpoint:
    """Tensors under our names, and what the file says of itself."""

    state_dict: dict[str, Tensor]
    metadata: dict[str, str]


def load_segmentor(path: str | Path) -> Segmentor:
    """The segmentor a checkpoint describes, with its weights, in eval mode, float32, on the CPU.

    Args:
        path: safetensors of ours, or a .pth of mmsegmentation's (CCNet, ANN, Non-local; ResNetV1c d8)

    Raises:
        CheckpointError: not readable, not an architecture of ours, or tensors are missing, unexpected
            or misshapen; the message names them
    """
    checkpoint = read_checkpoint(path)
    state = checkpoint.state_dict
    segmentor = build_segmentor({key: tensor.shape for key, tensor in state.items()}, _options(checkpoint.metadata))
    load_strictly(segmentor, state)
    return segmentor


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a file without ever unpickling code, and bring its keys to our names."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    read = _read_safetensors if path.suffix == ".safetensors" else _read_torch
    checkpoint = read(path)
    state = {
        key.removeprefix("module."): tensor
        for key, tensor in checkpoint.state_dict.items()
        if not key.removeprefix("module.").startswith(IGNORED_PREFIX) and not key.endswith(IGNORED_SUFFIX)
    }
    for key in [key for key in state if key.startswith(ALIASED)]:
        state.setdefault(ALIAS + key.removeprefix(ALIASED), state[key])
    return Checkpoint(state, checkpoint.metadata)


def load_strictly(segmentor: Segmentor, state: Mapping[str, Tensor]) -> None:
    """Copy a state dict into a segmentor, or say by name what does not fit.

    Raises:
        CheckpointError: a tensor is missing, unexpected or of another shape
    """
    wanted = {key: tensor for key, tensor in segmentor.state_dict().items() if not key.endswith(IGNORED_SUFFIX)}
    problems = [f"missing {key}" for key in wanted if key not in state]
    problems += [f"unexpected {key}" for key in state if key not in wanted]
    problems += [
        f"{key} is {list(state[key].shape)}, not {list(tensor.shape)}"
        for key, tensor in wanted.items()
        if key in state and state[key].shape != tensor.shape
    ]
    if problems:
        raise CheckpointError("the checkpoint does not fit the model: " + "; ".join(problems))
    with torch.no_grad():
        for key, tensor in wanted.items():
            tensor.copy_(state[key])


def save_segmentor(
    segmentor: Segmentor, path: str | Path, metadata: Mapping[str, str], dtype: torch.dtype = torch.float16
) -> None:
    """Write a segmentor as safetensors, in half precision unless told otherwise.

    Args:
        metadata: strings kept in the file's header; `Options` are read from it on load
    """
    state = {
        key: tensor.detach().to("cpu", dtype).contiguous()
        for key, tensor in segmentor.state_dict().items()
        if not key.endswith(IGNORED_SUFFIX) and not key.startswith(ALIAS)
    }
    save_file(state, path, dict(metadata))


def _options(metadata: Mapping[str, str]) -> Options:
    defaults = Options()
    return Options(
        recurrence=int(metadata.get("recurrence", defaults.recurrence)),
        output_stride=int(metadata.get("output_stride", defaults.output_stride)),
        align_corners=metadata.get("align_corners", "false") == "true",
    )


def _read_safetensors(path: Path) -> Checkpoint:
    try:
        with safe_open(path, framework="pt") as file:
            return Checkpoint({key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {})  # noqa: SIM118
    except SafetensorError as exc:
        raise CheckpointError(f"{path}: not a safetensors file, or a truncated one ({exc})") from exc


def _read_torch(path: Path) -> Checkpoint:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as exc:
        raise CheckpointError(
            f"{path}: holds more than tensors, and loading it would run its code; "
            "save its state_dict alone where you trust it"
        ) from exc
    except (RuntimeError, EOFError, OSError) as exc:
        raise CheckpointError(f"{path}: not a torch checkpoint, or a truncated one") from exc
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path}: holds no state dict")
    return Checkpoint(state, {})
