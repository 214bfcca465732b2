"""GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond (arXiv 1904.11492), as a segmentation head."""

import torch
from torch import Tensor, nn

from models.heads.fcn import FCNHead
from models.traces import Trace


class GlobalContextBlock(nn.Module):
    """One attention map for all positions: x + transform(sum over positions of weight * x) (section 4.2)."""

    def __init__(self, channels: int, inner_channels: int) -> None:
        super().__init__()
        self.conv_mask = nn.Conv2d(channels, 1, 1)
        self.channel_add_conv = nn.Sequential(
            nn.Conv2d(channels, inner_channels, 1),
            nn.LayerNorm([inner_channels, 1, 1]),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner_channels, channels, 1),
        )
        # The block starts out adding nothing.
        for parameter in self.channel_add_conv[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.conv_mask(x).flatten(2).softmax(-1)  # [B, 1, H * W]
        context = torch.matmul(x.flatten(2), weights.mT).unsqueeze(-1)  # [B, C, 1, 1]
        out: Tensor = x + self.channel_add_conv(context)
        return out


class GCHead(FCNHead):
    """Without traces: what a position looks at does not depend on the position."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        num_classes: int,
        *,
        inner_channels: int | None = None,
        classifier_channels: int | None = None,
    ) -> None:
        super().__init__(in_channels, channels, num_classes, classifier_channels=classifier_channels)
        self.gc_block = GlobalContextBlock(channels, inner_channels or channels // 4)

    def attend(self, x: Tensor) -> tuple[Tensor, tuple[Trace, ...]]:
        return self.gc_block(x), ()

    def timed_modules(self) -> dict[nn.Module, tuple[str, ...]]:
        return {self.gc_block: ("gc",), **super().timed_modules()}
