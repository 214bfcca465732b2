"""ResNetV1c: deep stem, dilated last stages, output stride 8.

He et al., arXiv 1512.03385; the deep stem from arXiv 1812.01187; dilation as in mmsegmentation's "d8".
"""

from torch import Tensor, nn

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
STRIDES = (1, 2, 1, 1)
DILATIONS = (1, 1, 2, 4)
EXPANSION = 4


class Bottleneck(nn.Module):
    def __init__(self, in_channels: int, planes: int, *, stride: int, dilation: int, project: bool) -> None:
        super().__init__()
        out_channels = planes * EXPANSION
        self.conv1 = nn.Conv2d(in_channels, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = (
            nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))
            if project
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out)) + identity
        activated: Tensor = self.relu(out)
        return activated


class ResNet(nn.Module):
    def __init__(
        self,
        depth: int = 50,
        *,
        stem_channels: tuple[int, int] = (32, 64),
        planes: int = 64,
        contract_dilation: bool = True,
        ceil_mode: bool = False,
    ) -> None:
        """
        Args:
            depth: 50 or 101
            stem_channels: of the stem's first two convolutions, and of its last
            planes: inner channels of the first stage; stage i has planes * 2^i, and 4 times that at its output
            contract_dilation: the first block of a dilated stage takes half the dilation (mmsegmentation;
                not the official CCNet)
            ceil_mode: rounding of the max pooling (official CCNet and ANN: true)
        """
        super().__init__()
        hidden, channels = stem_channels
        self.stem = nn.Sequential(
            *(nn.Conv2d(3, hidden, 3, 2, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU(inplace=True)),
            *(nn.Conv2d(hidden, hidden, 3, 1, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU(inplace=True)),
            *(nn.Conv2d(hidden, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)),
            nn.MaxPool2d(3, 2, 1, ceil_mode=ceil_mode),
        )
        stages = []
        for index, blocks in enumerate(BLOCKS[depth]):
            stages.append(_stage(channels, planes << index, blocks, index, contract_dilation))
            channels = (planes << index) * EXPANSION
        self.layer1, self.layer2, self.layer3, self.layer4 = stages

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """[B, 3, H, W] to `c1` at stride 4 and `c2`, `c3`, `c4` at stride 8."""
        c1 = self.layer1(self.stem(image))
        c2 = self.layer2(c1)
        c3 = self.layer3(c2)
        return {"c1": c1, "c2": c2, "c3": c3, "c4": self.layer4(c3)}


def _stage(in_channels: int, planes: int, blocks: int, index: int, contract_dilation: bool) -> nn.Sequential:
    dilation = DILATIONS[index]
    first_dilation = dilation // 2 if contract_dilation and dilation > 1 else dilation
    first = Bottleneck(in_channels, planes, stride=STRIDES[index], dilation=first_dilation, project=True)
    rest = (
        Bottleneck(planes * EXPANSION, planes, stride=1, dilation=dilation, project=False) for _ in range(blocks - 1)
    )
    return nn.Sequential(first, *rest)
