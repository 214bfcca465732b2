"""MobileNetV2 (arXiv 1801.04381), its last strides replaced by dilation."""

from torch import Tensor, nn

from models.layers import ConvModule

# Table 2 of the paper as (expansion, channels, blocks, stride), grouped by the map each stage ends with.
STAGES = (
    ((1, 16, 1, 1), (6, 24, 2, 2)),
    ((6, 32, 3, 2),),
    ((6, 64, 4, 2), (6, 96, 3, 1)),
    ((6, 160, 3, 2), (6, 320, 1, 1)),
)
STEM_CHANNELS = 32

# Multipliers with published weights, and the block that ends each stage.
WIDTHS = (1.0, 0.75, 0.5, 0.35, 0.25, 0.1, 1.3, 1.4)
LAST_BLOCKS = ("layer1.2", "layer2.2", "layer3.6", "layer4.3")


class InvertedResidual(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, *, expansion: int, stride: int, dilation: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.expand = ConvModule(in_channels, hidden, activation=nn.ReLU6(inplace=True)) if expansion > 1 else None
        self.depthwise = ConvModule(
            hidden, hidden, 3, stride=stride, dilation=dilation, groups=hidden, activation=nn.ReLU6(inplace=True)
        )
        self.project = ConvModule(hidden, out_channels, activation=nn.Identity())
        self.has_residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        expanded = x if self.expand is None else self.expand(x)
        out: Tensor = self.project(self.depthwise(expanded))
        return x + out if self.has_residual else out


class MobileNetV2(nn.Module):
    def __init__(self, *, width: float = 1.0, output_stride: int = 16) -> None:
        """
        Args:
            width: multiplier of all channels, which are rounded to multiples of 8
            output_stride: 8 or 16
        """
        super().__init__()
        if output_stride not in (8, 16):
            raise ValueError(f"output_stride must be 8 or 16, not {output_stride}")
        channels = _scaled(STEM_CHANNELS, width)
        self.stem = ConvModule(3, channels, 3, stride=2, activation=nn.ReLU6(inplace=True))
        stride = 2
        stages = []
        for groups in STAGES:
            blocks: list[nn.Module] = []
            for expansion, out_channels, count, step in groups:
                out_channels = _scaled(out_channels, width)
                blocks += _group(channels, out_channels, count, expansion, _geometry(stride, step, output_stride))
                channels = out_channels
                stride *= step
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """[B, 3, H, W] to `c1` (stride 4), `c2` (8), `c3` and `c4` (8 or 16)."""
        c1 = self.layer1(self.stem(image))
        c2 = self.layer2(c1)
        c3 = self.layer3(c2)
        return {"c1": c1, "c2": c2, "c3": c3, "c4": self.layer4(c3)}


def stage_channels(width: float) -> tuple[int, ...]:
    """Channels of `c1` to `c4` at a width."""
    return tuple(_scaled(groups[-1][1], width) for groups in STAGES)


def _geometry(stride: int, step: int, output_stride: int) -> tuple[int, int, int]:
    """Stride and dilation of a group's first block, and dilation of its others.

    Args:
        stride: of the group's input in the network as published
        step: the group's own stride there

    A stride past the output stride becomes dilation: from the block after it, since the block itself
    still reads the finer map.
    """
    kept = step if stride < output_stride else 1
    return kept, max(1, stride // output_stride), max(1, stride * step // output_stride)


def _group(
    in_channels: int, out_channels: int, count: int, expansion: int, geometry: tuple[int, int, int]
) -> list[nn.Module]:
    stride, first_dilation, dilation = geometry
    first = InvertedResidual(in_channels, out_channels, expansion=expansion, stride=stride, dilation=first_dilation)
    rest = (
        InvertedResidual(out_channels, out_channels, expansion=expansion, stride=1, dilation=dilation)
        for _ in range(count - 1)
    )
    return [first, *rest]


def _scaled(channels: int, width: float) -> int:
    """Round to a multiple of 8, never down by more than a tenth: the rule of the paper's code."""
    scaled = max(8, int(channels * width + 4) // 8 * 8)
    return scaled + 8 if scaled < 0.9 * channels * width else scaled
