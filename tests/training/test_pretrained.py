"""Published weights under our names: torchvision's MobileNetV2 and DeepLab's MobileNet-EdgeTPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.backbones.mobilenet import MobileNetV2
from models.backbones.mobilenet_edgetpu import MobileNetEdgeTPU
from models.folding import fold_batch_norm
from models.registry import CAMVID_PREPROCESSING
from models.transforms import normalize
from training.pretrained import load_deeplab, load_pretrained, load_torchvision

BACKBONES = Path(__file__).parents[3] / "shared" / "data" / "backbones"
needs_real = pytest.mark.skipif(not BACKBONES.is_dir(), reason="the published backbones are not beside the repository")

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
NUMBERS = {
    "conv.01": "stem.1.conv",
    "conv.02": "layer1.0.fused.conv",
    "conv.03": "layer1.0.project.conv",
    "conv.09": "layer1.3.project.conv",
    "conv.10": "layer2.0.fused.conv",
    "conv.18": "layer3.0.expand.conv",
    "conv.19": "layer3.0.depthwise.conv",
    "conv.20": "layer3.0.project.conv",
    "conv.30": "layer3.4.expand.conv",
    "conv.42": "layer4.0.expand.conv",
    "conv.55": "layer4.4.depthwise.conv",
    "conv.56": "layer4.4.project.conv",
}


@pytest.fixture
def torchvision_state(torchvision_name: Callable[[str], str]) -> dict[str, Tensor]:
    """Random weights for a MobileNetV2 as torchvision names them, with the last layers that we have no use for."""
    torch.manual_seed(0)
    ours = {key: value for key, value in MobileNetV2().state_dict().items() if "num_batches" not in key}
    state = {torchvision_name(key): torch.rand_like(value) + 0.5 for key, value in ours.items()}
    return {**state, "features.18.0.weight": torch.ones(1280, 320, 1, 1), "classifier.1.bias": torch.ones(1000)}


def folded_edgetpu() -> MobileNetEdgeTPU:
    net = MobileNetEdgeTPU().eval()
    fold_batch_norm(net)
    return net


def test_all_torchvision_weights_go_where_they_belong(
    torchvision_state: dict[str, Tensor], torchvision_name: Callable[[str], str]
) -> None:
    net = MobileNetV2()
    load_torchvision(net, torchvision_state)
    loaded = {key: value for key, value in net.state_dict().items() if "num_batches" not in key}
    assert all(torch.equal(value, torchvision_state[torchvision_name(key)]) for key, value in loaded.items())
    for theirs, ours in NAMES.items():
        assert torch.equal(loaded[ours], torchvision_state[theirs]), theirs


@pytest.mark.parametrize("key", ["features.0.0.weight", "features.9.conv.1.1.running_mean", "features.17.conv.3.bias"])
def test_missing_weight_is_refused_by_name(key: str, torchvision_state: dict[str, Tensor]) -> None:
    del torchvision_state[key]
    with pytest.raises(ValueError, match=NAMES.get(key, "layer3.2.depthwise.bn.running_mean")):
        load_torchvision(MobileNetV2(), torchvision_state)


def test_left_over_weight_is_refused(torchvision_state: dict[str, Tensor]) -> None:
    state = {**torchvision_state, "features.5.conv.0.0.bias": torch.zeros(192)}
    with pytest.raises(ValueError, match=r"layer2\.1\.expand\.conv\.bias"):
        load_torchvision(MobileNetV2(), state)


def test_counts_of_batches_are_ignored(torchvision_state: dict[str, Tensor]) -> None:
    state, net = torchvision_state, MobileNetV2()
    counts = {
        key.replace("running_mean", "num_batches_tracked"): torch.tensor(9) for key in state if "running_mean" in key
    }
    assert counts
    load_torchvision(net, {**state, **counts})
    assert torch.equal(net.state_dict()["stem.conv.weight"], state["features.0.0.weight"])


def test_deeplab_s_convolutions_are_taken_in_the_graph_s_order(deeplab_state: dict[str, Tensor]) -> None:
    net = folded_edgetpu()
    load_deeplab(net, deeplab_state)
    for theirs, ours in NUMBERS.items():
        for leaf in ("weight", "bias"):
            assert torch.equal(net.state_dict()[f"{ours}.{leaf}"], deeplab_state[f"{theirs}.{leaf}"]), theirs
    values = sum(tensor.numel() for key, tensor in deeplab_state.items() if int(key.split(".")[1]) < 57)
    assert values == sum(parameter.numel() for parameter in net.parameters())


def test_deeplab_s_stem_takes_imagenet_s_normalisation(edgetpu_file: Path, deeplab_state: dict[str, Tensor]) -> None:
    images = torch.randint(256, (2, 12, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixels = (images / 127.5 - 1).movedim(-1, 1)
    # Inside alone: beyond the edge are zeros, which stand for another colour in each normalisation.
    published = F.conv2d(pixels[..., 1:, 1:], deeplab_state["conv.00.weight"], deeplab_state["conv.00.bias"], stride=2)
    backbone = load_pretrained(edgetpu_file, 16)
    assert isinstance(backbone, MobileNetEdgeTPU)
    with torch.no_grad():
        ours = backbone.get_submodule("stem.0.conv")(normalize(images, CAMVID_PREPROCESSING))
    torch.testing.assert_close(ours[..., 1:, 1:], published, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("output_stride", [8, 16])
def test_mobilenet_computes_what_the_weights_say(output_stride: int, mobilenet_file: Path) -> None:
    net = MobileNetV2(output_stride=output_stride).eval()
    load_torchvision(net, load_file(mobilenet_file))
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected, features = net(image), load_pretrained(mobilenet_file, output_stride)(image)
    for name, feature in features.items():
        torch.testing.assert_close(feature, expected[name], rtol=1e-3, atol=1e-4)
    assert features["c4"].shape == (1, 320, 64 // output_stride, 96 // output_stride)


@pytest.mark.parametrize(("name", "kind"), [("mobilenet_file", MobileNetV2), ("edgetpu_file", MobileNetEdgeTPU)])
def test_file_settles_the_backbone_and_its_norms_are_folded(
    name: str, kind: type[nn.Module], request: pytest.FixtureRequest
) -> None:
    backbone = load_pretrained(request.getfixturevalue(name), 16)
    assert type(backbone) is kind
    assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())


def refusal(path: Path) -> str:
    """What is said of a file, which is one sentence that names it."""
    with pytest.raises(ValueError, match=f"^{path}: no weights of a backbone that we know: ") as caught:
        load_pretrained(path, 16)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no weights at all"])
def test_file_that_is_no_safetensors_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "backbone.safetensors").write_bytes(content)
    assert "header" in refusal(tmp_path / "backbone.safetensors")


def test_missing_file_is_refused(tmp_path: Path) -> None:
    refusal(tmp_path / "backbone.safetensors")


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_file({"encoder.weight": torch.ones(3)}, tmp_path / "backbone.safetensors")
    assert "not a torchvision MobileNetV2" in refusal(tmp_path / "backbone.safetensors")


@pytest.mark.parametrize("key", ["conv.00.bias", "conv.30.weight", "conv.56.bias"])
def test_missing_convolution_is_refused_by_name(key: str, deeplab_state: dict[str, Tensor], tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in deeplab_state.items() if name != key}
    save_file(state, tmp_path / "backbone.safetensors")
    said = refusal(tmp_path / "backbone.safetensors")
    assert "not DeepLab's MobileNet-EdgeTPU" in said
    assert key in said


@pytest.mark.parametrize("key", ["conv.00.weight", "conv.30.bias"])
def test_misshapen_convolution_is_refused_by_name(key: str, deeplab_state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file({**deeplab_state, key: torch.ones(5)}, tmp_path / "backbone.safetensors")
    said = refusal(tmp_path / "backbone.safetensors")
    assert "not DeepLab's MobileNet-EdgeTPU" in said
    assert key in said


def test_misshapen_torchvision_weight_is_refused_by_name(torchvision_state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file({**torchvision_state, "features.0.0.weight": torch.ones(5)}, tmp_path / "backbone.safetensors")
    assert NAMES["features.0.0.weight"] in refusal(tmp_path / "backbone.safetensors")


@needs_real
@pytest.mark.parametrize("training", ["tvqat", "tf2ptq"])
def test_published_mobilenet_fits(training: str) -> None:
    state, net = load_file(BACKBONES / f"mobilenet_v2_{training}_bn_fp32.safetensors"), MobileNetV2()
    load_torchvision(net, state)
    for theirs, ours in NAMES.items():
        assert torch.equal(net.state_dict()[ours], state[theirs])


@needs_real
def test_published_edgetpu_fits() -> None:
    path = BACKBONES / "mobilenet_edgetpu_slim_cityscapes_deeplab_folded_fp16.safetensors"
    state, backbone = load_file(path), load_pretrained(path, 16)
    for theirs, ours in NUMBERS.items():
        assert torch.equal(backbone.state_dict()[f"{ours}.weight"], state[f"{theirs}.weight"].float())


@needs_real
def test_published_weights_without_norms_are_refused() -> None:
    said = refusal(BACKBONES / "mobilenet_v2_voc_deeplab_folded_backbone_fp16.safetensors")
    assert "not a torchvision MobileNetV2" in said


def test_edgetpu_comes_at_stride_16_alone(edgetpu_file: Path) -> None:
    with pytest.raises(ValueError, match="a MobileNet-EdgeTPU has output stride 16, not 8"):
        load_pretrained(edgetpu_file, 8)
