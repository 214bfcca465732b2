from __future__ import annotations

from math import ceil

import pytest
import torch

from models.backbones.resnet import BLOCKS, Bottleneck, ResNet


def tiny_resnet(depth: int = 50, *, contract_dilation: bool = True, ceil_mode: bool = False) -> ResNet:
    return ResNet(
        BLOCKS[depth],
        stem_channels=(4, 8),
        planes=(4, 8, 16, 32),
        contract_dilation=contract_dilation,
        ceil_mode=ceil_mode,
    ).eval()


def dilations(resnet: ResNet, stage: int) -> list[int]:
    blocks = resnet.get_submodule(f"layer{stage}")
    return [block.conv2.dilation[0] for block in blocks.modules() if isinstance(block, Bottleneck)]


@pytest.mark.parametrize(("height", "width"), [(64, 48), (65, 49), (63, 41), (17, 8), (1, 9), (1, 1)])
def test_feature_sizes(height: int, width: int) -> None:
    with torch.no_grad():
        features = tiny_resnet()(torch.randn(2, 3, height, width))
    stride4, stride8 = (ceil(height / 4), ceil(width / 4)), (ceil(height / 8), ceil(width / 8))
    assert {name: tuple(feature.shape) for name, feature in features.items()} == {
        "c1": (2, 16, *stride4),
        "c2": (2, 32, *stride8),
        "c3": (2, 64, *stride8),
        "c4": (2, 128, *stride8),
    }


@pytest.mark.parametrize(("height", "width", "grid"), [(64, 48, (9, 7)), (65, 49, (9, 7))])
def test_ceil_mode_keeps_one_more_at_even_sizes(height: int, width: int, grid: tuple[int, int]) -> None:
    with torch.no_grad():
        features = tiny_resnet(ceil_mode=True)(torch.randn(1, 3, height, width))
    assert features["c4"].shape[2:] == grid


def test_contracted_stages_start_with_half_the_dilation() -> None:
    resnet = tiny_resnet()
    assert [dilations(resnet, stage) for stage in (1, 2, 3, 4)] == [[1] * 3, [1] * 4, [1] + [2] * 5, [2, 4, 4]]


def test_uncontracted_stages_have_one_dilation() -> None:
    resnet = tiny_resnet(contract_dilation=False)
    assert [dilations(resnet, stage) for stage in (1, 2, 3, 4)] == [[1] * 3, [1] * 4, [2] * 6, [4] * 3]


def test_contraction_changes_what_is_computed() -> None:
    contracted, uncontracted = tiny_resnet(), tiny_resnet(contract_dilation=False)
    uncontracted.load_state_dict(contracted.state_dict())
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        ours, theirs = contracted(image), uncontracted(image)
    assert torch.equal(ours["c2"], theirs["c2"])
    assert not torch.allclose(ours["c3"], theirs["c3"], rtol=1e-2)


def test_the_stride_is_on_the_3x3_convolution() -> None:
    strided = [module for module in tiny_resnet().layer2.modules() if getattr(module, "stride", None) == (2, 2)]
    assert {module.kernel_size for module in strided if isinstance(module, torch.nn.Conv2d)} == {(3, 3), (1, 1)}
    first = tiny_resnet().layer2[0]
    assert first.conv1.stride == (1, 1)
    assert first.conv2.stride == first.downsample[0].stride == (2, 2)


@pytest.mark.parametrize("depth", [50, 101])
def test_names_are_mmsegmentations(depth: int) -> None:
    keys = [key for key in tiny_resnet(depth).state_dict() if not key.endswith("num_batches_tracked")]
    stem = {key.split(".")[1] for key in keys if key.startswith("stem.")}
    counts = tuple(
        len({key.split(".")[1] for key in keys if key.startswith(f"layer{stage}.")}) for stage in range(1, 5)
    )
    projected = {key.split(".downsample")[0] for key in keys if ".downsample.0." in key}
    assert stem == {"0", "1", "3", "4", "6", "7"}
    assert counts == BLOCKS[depth]
    assert projected == {"layer1.0", "layer2.0", "layer3.0", "layer4.0"}
    assert not any(key.endswith(".bias") and "conv" in key for key in keys)


@pytest.mark.parametrize(("depth", "millions"), [(50, 23.53), (101, 42.52)])
def test_parameter_count_is_mmsegmentations(depth: int, millions: float) -> None:
    with torch.device("meta"):
        resnet = ResNet(BLOCKS[depth])
    assert sum(parameter.numel() for parameter in resnet.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


def test_a_block_adds_to_its_input() -> None:
    block = Bottleneck(16, 4, stride=1, dilation=1).eval()
    torch.nn.init.zeros_(block.bn3.weight)
    x = torch.randn(1, 16, 5, 6)
    assert torch.equal(block(x), x.relu())
