"""PSPNet: Pyramid Scene Parsing Network (arXiv 1612.01105), in mmsegmentation's shape."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.heads.fcn import Head
from models.layers import ConvModule
from models.ops.attention import pyramid_pool
from models.traces import Trace

POOL_SCALES = (1, 2, 3, 6)  # section 3.2


class Pool(nn.Module):
    """The mean of each cell of a grid: [B, C, H, W] to [B, C, scale, scale]."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return pyramid_pool(x, (self.scale,)).view(*x.shape[:2], self.scale, self.scale)


class PSPHead(Head):
    """The map beside its own means over grids of four sizes, mixed by one convolution."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        num_classes: int,
        *,
        align_corners: bool = False,
        classifier_channels: int | None = None,
    ) -> None:
        """
        Args:
            align_corners: how the means are resized to the map, fixed when the model was trained
        """
        super().__init__(channels, num_classes, classifier_channels)
        self.in_channels = {"c4": in_channels}
        self.psp_modules = nn.ModuleList(
            nn.Sequential(Pool(scale), ConvModule(in_channels, channels)) for scale in POOL_SCALES
        )
        self.bottleneck = ConvModule(in_channels + len(POOL_SCALES) * channels, channels, 3)
        self.align_corners = align_corners

    def forward(self, features: Mapping[str, Tensor]) -> tuple[Tensor, tuple[Trace, ...]]:
        x = features["c4"]
        means = (
            F.interpolate(pooled(x), x.shape[2:], mode="bilinear", align_corners=self.align_corners)
            for pooled in self.psp_modules
        )
        return self.bottleneck(torch.cat([x, *means], dim=1)), ()

    def timed_modules(self) -> dict[nn.Module, tuple[str, ...]]:
        levels = {level: (f"psp_{scale}",) for level, scale in zip(self.psp_modules, POOL_SCALES, strict=True)}
        return {**levels, self.bottleneck: ("bottleneck",), **super().timed_modules()}
