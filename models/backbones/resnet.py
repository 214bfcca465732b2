"""ResNetV1c: deep stem, dilated last stages, output stride 8; also ResNetV1, with a plain stem, and ResNetV1d.

He et al., arXiv 1512.03385; the deep stem from arXiv 1812.01187; dilation as in mmsegmentation's "d8".
"""

from collections.abc import Sequence

from torch import Tensor, nn

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}  # of depths with bottlenecks
STRIDES = (1, 2, 1, 1)
DILATIONS = (1, 1, 2, 4)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1: the block of depth 50 and beyond."""

    expansion = 4

    def __init__(self, in_channels: int, planes: int, *, stride: int, dilation: int, avg_down: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _projection(in_channels, planes * self.expansion, stride, avg_down=avg_down)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out)) + identity
        activated: Tensor = self.relu(out)
        return activated


class BasicBlock(nn.Module):
    """Two 3x3, of which the first alone is dilated: the block of depths 18 and 34."""

    expansion = 1

    def __init__(self, in_channels: int, planes: int, *, stride: int, dilation: int, avg_down: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, planes, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _projection(in_channels, planes, stride, avg_down=avg_down)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out)) + identity
        activated: Tensor = self.relu(out)
        return activated


Block = type[Bottleneck] | type[BasicBlock]


class ResNet(nn.Module):
    def __init__(  # noqa: PLR0913 - all that makes one ResNet differ from another
        self,
        blocks: Sequence[int] = BLOCKS[50],
        *,
        block: Block = Bottleneck,
        stem_channels: tuple[int | None, int] = (32, 64),
        planes: Sequence[int] = (64, 128, 256, 512),
        contract_dilation: bool = True,
        ceil_mode: bool = False,
        avg_down: bool = False,
    ) -> None:
        """
        Args:
            blocks: their number in each of the four stages
            stem_channels: of the stem's first two convolutions, and of its last; without the first two it is one
                of 7x7 (V1)
            planes: inner channels of each stage; at its output they are `block.expansion` times as many
            contract_dilation: the first block of a dilated stage takes half the dilation (mmsegmentation;
                not the official CCNet)
            ceil_mode: rounding of the max pooling (official CCNet and ANN: true)
            avg_down: where a stage changes the size, what passes its first block by is averaged (V1d)
        """
        super().__init__()
        hidden, channels = stem_channels
        convolutions = [nn.Conv2d(3, channels, 7, 2, 3, bias=False)]
        if hidden is not None:
            widths = ((3, hidden, 2), (hidden, hidden, 1), (hidden, channels, 1))
            convolutions = [nn.Conv2d(of, to, 3, stride, 1, bias=False) for of, to, stride in widths]
        layers: list[nn.Module] = []
        for conv in convolutions:
            layers += [conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU(inplace=True)]
        self.stem = nn.Sequential(*layers, nn.MaxPool2d(3, 2, 1, ceil_mode=ceil_mode))
        stages = []
        for index, (count, inner) in enumerate(zip(blocks, planes, strict=True)):
            dilation = DILATIONS[index]
            first_dilation = dilation // 2 if contract_dilation and dilation > 1 else dilation
            first = block(channels, inner, stride=STRIDES[index], dilation=first_dilation, avg_down=avg_down)
            channels = inner * block.expansion
            rest = (block(channels, inner, stride=1, dilation=dilation) for _ in range(count - 1))
            stages.append(nn.Sequential(first, *rest))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """[B, 3, H, W] to `c1` at stride 4 and `c2`, `c3`, `c4` at stride 8."""
        c1 = self.layer1(self.stem(image))
        c2 = self.layer2(c1)
        c3 = self.layer3(c2)
        return {"c1": c1, "c2": c2, "c3": c3, "c4": self.layer4(c3)}


def _projection(in_channels: int, out_channels: int, stride: int, *, avg_down: bool) -> nn.Sequential | None:
    """What brings a block's input to its output's shape, where they differ."""
    if stride == 1 and in_channels == out_channels:
        return None
    if avg_down:
        return nn.Sequential(
            nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False),
            *(nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)),
        )
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))
