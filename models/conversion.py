"""Any checkpoint that we read to one of ours, with all in its header that goes with it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors import SafetensorError

from models.checkpoint import options_to_metadata, read_checkpoint, save_segmentor
from models.errors import CheckpointError
from models.registry import ModelSpec, load_model


def convert(spec: ModelSpec, path: Path) -> None:
    """Write a model as safetensors in full precision, so that it gives the same logits; `recognise` reads the header.

    Args:
        path: to write; whoever looks at its folder meanwhile sees the old file or the new one, whole

    Raises:
        CheckpointError: as `load_model`; or the path is not for safetensors, or is the model's own file
        OSError: its folder is not there, or it cannot be written
    """
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path}: what is written is safetensors, and must be named so")
    check_output(path, spec)
    segmentor = load_model(spec)
    of_file = read_checkpoint(spec.weights, weights=False).options
    options = replace(of_file, align_corners=spec.align_corners, recurrence=spec.recurrence or of_file.recurrence)
    unfinished = path.with_suffix(".part")
    try:
        save_segmentor(segmentor, unfinished, {**options_to_metadata(options), **header(spec)}, torch.float32)
    except SafetensorError as exc:
        raise OSError(f"{path}: {exc}") from exc
    unfinished.replace(path)


def check_output(path: Path, spec: ModelSpec) -> None:
    """Say before there is work what stands against writing what is made of a model.

    Raises:
        CheckpointError: the path is the model's own file
        FileNotFoundError, NotADirectoryError: it has no folder to be in
    """
    if path.exists() and path.samefile(spec.weights):
        raise CheckpointError(f"{path}: is the model's own file")
    if not path.parent.exists():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}")
    if not path.parent.is_dir():
        raise NotADirectoryError(f"{path}: {path.parent} is no folder")


def header(spec: ModelSpec) -> dict[str, str]:
    """What a file of ours says of itself; `card.of_header` reads it."""
    said = {
        "title": spec.title,
        "dataset": spec.dataset,
        "classes": json.dumps(asdict(spec.classes)),
        "preprocessing": json.dumps(asdict(spec.preprocessing)),
        "inference": json.dumps(asdict(spec.inference)),
        "licence": spec.licence,
        "source": spec.source,
        "converted_from": f"{spec.weights.name}, sha256 {spec.sha256}",
    }
    return said if spec.miou is None else {**said, "miou": str(spec.miou)}
