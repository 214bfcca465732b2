from __future__ import annotations

from math import ceil

import pytest
import torch
from torch import nn

from models.backbones.mobilenet_edgetpu import FusedResidual, InvertedResidual, MobileNetEdgeTPU

Block = FusedResidual | InvertedResidual


def blocks(stage: nn.Module) -> list[Block]:
    return [module for module in stage.modules() if isinstance(module, Block)]


def filter_of(block: Block) -> nn.Conv2d:
    """The one convolution of a block that sees neighbours."""
    return block.fused.conv if isinstance(block, FusedResidual) else block.depthwise.conv


@pytest.mark.parametrize(("height", "width"), [(64, 96), (65, 33), (63, 17), (1, 9), (1, 1)])
def test_feature_sizes(height: int, width: int) -> None:
    with torch.no_grad():
        features = MobileNetEdgeTPU().eval()(torch.randn(2, 3, height, width))
    strides, channels = {"c1": 4, "c2": 8, "c3": 16, "c4": 16}, {"c1": 24, "c2": 40, "c3": 72, "c4": 144}
    assert {name: tuple(feature.shape) for name, feature in features.items()} == {
        name: (2, channels[name], ceil(height / stride), ceil(width / stride)) for name, stride in strides.items()
    }


@pytest.mark.parametrize(
    ("stage", "kernels", "strides", "dilations", "residuals"),
    [
        ("layer1", [3] * 4, [2, 1, 1, 1], [1] * 4, [False, True, True, True]),
        ("layer2", [3] * 4, [2, 1, 1, 1], [1] * 4, [False, True, True, True]),
        ("layer3", [3] * 8, [2] + [1] * 7, [1] * 8, [False, True, True, True] * 2),
        ("layer4", [5, 5, 5, 5, 3], [1] * 5, [1, 2, 2, 2, 2], [False, True, True, True, False]),
    ],
)
def test_geometry_of_the_blocks(
    stage: str, kernels: list[int], strides: list[int], dilations: list[int], residuals: list[bool]
) -> None:
    """`layer3` and `layer4` have two groups each; a group's first block is no residual, even where the shape stays."""
    found = blocks(MobileNetEdgeTPU().get_submodule(stage))
    filters = [filter_of(block) for block in found]
    assert [conv.kernel_size[0] for conv in filters] == kernels
    assert [conv.stride[0] for conv in filters] == strides
    assert [conv.dilation[0] for conv in filters] == dilations
    assert [block.has_residual for block in found] == residuals


def test_early_blocks_are_fused_and_late_ones_depthwise() -> None:
    groups = [filter_of(block).groups for block in blocks(MobileNetEdgeTPU())]
    assert groups == [1] * 8 + [320, 288, 288, 288, 576, 288, 288, 288] + [576, 480, 480, 480, 960]


def test_parameter_count_is_the_published_graph_s() -> None:
    """57 of DeepLab's 62 convolutions, and what their weights and biases count in the published file."""
    with torch.device("meta"):
        convolutions = [module for module in MobileNetEdgeTPU().modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 57
    assert sum(conv.weight.numel() + conv.out_channels for conv in convolutions) == 1_506_496


@pytest.mark.parametrize(
    "block", [FusedResidual(8, 16, 8, stride=1), InvertedResidual(8, 16, 8, 5, dilation=2)], ids=["fused", "inverted"]
)
def test_a_block_adds_to_its_input(block: Block) -> None:
    nn.init.zeros_(block.project.bn.weight)
    x = torch.randn(1, 8, 5, 6)
    assert torch.equal(block.eval()(x), x)


@pytest.mark.parametrize(
    "block",
    [FusedResidual(8, 16, 12, stride=2), InvertedResidual(8, 16, 12, 3, has_residual=False)],
    ids=["fused", "inverted"],
)
def test_a_blocks_output_is_linear_and_its_inside_is_rectified_without_a_cap(block: Block) -> None:
    block.eval()
    x = 1000 * torch.randn(1, 8, 5, 6)
    inside = (
        [block.fused(x)] if isinstance(block, FusedResidual) else [block.expand(x), block.depthwise(block.expand(x))]
    )
    for hidden in inside:
        assert hidden.min() == 0
        assert hidden.max() > 6
    assert block(x).min() < 0
