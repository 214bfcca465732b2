"""A model as ONNX, for other runtimes: any batch, any size."""

from __future__ import annotations

import logging
import warnings
from importlib import import_module
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.conversion import check_output, header
from models.errors import ModelError
from models.registry import ModelSpec, load_model
from models.segmentor import Segmentor

OPSET = 20
# Any sizes would do, as they become symbols. None equals another: what is equal here the exporter takes to be always.
EXAMPLE = (2, 3, 97, 130)


class Exported(nn.Module):
    """What the file computes: all but the resizing of images, and the argmax."""

    mean: Tensor
    std: Tensor

    def __init__(self, segmentor: Segmentor, spec: ModelSpec) -> None:
        super().__init__()
        self.segmentor = segmentor
        preprocessing = spec.preprocessing
        self.bgr = preprocessing.bgr
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(preprocessing.std).view(3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] RGB, 0 to 255, to logits [B, K, H, W]."""
        normalized = (image - self.mean) / self.std
        logits = self.segmentor(normalized.flip(1) if self.bgr else normalized).logits
        return F.interpolate(logits, image.shape[2:], mode="bilinear", align_corners=self.segmentor.align_corners)


def export_onnx(spec: ModelSpec, path: Path) -> None:
    """Write a model as one ONNX file, right at any size: `image` to `logits`, as `Exported` says.

    What goes with the model is in the file's metadata, as in the header of a checkpoint of ours.

    Raises:
        CheckpointError: as `load_model`; or the path is the model's own file
        ModelError: the packages that write ONNX are not installed
        OSError: the path's folder is not there
    """
    check_output(path, spec)
    try:
        for package in ("onnx", "onnxscript"):
            import_module(package)
    except ImportError as exc:
        raise ModelError(f"{exc}: the extra `onnx` has it") from exc
    exported = Exported(load_model(spec), spec).eval()
    with warnings.catch_warnings(), torch.no_grad():
        # The exporter's own, about itself.
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            exported,
            (torch.zeros(EXAMPLE),),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=({0: "batch", 2: "height", 3: "width"},),
        )
    assert program is not None
    program.model.metadata_props.update(header(spec))
    unfinished = path.with_suffix(".part")
    program.save(unfinished, external_data=False)
    unfinished.replace(path)
