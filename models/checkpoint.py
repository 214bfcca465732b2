"""Reads checkpoints, renames their tensors to ours and loads them strictly; writes ours."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from models.builder import Options, build_segmentor
from models.errors import CheckpointError
from models.files import read_file
from models.layouts import (
    IGNORED_SUFFIX,
    Layout,
    detect_layout,
    strip_prefix,
    to_our_names,
    to_our_values,
    to_their_name,
)
from models.mmseg_meta import options_of_meta
from models.segmentor import Segmentor

# In APNB query and key are one projection, listed twice by mmsegmentation and once by us.
ALIAS, ALIASED = "decode_head.context.stages.0.query_project.", "decode_head.context.stages.0.key_project."


@dataclass(frozen=True)
class Checkpoint:
    """
    Attributes:
        state_dict: tensors under our names and with our meaning
        metadata: what the header of a file of ours says
        layout: whose names the tensors had
        meta: what a file of mmsegmentation says of itself
        options: of the architecture, from the layout, `meta` and the header
    """

    state_dict: dict[str, Tensor]
    metadata: dict[str, str]
    layout: Layout
    meta: Mapping[str, object]
    options: Options


def load_segmentor(path: str | Path, *, align_corners: bool | None = None, recurrence: int | None = None) -> Segmentor:
    """The segmentor a checkpoint describes, with its weights, in eval mode, float32, on the CPU.

    Args:
        path: safetensors of ours, or a .pth of mmsegmentation, the official CCNet or the official ANN
        align_corners, recurrence: how the network was trained to resize, and its passes of criss-cross attention,
            where the file doesn't say or is not to be believed

    Raises:
        CheckpointError: not readable, not an architecture of ours, or tensors are missing, unexpected
            or misshapen; the message names them
    """
    checkpoint = read_checkpoint(path)
    segmentor = prepare_segmentor(path, checkpoint, align_corners=align_corners, recurrence=recurrence)
    _fill(segmentor, checkpoint.state_dict)
    return segmentor


def prepare_segmentor(
    path: str | Path, checkpoint: Checkpoint, *, align_corners: bool | None = None, recurrence: int | None = None
) -> Segmentor:
    """The segmentor of a checkpoint, without its weights: on the meta device, in eval mode, all shapes checked.

    Args:
        path: to name in errors
        align_corners, recurrence: as for `load_segmentor`

    Raises:
        CheckpointError: not an architecture of ours, or tensors are missing, unexpected or misshapen
    """
    shapes = {key: tensor.shape for key, tensor in checkpoint.state_dict.items()}
    options = checkpoint.options
    if align_corners is not None:
        options = replace(options, align_corners=align_corners)
    if recurrence is not None:
        options = replace(options, recurrence=recurrence)
    try:
        # Without memory: shapes that don't belong together shall fail, not allocate.
        with torch.device("meta"):
            segmentor = build_segmentor(shapes, options)
        _check_fit(segmentor, checkpoint.state_dict, checkpoint.layout)
    except CheckpointError as exc:
        raise CheckpointError(f"{path}: {exc}") from exc
    return segmentor


def read_checkpoint(path: str | Path, *, weights: bool = True) -> Checkpoint:
    """Read a file without ever unpickling code, and bring its keys to our names.

    Args:
        weights: read them; else tensors are on the meta device, and nothing of them is checked but their shapes

    Raises:
        CheckpointError: not readable, or not made of finite floating-point tensors alone
    """
    path = Path(path)
    found, metadata, meta = read_file(path, weights=weights)
    stripped = strip_prefix(found)
    if len(stripped) < len(found):
        raise CheckpointError(f"{path}: holds tensors twice, with and without what stands before their names")
    layout = detect_layout(stripped)
    renamed = to_our_names(stripped, layout)
    if weights:
        for key, tensor in renamed.items():
            _check(path, to_their_name(key, layout), tensor)
    try:
        state = to_our_values(renamed, layout)
    except RuntimeError as exc:
        raise CheckpointError(f"{path}: a bias and the norm after it are of different widths") from exc
    _share_projection(path, state)
    try:
        options = _options({**options_of_meta(meta), **metadata}, layout.options)
    except CheckpointError as exc:
        raise CheckpointError(f"{path}: {exc}") from exc
    return Checkpoint(state, metadata, layout, meta, options)


def _check_fit(segmentor: Segmentor, state: Mapping[str, Tensor], layout: Layout) -> None:
    """
    Args:
        layout: whose names are used to say what does not fit

    Raises:
        CheckpointError: a tensor is missing, unexpected or of another shape
    """
    wanted = {key: tensor.shape for key, tensor in segmentor.state_dict().items() if not key.endswith(IGNORED_SUFFIX)}
    problems = [f"missing {to_their_name(key, layout)}" for key in wanted if key not in state]
    problems += [f"unexpected {to_their_name(key, layout)}" for key in state if key not in wanted]
    problems += [
        f"{to_their_name(key, layout)} is {list(state[key].shape)}, not {list(shape)}"
        for key, shape in wanted.items()
        if key in state and state[key].shape != shape
    ]
    if problems:
        raise CheckpointError("the checkpoint does not fit the model: " + "; ".join(problems))


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


def options_to_metadata(options: Options) -> dict[str, str]:
    """As `save_segmentor` takes them and a load reads them again."""
    return {name: str(value).lower() for name, value in asdict(options).items()}


def _options(metadata: Mapping[str, str], defaults: Options) -> Options:
    allowed: dict[str, tuple[Any, ...]] = {
        "recurrence": (1, 2, 3),
        "output_stride": (8, 16),
        "align_corners": (True, False),
        "contract_dilation": (True, False),
        "ceil_mode": (True, False),
        "slope": (0.0, 0.01),
    }
    found = {}
    for name in allowed.keys() & metadata.keys():
        by_text = {str(value).lower(): value for value in allowed[name]}
        text = metadata[name].lower()
        if text not in by_text:
            raise CheckpointError(f"the file says that {name} is {text!r}; we know {', '.join(by_text)}")
        found[name] = by_text[text]
    return replace(defaults, **found)


def _share_projection(path: Path, state: dict[str, Tensor]) -> None:
    """List APNB's projection under both of its names, whichever of them the file has."""
    for here, there in ((ALIASED, ALIAS), (ALIAS, ALIASED)):
        for key in [key for key in state if key.startswith(here)]:
            other = state.setdefault(there + key.removeprefix(here), state[key])
            if not other.is_meta and not torch.equal(other, state[key]):
                raise CheckpointError(f"{path}: query and key of APNB are one projection, but {key} differs")


def _check(path: Path, key: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise CheckpointError(f"{path}: {key} is a {tensor.dtype} tensor, not plain floating point")
    # As they will be: what float64 can hold may be infinite in float32.
    if not tensor.float().isfinite().all():
        raise CheckpointError(f"{path}: {key} holds NaN or infinite weights")
    if key.endswith(".running_var") and (tensor.float() < 0).any():
        raise CheckpointError(f"{path}: {key} holds negative variances")


def _fill(segmentor: Segmentor, state: Mapping[str, Tensor]) -> None:
    # Not by to_empty(), which on the meta device imports torch's compiler.
    filled = {
        key: state[key].detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        if key in state
        else torch.zeros(tensor.shape, dtype=tensor.dtype)  # the counters that no one reads
        for key, tensor in segmentor.state_dict().items()
    }
    segmentor.load_state_dict(filled, assign=True)
