from __future__ import annotations

from math import ceil

import pytest
import torch

from models.backbones.mobilenet import InvertedResidual, MobileNetV2


def blocks(mobilenet: MobileNetV2) -> list[InvertedResidual]:
    return [module for module in mobilenet.modules() if isinstance(module, InvertedResidual)]


def geometry(mobilenet: MobileNetV2) -> list[tuple[int, int]]:
    """Stride and dilation of each block's 3x3 convolution."""
    return [(block.depthwise.conv.stride[0], block.depthwise.conv.dilation[0]) for block in blocks(mobilenet)]


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize(("height", "width"), [(64, 96), (65, 33), (63, 17), (1, 9), (1, 1)])
def test_feature_sizes(height: int, width: int, output_stride: int) -> None:
    mobilenet = MobileNetV2(width=0.25, output_stride=output_stride).eval()
    with torch.no_grad():
        features = mobilenet(torch.randn(2, 3, height, width))
    strides = {"c1": 4, "c2": 8, "c3": output_stride, "c4": output_stride}
    channels = {"c1": 8, "c2": 8, "c3": 24, "c4": 80}
    assert {name: tuple(feature.shape) for name, feature in features.items()} == {
        name: (2, channels[name], ceil(height / stride), ceil(width / stride)) for name, stride in strides.items()
    }


def test_dilation_starts_after_the_stride_that_it_replaces() -> None:
    early = [(1, 1)] + [(2, 1), (1, 1)] + [(2, 1), (1, 1), (1, 1)]
    at16 = [(2, 1)] + [(1, 1)] * 6 + [(1, 1), (1, 2), (1, 2), (1, 2)]
    at8 = [(1, 1)] + [(1, 2)] * 6 + [(1, 2), (1, 4), (1, 4), (1, 4)]
    assert geometry(MobileNetV2(width=0.25, output_stride=16)) == early + at16
    assert geometry(MobileNetV2(width=0.25, output_stride=8)) == early + at8


@pytest.mark.parametrize(("height", "width"), [(64, 96), (49, 81)])
def test_the_finer_network_holds_the_coarser_ones_values(height: int, width: int) -> None:
    """Dilation in place of a stride computes the same values, and the ones between them."""
    fine, coarse = (MobileNetV2(width=0.25, output_stride=stride).eval() for stride in (8, 16))
    coarse.load_state_dict(fine.state_dict())
    image = torch.randn(1, 3, height, width)
    with torch.no_grad():
        got, want = fine(image)["c4"][..., ::2, ::2], coarse(image)["c4"]
    assert (got - want).abs().max() <= 1e-4 * want.std()


@pytest.mark.parametrize(
    ("width", "channels"),
    [
        (0.35, (16, 8, 8, 16, 24, 32, 56, 112)),
        (0.5, (16, 8, 16, 16, 32, 48, 80, 160)),
        (0.75, (24, 16, 24, 24, 48, 72, 120, 240)),
        (1.0, (32, 16, 24, 32, 64, 96, 160, 320)),
        (1.4, (48, 24, 32, 48, 88, 136, 224, 448)),
    ],
)
def test_width_scales_all_channels_to_multiples_of_8(width: float, channels: tuple[int, ...]) -> None:
    with torch.device("meta"):
        mobilenet = MobileNetV2(width=width)
    outs = [mobilenet.stem.conv.out_channels] + [block.project.conv.out_channels for block in blocks(mobilenet)]
    repeats = (1, 1, 2, 3, 4, 3, 3, 1)
    assert outs == [out for out, repeat in zip(channels, repeats, strict=True) for _ in range(repeat)]


def test_parameter_count_is_the_papers() -> None:
    """torchvision's mobilenet_v2 without its last convolution and its classifier."""
    with torch.device("meta"):
        mobilenet = MobileNetV2()
    last_convolution, classifier = 320 * 1280 + 2 * 1280, 1281 * 1000
    assert sum(parameter.numel() for parameter in mobilenet.parameters()) == 3_504_872 - last_convolution - classifier


def test_a_block_adds_to_its_input_where_the_shape_stays() -> None:
    assert [block.has_residual for block in blocks(MobileNetV2(width=1.0))] == [
        *(False, False, True, False, True, True),
        *(False, True, True, True, False, True, True, False, True, True, False),
    ]
    block = InvertedResidual(8, 8, expansion=6, stride=1, dilation=1).eval()
    torch.nn.init.zeros_(block.project.bn.weight)
    x = torch.randn(1, 8, 5, 6)
    assert torch.equal(block(x), x)


def test_a_blocks_output_is_linear_and_its_inside_is_clipped() -> None:
    block = InvertedResidual(8, 16, expansion=6, stride=1, dilation=1).eval()
    x = 1000 * torch.randn(1, 8, 5, 6)
    assert block.expand is not None
    assert block.expand(x).max() == 6
    assert block.depthwise(block.expand(x)).min() == 0
    assert block(x).min() < 0


@pytest.mark.parametrize("output_stride", [4, 32, 0])
def test_other_output_strides_are_refused(output_stride: int) -> None:
    with pytest.raises(ValueError, match=f"must be 8 or 16, not {output_stride}"):
        MobileNetV2(output_stride=output_stride)
