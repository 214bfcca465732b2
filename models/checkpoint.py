"""Reads checkpoints, renames their tensors to ours and loads them strictly; writes ours."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
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


def load_segmentor(path: str | Path, *, align_corners: bool | None = None) -> Segmentor:
    """The segmentor a checkpoint describes, with its weights, in eval mode, float32, on the CPU.

    Args:
        path: safetensors of ours, or a .pth of mmsegmentation's (CCNet, ANN, Non-local; ResNetV1c d8)
        align_corners: how the network was trained to resize, where the file doesn't say or is not to be believed

    Raises:
        CheckpointError: not readable, not an architecture of ours, or tensors are missing, unexpected
            or misshapen; the message names them
    """
    checkpoint = read_checkpoint(path)
    shapes = {key: tensor.shape for key, tensor in checkpoint.state_dict.items()}
    # Built without memory first: shapes that don't belong together shall fail, not allocate.
    options = _options(checkpoint.metadata)
    if align_corners is not None:
        options = replace(options, align_corners=align_corners)
    with torch.device("meta"):
        segmentor = build_segmentor(shapes, options)
    load_strictly(segmentor, checkpoint.state_dict)
    return segmentor


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a file without ever unpickling code, and bring its keys to our names.

    Raises:
        CheckpointError: not readable, or not made of finite floating-point tensors alone
    """
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
    for key, tensor in state.items():
        _check(path, key, tensor)
    for key in [key for key in state if key.startswith(ALIASED)]:
        state.setdefault(ALIAS + key.removeprefix(ALIASED), state[key])
    return Checkpoint(state, checkpoint.metadata)


def load_strictly(segmentor: Segmentor, state: Mapping[str, Tensor]) -> None:
    """Give a segmentor, which may be on the meta device, the weights of a state dict, or say what does not fit.

    Raises:
        CheckpointError: a tensor is missing, unexpected or of another shape
    """
    wanted = {key: tensor.shape for key, tensor in segmentor.state_dict().items() if not key.endswith(IGNORED_SUFFIX)}
    problems = [f"missing {key}" for key in wanted if key not in state]
    problems += [f"unexpected {key}" for key in state if key not in wanted]
    problems += [
        f"{key} is {list(state[key].shape)}, not {list(shape)}"
        for key, shape in wanted.items()
        if key in state and state[key].shape != shape
    ]
    if problems:
        raise CheckpointError("the checkpoint does not fit the model: " + "; ".join(problems))
    segmentor.to_empty(device="cpu")
    with torch.no_grad():
        for key, tensor in segmentor.state_dict().items():
            if key in state:
                tensor.copy_(state[key])
            else:
                tensor.zero_()  # the counters that no one reads


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
    recurrence = metadata.get("recurrence", str(defaults.recurrence))
    stride = metadata.get("output_stride", str(defaults.output_stride))
    align_corners = metadata.get("align_corners", str(defaults.align_corners)).lower()
    for name, value, allowed in (
        ("recurrence", recurrence, ("1", "2", "3")),
        ("output_stride", stride, ("8", "16")),
        ("align_corners", align_corners, ("true", "false")),
    ):
        if value not in allowed:
            raise CheckpointError(f"the file's header says {name} is {value!r}; we know {', '.join(allowed)}")
    return Options(int(recurrence), int(stride), align_corners == "true")


def _check(path: Path, key: str, tensor: Tensor) -> None:
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or not tensor.is_floating_point():
        raise CheckpointError(f"{path}: {key} is a {tensor.layout} {tensor.dtype} tensor, not plain floating point")
    if not tensor.isfinite().all():
        raise CheckpointError(f"{path}: {key} holds NaN or infinite weights")


def _read_safetensors(path: Path) -> Checkpoint:
    try:
        with safe_open(path, framework="pt") as file:
            return Checkpoint({key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {})  # noqa: SIM118
    except SafetensorError as exc:
        raise CheckpointError(f"{path}: not a safetensors file, or a truncated one ({exc})") from exc


def _read_torch(path: Path) -> Checkpoint:
    with path.open("rb") as file:
        start = file.read(2)
    if start not in (b"PK", b"\x80\x02"):  # a zip archive, or the pickle of before torch 1.6
        raise CheckpointError(f"{path}: not a torch checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as exc:
        raise CheckpointError(
            f"{path}: holds more than tensors, and loading it would run its code; "
            "save its state_dict alone where you trust it"
        ) from exc
    # A damaged file makes torch's parsers raise almost anything.
    except Exception as exc:
        raise CheckpointError(f"{path}: a damaged or truncated torch checkpoint ({type(exc).__name__})") from exc
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state:
        raise CheckpointError(f"{path}: holds no state dict")
    if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()):
        raise CheckpointError(f"{path}: holds no state dict, but a dict of other things than named tensors")
    return Checkpoint(state, {})
