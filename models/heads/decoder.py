"""A light decoder: sharpens a head's context with the backbone's finer maps, as DeepLabv3+ does (arXiv 1802.02611)."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import ConvModule


class Refinement(nn.Module):
    """Resizes the coarse map to the fine one's size, joins both and mixes them."""

    def __init__(self, coarse_channels: int, fine_channels: int, out_channels: int) -> None:
        super().__init__()
        self.mix = ConvModule(coarse_channels + fine_channels, out_channels, 3)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        resized = F.interpolate(coarse, fine.shape[2:], mode="bilinear", align_corners=False)
        mixed: Tensor = self.mix(torch.cat([resized, fine.to(resized.dtype)], dim=1))
        return mixed


class Decoder(nn.Module):
    """Context at the backbone's stride to stride 8 with `c2`, then to stride 4 with `c1`."""

    def __init__(self, channels: int, fine_channels: tuple[int, int], out_channels: tuple[int, int]) -> None:
        """
        Args:
            channels: of the context
            fine_channels: of `c1` (stride 4) and `c2` (stride 8)
            out_channels: after the step to stride 4 and after the step to stride 8
        """
        super().__init__()
        self.in_channels = {"c1": fine_channels[0], "c2": fine_channels[1]}
        self.context_channels = channels
        self.channels = out_channels[0]
        self.stride8 = Refinement(channels, fine_channels[1], out_channels[1])
        self.stride4 = Refinement(out_channels[1], fine_channels[0], out_channels[0])

    def forward(self, context: Tensor, features: Mapping[str, Tensor]) -> Tensor:
        out: Tensor = self.stride4(self.stride8(context, features["c2"]), features["c1"])
        return out
