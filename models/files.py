"""Files as they are: safetensors, or a torch file's tensors, without ever unpickling code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from models.errors import CheckpointError

# What users are told to run on an old training checkpoint. What it says of itself is kept as plain JSON values.
RESCUE = (
    "python -c \"import json, sys, torch; file = torch.load(sys.argv[1], map_location='cpu', weights_only=False); "
    "meta = json.loads(json.dumps(file.get('meta', {}), default=str, skipkeys=True)); "
    "state = file.get('state_dict', file.get('model', file)); "
    "state = {key: value for key, value in state.items() if torch.is_tensor(value)}; "
    "torch.save({'state_dict': state, 'meta': meta}, sys.argv[2])\" OLD.pth NEW.pth"
)

# Where checkpoints keep their state dict, if not at the top.
WRAPPERS = ("state_dict", "model")
ZIP, PICKLE = b"PK", b"\x80\x02"  # how torch files begin, since torch 1.6 and before


class Content(NamedTuple):
    """
    Attributes:
        metadata: a safetensors file's header
        meta: what a torch file of mmsegmentation says of itself
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    meta: Mapping[str, object]


def read_file(path: Path, *, weights: bool = True) -> Content:
    """
    Args:
        weights: read them; else tensors are on the meta device, with the right shapes

    Raises:
        CheckpointError: not readable; the message is one sentence that says why
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    read = _read_safetensors if path.suffix == ".safetensors" else _read_torch
    return read(path, weights)


def _read_safetensors(path: Path, weights: bool) -> Content:
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()  # the file itself cannot be iterated
            if weights:
                tensors = {name: file.get_tensor(name) for name in names}
            else:
                tensors = {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in names}
            metadata = file.metadata() or {}
    except SafetensorError as exc:
        raise CheckpointError(f"{path}: not a safetensors file, or a truncated one ({exc})") from exc
    if not tensors:
        raise CheckpointError(f"{path}: holds no state dict")
    return Content(tensors, metadata, {})


def _read_torch(path: Path, weights: bool) -> Content:
    with path.open("rb") as file:
        start = file.read(2)
    if start not in (ZIP, PICKLE):
        raise CheckpointError(f"{path}: not a torch checkpoint")
    try:
        # Mapped into memory, what nobody looks at is never read from the disk.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=start == ZIP and not weights)
    except UnpicklingError as exc:
        raise CheckpointError(
            f"{path}: holds more than tensors, and loading it would run its code; where you trust it, "
            f"save its state_dict alone: {RESCUE}"
        ) from exc
    # A damaged file makes torch's parsers raise almost anything.
    except Exception as exc:
        raise CheckpointError(f"{path}: a damaged or truncated torch checkpoint ({type(exc).__name__})") from exc
    state = next((content[name] for name in WRAPPERS if isinstance(content, dict) and name in content), content)
    if not isinstance(state, dict) or not state:
        raise CheckpointError(f"{path}: holds no state dict")
    if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()):
        raise CheckpointError(f"{path}: holds no state dict, but a dict of other things than named tensors")
    for key, tensor in state.items():
        _check_held(path, key, tensor)
    if not weights:
        state = {key: torch.empty(tensor.shape, device="meta") for key, tensor in state.items()}
    meta = content.get("meta")
    return Content(state, {}, meta if isinstance(meta, dict) else {})


def _check_held(path: Path, key: str, tensor: Tensor) -> None:
    """Whether the file holds all that a tensor's shape promises: a network is built by shapes alone."""
    # A nested one has no shape, and says so in many ways.
    if tensor.is_nested:
        raise CheckpointError(f"{path}: {key} is a nested tensor, not plain floating point")
    if tensor.layout != torch.strided or tensor.device.type != "cpu":
        raise CheckpointError(f"{path}: {key} is a {tensor.layout} {tensor.dtype} tensor, not plain floating point")
    # A view that repeats its values would become as large as it says; `nbytes` of a larger one than 2^63 is wrong.
    held, said = tensor.untyped_storage().nbytes(), tensor.numel() * tensor.element_size()
    if held < said:
        raise CheckpointError(f"{path}: {key} has {said} bytes, of which the file holds {held}")
