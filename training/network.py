"""The networks we train: a MobileNetV2 with pretrained weights, a head, a light decoder."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from models.backbones.mobilenet import MobileNetV2
from models.folding import fold_batch_norm
from models.heads.ann import ANNHead
from models.heads.ccnet import CCHead
from models.heads.decoder import Decoder
from models.heads.fcn import FCNHead, Head
from models.heads.non_local import NonLocalHead
from models.layers import ConvModule
from models.segmentor import Segmentor
from models.transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from training.data import Sample

HeadName = Literal["ccnet", "ann", "nonlocal", "fcn"]

FINE_CHANNELS = (24, 32)  # of c1 and c2
CHANNELS = 128  # of the context
DECODER_CHANNELS = (64, 96)  # at stride 4 and stride 8


def new_segmentor(head: HeadName, num_classes: int, backbone: Path | None, output_stride: int) -> Segmentor:
    """A segmentor to train: random head; backbone from torchvision-named weights, if given.

    A pretrained backbone's batch norm is folded away: its statistics came from a million photos, and a
    few hundred pictures in batches of four would only blur them.
    """
    net = MobileNetV2(output_stride=output_stride)
    if backbone is not None:
        try:
            load_torchvision(net, load_file(backbone))
        # Tensors of another network fail in as many ways as there are networks.
        except (SafetensorError, ValueError, IndexError, RuntimeError, OSError) as exc:
            raise ValueError(f"{backbone}: no weights of a torchvision MobileNetV2: {exc}") from exc
        fold_batch_norm(net.eval())
    return Segmentor(net, _new_head(head, num_classes), Decoder(CHANNELS, FINE_CHANNELS, DECODER_CHANNELS))


def _new_head(name: HeadName, num_classes: int) -> Head:
    classifier = DECODER_CHANNELS[0]
    match name:
        case "ccnet":
            return CCHead(320, CHANNELS, num_classes, classifier_channels=classifier)
        case "ann":
            return ANNHead((96, 320), CHANNELS, num_classes, classifier_channels=classifier)
        case "nonlocal":
            return NonLocalHead(320, CHANNELS, num_classes, classifier_channels=classifier)
        case "fcn":
            return FCNHead(320, CHANNELS, num_classes, classifier_channels=classifier)


class AuxiliaryHead(nn.Module):
    """Supervises stage 3 during training (arXiv 1612.01105, section 3.3); never saved."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.mix = ConvModule(in_channels, 64, 3)
        self.conv_seg = nn.Conv2d(64, num_classes, 1)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.conv_seg(self.mix(features))
        return logits


def load_torchvision(net: MobileNetV2, state: dict[str, Tensor]) -> None:
    """Copy torchvision's `mobilenet_v2` weights (with batch norm) into ours; its classifier is dropped.

    Raises:
        ValueError: tensors are missing or left over
    """
    renamed = {
        _rename(key): tensor
        for key, tensor in state.items()
        if re.match(r"features\.(\d|1[0-7])\.", key) and not key.endswith("num_batches_tracked")
    }
    wanted = {key for key in net.state_dict() if not key.endswith("num_batches_tracked")}
    if wanted != renamed.keys():
        raise ValueError(f"not a torchvision MobileNetV2: {sorted(wanted ^ renamed.keys())[:5]} don't match")
    net.load_state_dict(renamed, strict=False)


# torchvision numbers all blocks through; (first block, stage) of each of ours.
STAGE_STARTS = ((14, 4), (7, 3), (4, 2), (1, 1))
PARTS = {3: ("expand", "depthwise", "project"), 2: ("depthwise", "project")}


def _rename(key: str) -> str:
    _, number, *rest = key.split(".")
    block = int(number)
    if block == 0:
        return f"stem.{('conv', 'bn')[int(rest[0])]}.{rest[1]}"
    start, stage = next((start, stage) for start, stage in STAGE_STARTS if block >= start)
    names = PARTS[2 if block == 1 else 3]
    # `conv.<i>.<j>`: part i with j 0 or 1 for convolution or norm; the last part has no such pair, only i and i + 1.
    part = int(rest[1])
    last = part >= len(names) - 1
    layer = ("conv", "bn")[part - (len(names) - 1) if last else int(rest[2])]
    return f"layer{stage}.{block - start}.{names[min(part, len(names) - 1)]}.{layer}.{rest[-1]}"


def preprocessing_for(samples: Sequence[Sample]) -> Preprocessing:
    """Images at the size of the largest one of a data set, with ImageNet's mean and deviation."""
    height, width = max((sample.mask.shape for sample in samples), key=math.prod)
    return Preprocessing((max(height, width), min(height, width)), IMAGENET_MEAN, IMAGENET_STD)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """bf16 where the device is made for it; on a CPU it is slower than float32."""
    return torch.bfloat16 if device.type == "cuda" else None
