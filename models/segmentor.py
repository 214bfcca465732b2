"""The whole network: backbone, head, an optional decoder, classifier."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.heads.decoder import Decoder
from models.heads.fcn import Head
from models.traces import Trace

STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")  # of a backbone, in the order they run


class Output(NamedTuple):
    logits: Tensor  # [B, K, h, w] at the head's (or decoder's) resolution
    traces: tuple[Trace, ...]  # in the order the blocks ran


class Segmentor(nn.Module):
    """Image to logits. Attribute names are mmsegmentation's, because they are the checkpoint format."""

    def __init__(
        self, backbone: nn.Module, decode_head: Head, decoder: Decoder | None = None, *, align_corners: bool = False
    ) -> None:
        """
        Args:
            backbone: image to features by name, `c1` to `c4`; has the modules STAGES
            decode_head: features to context, context to logits
            decoder: between the context and the classifier, for light models
            align_corners: how the logits are to be resized, fixed when the model was trained
        """
        super().__init__()
        self.backbone = backbone
        self.decode_head = decode_head
        self.decoder = decoder
        self.align_corners = align_corners

    @property
    def num_classes(self) -> int:
        return self.decode_head.conv_seg.out_channels

    @property
    def prefers_channels_last(self) -> bool:
        """Depthwise convolutions gain from that layout; on a CPU the dense ones of a ResNet lose by it."""
        return any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in self.backbone.modules())

    def use_channels_last(self) -> None:
        """Lay the weights out so that every pass runs in channels-last memory."""
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it

    def forward(self, image: Tensor) -> Output:
        """[B, 3, H, W], normalised as the model was trained."""
        return self.classify(self.backbone(image))

    def classify(self, features: Mapping[str, Tensor]) -> Output:
        """The rest of the network, from the backbone's features on."""
        context, traces = self.decode_head(features)
        if self.decoder is not None:
            context = self.decoder(context, features)
        return Output(self.decode_head.classify(context), traces)

    def timed_modules(self) -> dict[nn.Module, tuple[str, ...]]:
        """Module to the name of each of its calls in one forward pass; together they are the network."""
        stages = {getattr(self.backbone, name): (name,) for name in STAGES}
        decoder = {} if self.decoder is None else {self.decoder: ("decoder",)}
        return {**stages, **self.decode_head.timed_modules(), **decoder}
