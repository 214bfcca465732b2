"""DANet: Dual Attention Network for Scene Segmentation (arXiv 1809.02983), in mmsegmentation's shape."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.heads.fcn import Head
from models.layers import ConvModule, Scale
from models.ops.attention import Attend, dense_attention
from models.traces import Trace


class PositionAttention(nn.Module):
    """Every position over all others, unscaled: gamma * context + x (section 3.2)."""

    def __init__(self, channels: int, query_channels: int) -> None:
        super().__init__()
        self.query_project = nn.Conv2d(channels, query_channels, 1)
        self.key_project = nn.Conv2d(channels, query_channels, 1)
        self.value_project = nn.Conv2d(channels, channels, 1)
        self.gamma = Scale()
        self.attend: Attend = dense_attention

    def forward(self, x: Tensor) -> tuple[Tensor, Trace]:
        """[B, C, H, W] to the attended map of the same shape, and what led there."""
        query, key = self.query_project(x), self.key_project(x)
        context, logsumexp = self.attend(query, key.flatten(2), self.value_project(x).flatten(2), 1.0)
        trace = Trace("pam", 1, query, key, gamma=self.gamma.scale, logsumexp=logsumexp)
        return self.gamma(context) + x, trace


class ChannelAttention(nn.Module):
    """Every channel over all others, without projections: gamma * context + x (section 3.3)."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = Scale()

    def forward(self, x: Tensor) -> Tensor:
        channels = x.flatten(2)
        # Sums over the whole map, whose differences decide: in half precision little would be left of them.
        exact = channels.to(torch.promote_types(x.dtype, torch.float32))
        energy = exact @ exact.mT
        # What is least alike counts most, as in the authors' code.
        attention = (energy.amax(-1, keepdim=True) - energy).softmax(-1).to(x.dtype)
        out: Tensor = self.gamma((attention @ channels).view_as(x)) + x
        return out


class DAHead(Head):
    """Both attentions side by side on reduced maps; the sum of the two is classified."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        num_classes: int,
        *,
        query_channels: int | None = None,
        classifier_channels: int | None = None,
    ) -> None:
        super().__init__(channels, num_classes, classifier_channels)
        self.in_channels = {"c4": in_channels}
        self.pam_in_conv = ConvModule(in_channels, channels, 3)
        self.pam = PositionAttention(channels, query_channels or channels // 8)
        self.pam_out_conv = ConvModule(channels, channels, 3)
        self.cam_in_conv = ConvModule(in_channels, channels, 3)
        self.cam = ChannelAttention()
        self.cam_out_conv = ConvModule(channels, channels, 3)

    def forward(self, features: Mapping[str, Tensor]) -> tuple[Tensor, tuple[Trace, ...]]:
        x = features["c4"]
        positions, trace = self.pam(self.pam_in_conv(x))
        channels = self.cam(self.cam_in_conv(x))
        return torch.add(self.pam_out_conv(positions), self.cam_out_conv(channels)), (trace,)

    def timed_modules(self) -> dict[nn.Module, tuple[str, ...]]:
        names = ("pam_in_conv", "pam", "pam_out_conv", "cam_in_conv", "cam", "cam_out_conv")
        return {**{getattr(self, name): (name,) for name in names}, **super().timed_modules()}
