"""New segmentors, those that go on from a trained one, and the precision they train in."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import CheckpointError, Segmentor
from models.backbones.mobilenet import MobileNetV2
from models.backbones.mobilenet_edgetpu import MobileNetEdgeTPU
from models.backbones.resnet import ResNet
from models.checkpoint import save_segmentor
from models.heads.fcn import FCNHead
from models.transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from training.data import Sample
from training.network import (
    AuxiliaryHead,
    ExactConv2d,
    HeadName,
    autocast_dtype,
    continue_segmentor,
    keep_depthwise_exact,
    new_segmentor,
    preprocessing_for,
)

PUBLISHED = pytest.mark.parametrize("published", ["mobilenet_file", "edgetpu_file"])


@pytest.fixture
def weights(published: str, request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(published)
    return path


def test_a_pretrained_backbone_is_folded_and_a_new_one_is_not(mobilenet_file: Path) -> None:
    for published, folded in ((mobilenet_file, True), (None, False)):
        backbone = new_segmentor("fcn", 11, published, 16).backbone
        norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
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


@PUBLISHED
@pytest.mark.parametrize("head", ZERO_AT_FIRST)
def test_logits_are_at_stride_four(head: HeadName, weights: Path) -> None:
    segmentor = new_segmentor(head, 11, weights, 16).eval()
    with torch.no_grad():
        assert segmentor(torch.randn(2, 3, 64, 96)).logits.shape == (2, 11, 16, 24)


@PUBLISHED
@pytest.mark.parametrize("head", ZERO_AT_FIRST)
def test_gradients_reach_all_weights_but_those_behind_a_zero(head: HeadName, weights: Path) -> None:
    gradients = backward(head, weights)
    # What folding made of a norm is trained too.
    assert gradients.keys() & {"backbone.stem.conv.bias", "backbone.stem.0.conv.bias"}
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    assert {
        name for name, gradient in gradients.items() if gradient is not None and not gradient.any()
    } == ZERO_AT_FIRST[head]


def test_auxiliary_head_keeps_the_map_s_size() -> None:
    assert AuxiliaryHead(96, 11)(torch.randn(2, 96, 5, 7)).shape == (2, 11, 5, 7)


@pytest.mark.parametrize("enlargement", [1.0, 4 / 3])
def test_preprocessing_is_of_the_largest_image_times_the_enlargement(enlargement: float) -> None:
    sizes = [(90, 120), (128, 97), (12, 200)]
    samples = [Sample("", torch.zeros(*size, 3), torch.zeros(size)) for size in sizes]
    scale = {1.0: (128, 97), 4 / 3: (171, 129)}[enlargement]
    assert preprocessing_for(samples, enlargement, 8) == Preprocessing(scale, IMAGENET_MEAN, IMAGENET_STD, multiple=8)


def same(first: nn.Module, second: nn.Module) -> bool:
    theirs = second.state_dict()
    return all(torch.equal(tensor, theirs[key]) for key, tensor in first.state_dict().items())


@PUBLISHED
def test_continued_segmentor_has_the_trained_backbone_and_decoder_and_a_new_head(weights: Path, tmp_path: Path) -> None:
    trained = new_segmentor("ann", 11, weights, 16)
    save_segmentor(trained, tmp_path / "trained.safetensors", {}, torch.float32)
    same_head, other_head = (
        continue_segmentor(head, 5, tmp_path / "trained.safetensors", 16) for head in ("ann", "ccnet")
    )
    for continued in (same_head, other_head):
        assert continued.decoder is not None
        assert trained.decoder is not None
        assert same(continued.backbone, trained.backbone)
        assert same(continued.decoder, trained.decoder)
        assert continued.num_classes == 5
        assert all(parameter.requires_grad for parameter in continued.parameters())
    assert not same(same_head.get_submodule("decode_head.bottleneck"), trained.get_submodule("decode_head.bottleneck"))
    with torch.no_grad():
        assert other_head.eval()(torch.randn(1, 3, 32, 48)).logits.shape == (1, 5, 8, 12)


def test_checkpoint_without_a_decoder_is_not_continued(tmp_path: Path) -> None:
    without = Segmentor(ResNet(stem_channels=(4, 8), planes=(4, 8, 16, 32)), FCNHead(128, 16, 5))
    save_segmentor(without, tmp_path / "resnet.safetensors", {})
    with pytest.raises(ValueError, match=r"/resnet\.safetensors has no decoder"):
        continue_segmentor("fcn", 5, tmp_path / "resnet.safetensors", 16)


def test_another_output_stride_is_not_continued(tmp_path: Path) -> None:
    save_segmentor(new_segmentor("fcn", 5, None, 8), tmp_path / "fine.safetensors", {"output_stride": "8"})
    with pytest.raises(ValueError, match=r"/fine\.safetensors has output stride 8, not 16"):
        continue_segmentor("fcn", 5, tmp_path / "fine.safetensors", 16)


def test_published_backbone_alone_is_not_continued(mobilenet_file: Path) -> None:
    with pytest.raises(CheckpointError, match="not an architecture that we know"):
        continue_segmentor("fcn", 5, mobilenet_file, 16)


@pytest.mark.parametrize(
    ("device", "capabilities", "dtype"),
    [
        ("cuda", {}, torch.bfloat16),
        ("cpu", {"avx512_bf16": True}, torch.bfloat16),
        ("cpu", {"avx512_bf16": False, "avx512_f": True}, None),
        ("cpu", {}, None),
    ],
)
def test_half_precision_is_for_devices_that_multiply_in_it(
    device: str, capabilities: dict[str, bool], dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: capabilities)
    assert autocast_dtype(torch.device(device)) is dtype


@pytest.mark.parametrize("backbone", [MobileNetV2, MobileNetEdgeTPU])
def test_depthwise_convolutions_alone_are_kept_exact(backbone: type[nn.Module]) -> None:
    net = backbone()
    before = net.state_dict()
    depthwise = {name for name, module in net.named_modules() if name.endswith("depthwise.conv")}
    keep_depthwise_exact(net)
    assert {name for name, module in net.named_modules() if isinstance(module, ExactConv2d)} == depthwise
    assert net.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())


def test_exact_convolution_is_float32_under_autocast() -> None:
    depthwise = nn.Conv2d(8, 8, 3, groups=8)
    net = nn.Sequential(nn.Conv2d(1, 8, 1), depthwise, nn.Conv2d(8, 4, 1))
    keep_depthwise_exact(net)
    dtypes = []
    for module in net:
        module.register_forward_hook(lambda *call: dtypes.append(call[-1].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        middle = net[0](torch.randn(2, 1, 5, 5))
        out = net[1:](middle)
    assert dtypes == [torch.bfloat16, torch.float32, torch.bfloat16]
    torch.autograd.backward(out.float().sum())
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in net.parameters())
    expected = F.conv2d(middle.float(), depthwise.weight, depthwise.bias, groups=8)
    assert torch.equal(depthwise(middle), expected)
