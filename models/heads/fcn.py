"""The plain head: two convolutions beside the input. Long et al., arXiv 1411.4038, in mmsegmentation's shape.

It is the control without attention, and the frame into which CCNet, Non-local and GCNet put theirs.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.layers import ConvModule
from models.traces import Trace


class Head(nn.Module):
    """Features to context to logits. Subclasses give the context; the classifier is the same in all.

    Attributes:
        in_channels: of each feature that it reads
        channels: of the context
    """

    in_channels: Mapping[str, int]

    def __init__(self, channels: int, num_classes: int, classifier_channels: int | None = None) -> None:
        """
        Args:
            channels: channels of the context
            num_classes: K, channels of the logits
            classifier_channels: what the classifier reads, if a decoder between them changes it
        """
        super().__init__()
        self.channels = channels
        self.dropout = nn.Dropout2d(0.1)
        self.conv_seg = nn.Conv2d(classifier_channels or channels, num_classes, 1)

    def forward(self, features: Mapping[str, Tensor]) -> tuple[Tensor, tuple[Trace, ...]]:
        """Features by name to context [B, channels, h, w] and the attention's traces."""
        raise NotImplementedError

    def classify(self, context: Tensor) -> Tensor:
        logits: Tensor = self.conv_seg(self.dropout(context))
        return logits

    def timed_modules(self) -> dict[nn.Module, tuple[str, ...]]:
        """Module to the name of each of its calls in one forward pass."""
        return {self.conv_seg: ("classifier",)}


class FCNHead(Head):
    """mmsegmentation's FCNHead with num_convs=2, whose context is concatenated with the input."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        num_classes: int,
        *,
        context_channels: int | None = None,
        classifier_channels: int | None = None,
        slope: float = 0.0,
    ) -> None:
        """
        Args:
            channels: of the reduced map that attention works on
            context_channels: at the head's end, where they are others than `channels`
            slope: of the activations below zero (official CCNet: 0.01)
        """
        context = context_channels or channels
        super().__init__(context, num_classes, classifier_channels)
        self.in_channels = {"c4": in_channels}
        self.convs = nn.ModuleList(
            ConvModule(width, channels, 3, activation=_activation(slope)) for width in (in_channels, channels)
        )
        self.conv_cat = ConvModule(in_channels + channels, context, 3, activation=_activation(slope))

    def forward(self, features: Mapping[str, Tensor]) -> tuple[Tensor, tuple[Trace, ...]]:
        x = features["c4"]
        context, traces = self.attend(self.convs[0](x))
        return self.conv_cat(torch.cat([x, self.convs[1](context)], dim=1)), traces

    def attend(self, x: Tensor) -> tuple[Tensor, tuple[Trace, ...]]:
        """Hook for attention on the reduced map [B, channels, h, w]; none here."""
        return x, ()

    def timed_modules(self) -> dict[nn.Module, tuple[str, ...]]:
        return {
            self.convs[0]: ("reduction",),
            self.convs[1]: ("convb",),
            self.conv_cat: ("bottleneck",),
            **super().timed_modules(),
        }


def _activation(slope: float) -> nn.Module:
    return nn.LeakyReLU(slope, inplace=True) if slope else nn.ReLU(inplace=True)
