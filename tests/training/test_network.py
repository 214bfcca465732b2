"""New segmentors, and torchvision's weights under our names."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.backbones.mobilenet import MobileNetV2
from training.network import AuxiliaryHead, HeadName, autocast_dtype, load_torchvision, new_segmentor

REAL = Path(__file__).parents[3] / "shared" / "data" / "backbones" / "mobilenet_v2_tvqat_bn_fp32.safetensors"
needs_real = pytest.mark.skipif(not REAL.exists(), reason="the pretrained backbone is not beside the repository")

NAMES = {
    "features.0.0.weight": "stem.conv.weight",
    "features.0.1.running_var": "stem.bn.running_var",
    "features.1.conv.0.0.weight": "layer1.0.depthwise.conv.weight",
    "features.1.conv.0.1.bias": "layer1.0.depthwise.bn.bias",
    "features.1.conv.1.weight": "layer1.0.project.conv.weight",
    "features.1.conv.2.weight": "layer1.0.project.bn.weight",
    "features.2.conv.0.0.weight": "layer1.1.expand.conv.weight",
    "features.3.conv.1.0.weight": "layer1.2.depthwise.conv.weight",
    "features.4.conv.0.1.running_mean": "layer2.0.expand.bn.running_mean",
    "features.7.conv.1.1.weight": "layer3.0.depthwise.bn.weight",
    "features.13.conv.2.weight": "layer3.6.project.conv.weight",
    "features.14.conv.0.0.weight": "layer4.0.expand.conv.weight",
    "features.17.conv.2.weight": "layer4.3.project.conv.weight",
    "features.17.conv.3.bias": "layer4.3.project.bn.bias",
}
FIRST_BLOCKS = {"layer1": 1, "layer2": 4, "layer3": 7, "layer4": 14}


def torchvision_name(key: str) -> str:
    """Ours to torchvision's: the way back from what the code under test does."""
    if key.startswith("stem."):
        _, layer, leaf = key.split(".")
        return f"features.0.{int(layer == 'bn')}.{leaf}"
    stage, index, part, layer, leaf = key.split(".")
    block = FIRST_BLOCKS[stage] + int(index)
    place = ("expand", "depthwise", "project").index(part) - (block == 1)
    is_norm = int(layer == "bn")
    inner = f"{place + is_norm}" if part == "project" else f"{place}.{is_norm}"
    return f"features.{block}.conv.{inner}.{leaf}"


def torchvision_state() -> dict[str, Tensor]:
    """Random weights for a MobileNetV2 as torchvision names them, with the last layers that we have no use for."""
    torch.manual_seed(0)
    ours = {key: value for key, value in MobileNetV2().state_dict().items() if "num_batches" not in key}
    state = {torchvision_name(key): torch.rand_like(value) + 0.5 for key, value in ours.items()}
    return {**state, "features.18.0.weight": torch.ones(1280, 320, 1, 1), "classifier.1.bias": torch.ones(1000)}


@pytest.mark.parametrize(("theirs", "ours"), NAMES.items())
def test_torchvision_weight_goes_where_it_belongs(theirs: str, ours: str) -> None:
    state, net = torchvision_state(), MobileNetV2()
    load_torchvision(net, state)
    assert torch.equal(net.state_dict()[ours], state[theirs])


def test_all_torchvision_weights_are_copied() -> None:
    state, net = torchvision_state(), MobileNetV2()
    load_torchvision(net, state)
    loaded = {key: value for key, value in net.state_dict().items() if "num_batches" not in key}
    assert all(torch.equal(value, state[torchvision_name(key)]) for key, value in loaded.items())


@pytest.mark.parametrize("key", ["features.0.0.weight", "features.9.conv.1.1.running_mean", "features.17.conv.3.bias"])
def test_missing_weight_is_refused_by_name(key: str) -> None:
    state = torchvision_state()
    del state[key]
    with pytest.raises(ValueError, match=NAMES.get(key, "layer3.2.depthwise.bn.running_mean")):
        load_torchvision(MobileNetV2(), state)


def test_left_over_weight_is_refused() -> None:
    state = {**torchvision_state(), "features.5.conv.0.0.bias": torch.zeros(192)}
    with pytest.raises(ValueError, match=r"layer2\.1\.expand\.conv\.bias"):
        load_torchvision(MobileNetV2(), state)


def test_counts_of_batches_are_ignored() -> None:
    state, net = torchvision_state(), MobileNetV2()
    counts = {
        key.replace("running_mean", "num_batches_tracked"): torch.tensor(9) for key in state if "running_mean" in key
    }
    assert counts
    load_torchvision(net, {**state, **counts})
    assert torch.equal(net.state_dict()["stem.conv.weight"], state["features.0.0.weight"])


@pytest.mark.parametrize("content", [b"", b"no weights at all"])
def test_file_that_is_no_safetensors_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "backbone.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"/backbone\.safetensors: .*header"):
        new_segmentor("fcn", 11, tmp_path / "backbone.safetensors", 16)


@needs_real
def test_pretrained_file_fits() -> None:
    state, net = load_file(REAL), MobileNetV2()
    load_torchvision(net, state)
    for theirs, ours in NAMES.items():
        assert torch.equal(net.state_dict()[ours], state[theirs])


@pytest.mark.parametrize("output_stride", [8, 16])
def test_new_segmentor_s_backbone_computes_what_the_weights_say(output_stride: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = MobileNetV2(output_stride=output_stride).eval()
    weights = {key: value for key, value in net.state_dict().items() if "num_batches" not in key}
    save_file({torchvision_name(key): value for key, value in weights.items()}, tmp_path / "backbone.safetensors")
    segmentor = new_segmentor("fcn", 11, tmp_path / "backbone.safetensors", output_stride)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected, features = net(image), segmentor.backbone.eval()(image)
    for name, feature in features.items():
        torch.testing.assert_close(feature, expected[name], rtol=1e-3, atol=1e-4)
    assert features["c4"].shape == (1, 320, 64 // output_stride, 96 // output_stride)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("backbone") / "backbone.safetensors"
    weights = {key: value for key, value in MobileNetV2().state_dict().items() if "num_batches" not in key}
    save_file({torchvision_name(key): value for key, value in weights.items()}, path)
    return path


def test_a_pretrained_backbone_is_folded_and_a_new_one_is_not(pretrained: Path) -> None:
    for weights, folded in ((pretrained, True), (None, False)):
        backbone = new_segmentor("fcn", 11, weights, 16).backbone
        norms = [module for module in backbone.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        assert (not norms) == folded


def parameters_of(prefix: str, *names: str) -> set[str]:
    return {f"{prefix}.{name}" for name in names}


# Attention enters through a factor that starts at zero, and what lies before the factor starts without gradient.
ZERO_AT_FIRST: dict[HeadName, set[str]] = {
    "ccnet": parameters_of(
        "decode_head.cca",
        *("query_conv.weight", "query_conv.bias", "key_conv.weight", "key_conv.bias"),
        *("value_conv.weight", "value_conv.bias"),
    ),
    "ann": parameters_of(
        "decode_head.fusion.stages.0",
        *("query_project.conv.weight", "query_project.bn.weight", "query_project.bn.bias"),
        *("key_project.conv.weight", "key_project.bn.weight", "key_project.bn.bias"),
        *("value_project.weight", "value_project.bias"),
    )
    | parameters_of(
        "decode_head.context.stages.0",
        *("key_project.conv.weight", "key_project.bn.weight", "key_project.bn.bias"),
        *("value_project.weight", "value_project.bias"),
    ),
    "nonlocal": parameters_of(
        "decode_head.nl_block",
        *("g.conv.weight", "g.conv.bias", "theta.conv.weight", "theta.conv.bias"),
        *("phi.conv.weight", "phi.conv.bias", "conv_out.conv.weight"),
    ),
    "fcn": set(),
}


def test_all_heads_are_tested() -> None:
    assert set(ZERO_AT_FIRST) == set(get_args(HeadName))


def backward(head: HeadName, weights: Path) -> dict[str, Tensor | None]:
    """Gradients of a new segmentor's parameters by name."""
    torch.manual_seed(0)
    segmentor = new_segmentor(head, 11, weights, 16).train()
    logits = segmentor(torch.randn(2, 3, 64, 96)).logits
    torch.autograd.backward(F.cross_entropy(logits, torch.randint(11, (2, 16, 24))))
    return {name: parameter.grad for name, parameter in segmentor.named_parameters()}


@pytest.mark.parametrize("head", ZERO_AT_FIRST)
def test_logits_are_at_stride_four(head: HeadName) -> None:
    segmentor = new_segmentor(head, 11, None, 16).eval()
    with torch.no_grad():
        assert segmentor(torch.randn(2, 3, 64, 96)).logits.shape == (2, 11, 16, 24)


@pytest.mark.parametrize("head", ZERO_AT_FIRST)
def test_gradients_reach_all_weights_but_those_behind_a_zero(head: HeadName, pretrained: Path) -> None:
    gradients = backward(head, pretrained)
    assert "backbone.stem.conv.bias" in gradients  # what folding made of a norm is trained too
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    assert {
        name for name, gradient in gradients.items() if gradient is not None and not gradient.any()
    } == ZERO_AT_FIRST[head]


def test_auxiliary_head_keeps_the_map_s_size() -> None:
    assert AuxiliaryHead(96, 11)(torch.randn(2, 96, 5, 7)).shape == (2, 11, 5, 7)


def test_only_a_gpu_trains_in_half_precision() -> None:
    assert autocast_dtype(torch.device("cpu")) is None
    assert autocast_dtype(torch.device("cuda")) is torch.bfloat16
