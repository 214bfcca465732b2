"""Building blocks that backbones and heads share."""

import torch
from torch import Tensor, nn


class ConvModule(nn.Module):
    """Convolution, batch norm, activation, under mmsegmentation's names `conv` and `bn`."""

    def __init__(  # noqa: PLR0913 - a convolution's own arguments
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        padding = dilation * (kernel_size // 2)
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation=dilation, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(out_channels)
        self.activation = nn.ReLU(inplace=True) if activation is None else activation

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.activation(self.bn(self.conv(x)))
        return out


class Scale(nn.Module):
    """A learned scalar, mmcv's `Scale`: the gamma of a residual branch, so it starts at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale
