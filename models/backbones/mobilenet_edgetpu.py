"""MobileNet-EdgeTPU, slim, as DeepLab ships it for Cityscapes.

Its early blocks fuse the expansion with the 3x3 filter, which costs more arithmetic and less memory traffic than
MobileNetV2's pair; no activation is capped. It was published as a graph of 62 convolutions, batch norm folded in.
"""

from collections.abc import Iterator

from torch import Tensor, nn

from models.layers import ConvModule

# (hidden channels, channels) and (hidden channels, channels, kernel) of the blocks of each stage.
LAYER1 = ((128, 24), (96, 24), (96, 24), (96, 24))
LAYER2 = ((192, 40), (160, 40), (160, 40), (160, 40))
LAYER3 = (
    (320, 72, 3),
    *((288, 72, 3),) * 3,
    (576, 72, 3),
    *((288, 72, 3),) * 3,
)
LAYER4 = ((576, 120, 5), *((480, 120, 5),) * 3, (960, 144, 3))


class FusedResidual(nn.Module):
    """A full 3x3 convolution that expands, then a linear projection."""

    def __init__(self, in_channels: int, hidden: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.fused = ConvModule(in_channels, hidden, 3, stride=stride)
        self.project = ConvModule(hidden, out_channels, activation=nn.Identity())
        self.has_residual = stride == 1

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.project(self.fused(x))
        return x + out if self.has_residual else out


class InvertedResidual(nn.Module):
    def __init__(  # noqa: PLR0913 - a convolution's own arguments
        self,
        in_channels: int,
        hidden: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        has_residual: bool = True,
    ) -> None:
        super().__init__()
        self.expand = ConvModule(in_channels, hidden)
        self.depthwise = ConvModule(hidden, hidden, kernel_size, stride=stride, dilation=dilation, groups=hidden)
        self.project = ConvModule(hidden, out_channels, activation=nn.Identity())
        self.has_residual = has_residual

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + out if self.has_residual else out


class MobileNetEdgeTPU(nn.Module):
    """Output stride 16: the last stage keeps its input's size, and its blocks after the first are dilated."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(ConvModule(3, 24, 3, stride=2), ConvModule(24, 16, activation=nn.Identity()))
        self.layer1 = nn.Sequential(*_fused_stage(16, LAYER1))
        self.layer2 = nn.Sequential(*_fused_stage(24, LAYER2))
        self.layer3 = nn.Sequential(*_inverted_stage(40, LAYER3, stride=2, dilation=1))
        self.layer4 = nn.Sequential(*_inverted_stage(72, LAYER4, stride=1, dilation=2))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """[B, 3, H, W] to `c1` (stride 4), `c2` (8), `c3` and `c4` (16) with 24, 40, 72 and 144 channels."""
        c1 = self.layer1(self.stem(image))
        c2 = self.layer2(c1)
        c3 = self.layer3(c2)
        return {"c1": c1, "c2": c2, "c3": c3, "c4": self.layer4(c3)}


def _fused_stage(channels: int, blocks: tuple[tuple[int, int], ...]) -> Iterator[nn.Module]:
    for index, (hidden, out_channels) in enumerate(blocks):
        yield FusedResidual(channels, hidden, out_channels, stride=1 if index else 2)
        channels = out_channels


def _inverted_stage(
    channels: int, blocks: tuple[tuple[int, int, int], ...], *, stride: int, dilation: int
) -> Iterator[nn.Module]:
    """The first block has the stride, the others are dilated."""
    for index, (hidden, out_channels, kernel_size) in enumerate(blocks):
        yield InvertedResidual(
            *(channels, hidden, out_channels, kernel_size),
            stride=1 if index else stride,
            dilation=dilation if index else 1,
            # A block that expands eightfold begins a group, and a group's first block has no residual.
            has_residual=hidden != 8 * channels,
        )
        channels = out_channels
