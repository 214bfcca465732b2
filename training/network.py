"""The networks we train: a pretrained backbone, a head, a light decoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from models.backbones.mobilenet import MobileNetV2
from models.builder import output_channels
from models.checkpoint import load_segmentor, read_checkpoint
from models.heads.ann import ANNHead
from models.heads.ccnet import CCHead
from models.heads.decoder import Decoder
from models.heads.fcn import FCNHead, Head
from models.heads.non_local import NonLocalHead
from models.layers import ConvModule
from models.segmentor import Segmentor
from models.transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from training.data import Sample
from training.pretrained import load_pretrained

HeadName = Literal["ccnet", "ann", "nonlocal", "fcn"]

CHANNELS = 128  # of the context
DECODER_CHANNELS = (64, 96)  # at stride 4 and stride 8


def new_segmentor(head: HeadName, num_classes: int, pretrained: Path | None, output_stride: int) -> Segmentor:
    """A segmentor to train: random head and decoder; the backbone from a file, or else a random MobileNetV2.

    Raises:
        ValueError: the file is no backbone that we know
    """
    random = MobileNetV2(output_stride=output_stride)
    backbone = random if pretrained is None else load_pretrained(pretrained, output_stride)
    c1, c2, _, _ = output_channels(backbone)
    decoder = Decoder(CHANNELS, (c1, c2), DECODER_CHANNELS)
    return Segmentor(backbone, _new_head(head, num_classes, backbone), decoder)


def continue_segmentor(head: HeadName, num_classes: int, initial: Path, output_stride: int) -> Segmentor:
    """A segmentor with the trained backbone and decoder of another, and a new head.

    Raises:
        CheckpointError: `initial` is no checkpoint
        ValueError: it has no decoder, or another output stride
    """
    started = load_segmentor(initial)
    stride = read_checkpoint(initial).metadata.get("output_stride", "16")
    if stride != str(output_stride):
        raise ValueError(f"{initial} has output stride {stride}, not {output_stride}")
    if started.decoder is None:
        raise ValueError(f"{initial} has no decoder: not trained by this program")
    return Segmentor(started.backbone, _new_head(head, num_classes, started.backbone), started.decoder)


def _new_head(name: HeadName, num_classes: int, backbone: nn.Module) -> Head:
    head = _random_head(name, num_classes, backbone)
    # So that no class is likelier than another at first; mmsegmentation's deviation.
    nn.init.normal_(head.conv_seg.weight, std=0.01)
    return head


def _random_head(name: HeadName, num_classes: int, backbone: nn.Module) -> Head:
    classifier = DECODER_CHANNELS[0]
    _, _, c3, c4 = output_channels(backbone)
    match name:
        case "ccnet":
            return CCHead(c4, CHANNELS, num_classes, classifier_channels=classifier)
        case "ann":
            return ANNHead((c3, c4), CHANNELS, num_classes, classifier_channels=classifier)
        case "nonlocal":
            return NonLocalHead(c4, CHANNELS, num_classes, classifier_channels=classifier)
        case "fcn":
            return FCNHead(c4, CHANNELS, num_classes, classifier_channels=classifier)


class AuxiliaryHead(nn.Module):
    """Supervises stage 3 during training (arXiv 1612.01105, section 4); never saved."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.mix = ConvModule(in_channels, 64, 3)
        self.conv_seg = nn.Conv2d(64, num_classes, 1)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.conv_seg(self.mix(features))
        return logits


def preprocessing_for(samples: Sequence[Sample], enlargement: float = 1.0, multiple: int = 1) -> Preprocessing:
    """Images at the size of the largest one of a data set times a factor, with ImageNet's mean and deviation."""
    height, width = max((sample.mask.shape for sample in samples), key=math.prod)
    long, short = (round(enlargement * side) for side in (max(height, width), min(height, width)))
    return Preprocessing((long, short), IMAGENET_MEAN, IMAGENET_STD, multiple)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """bf16 where the device multiplies in it; emulated, it is slower than float32."""
    if device.type == "cuda" or torch.cpu.get_capabilities().get("avx512_bf16", False):
        return torch.bfloat16
    return None


class ExactConv2d(nn.Conv2d):
    """A convolution that autocast leaves in float32."""

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float())


def keep_depthwise_exact(net: nn.Module) -> None:
    """Take depthwise convolutions out of autocast, in place: on a CPU bf16 slows their gradient threefold."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
            module.__class__ = ExactConv2d  # the same parameters under the same names
