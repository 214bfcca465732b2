from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.checkpoint import load_segmentor, read_checkpoint, save_segmentor
from models.errors import CheckpointError
from models.folding import fold_batch_norm
from models.segmentor import Segmentor
from tests.models.reference import Sizes, random_state, shapes_of

Build = Callable[[str, str], Segmentor]


def weights(segmentor: Segmentor) -> dict[str, Tensor]:
    state = segmentor.state_dict()
    return {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}


def assert_equal_weights(got: Segmentor, want: dict[str, Tensor]) -> None:
    assert weights(got).keys() == want.keys()
    assert [key for key, tensor in weights(got).items() if not torch.equal(tensor, want[key])] == []


@pytest.fixture
def state(tiny_segmentor: Build) -> dict[str, Tensor]:
    return weights(tiny_segmentor("mobilenet", "ccnet"))


@pytest.mark.parametrize("head", ["fcn", "ccnet", "non_local", "ann", "danet", "gcnet", "pspnet"])
@pytest.mark.parametrize("backbone", ["resnet", "mobilenet", "edgetpu"])
def test_saved_and_loaded_is_the_same_after_rounding(
    tiny_segmentor: Build, tmp_path: Path, backbone: str, head: str
) -> None:
    segmentor = tiny_segmentor(backbone, head)
    save_segmentor(segmentor, tmp_path / "model.safetensors", {})
    loaded = load_segmentor(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.float16}
    assert not loaded.training
    assert_equal_weights(loaded, {key: tensor.half().float() for key, tensor in weights(segmentor).items()})


@pytest.mark.parametrize("head", ["fcn", "ccnet", "non_local", "ann"])
@pytest.mark.parametrize("backbone", ["mobilenet", "edgetpu"])
def test_float32_is_kept_exactly(tiny_segmentor: Build, tmp_path: Path, backbone: str, head: str) -> None:
    segmentor = tiny_segmentor(backbone, head)
    save_segmentor(segmentor, tmp_path / "model.safetensors", {}, torch.float32)
    loaded = load_segmentor(tmp_path / "model.safetensors")
    image = torch.randn(1, 3, 40, 56)
    assert_equal_weights(loaded, weights(segmentor))
    with torch.no_grad():
        assert torch.equal(loaded(image).logits, segmentor(image).logits)


@pytest.mark.parametrize("backbone", ["resnet", "mobilenet", "edgetpu"])
def test_folded_backbone_is_saved_and_loaded(tiny_segmentor: Build, tmp_path: Path, backbone: str) -> None:
    segmentor = tiny_segmentor(backbone, "ccnet")
    fold_batch_norm(segmentor.backbone)
    save_segmentor(segmentor, tmp_path / "model.safetensors", {}, torch.float32)
    loaded = load_segmentor(tmp_path / "model.safetensors")
    image = torch.randn(1, 3, 40, 56)
    assert_equal_weights(loaded, weights(segmentor))
    with torch.no_grad():
        torch.testing.assert_close(loaded(image).logits, segmentor(image).logits)


def test_shared_projection_is_on_disk_once(tiny_segmentor: Build, tmp_path: Path) -> None:
    save_segmentor(tiny_segmentor("mobilenet", "ann"), tmp_path / "model.safetensors", {})
    keys = load_file(tmp_path / "model.safetensors").keys()
    shared = "decode_head.context.stages.0"
    assert f"{shared}.key_project.conv.weight" in keys
    assert f"{shared}.query_project.conv.weight" not in keys
    assert "decode_head.fusion.stages.0.query_project.conv.weight" in keys


def test_metadata_settles_the_options(tiny_segmentor: Build, tmp_path: Path) -> None:
    metadata = {"recurrence": "1", "output_stride": "8", "align_corners": "true", "note": "mine"}
    path = tmp_path / "model.safetensors"
    save_segmentor(tiny_segmentor("mobilenet", "ccnet"), path, metadata)
    loaded = load_segmentor(path)
    with torch.no_grad(), safe_open(path, framework="pt") as file:
        assert [trace.grid for trace in loaded(torch.randn(1, 3, 64, 64)).traces] == [(8, 8)]
        assert file.metadata() == read_checkpoint(path).metadata == metadata
    assert loaded.align_corners


@pytest.mark.parametrize(
    "metadata", [{"recurrence": "two"}, {"output_stride": "32"}, {"output_stride": "x"}, {"recurrence": "0"}]
)
def test_metadata_that_makes_no_sense_is_refused(
    tiny_segmentor: Build, tmp_path: Path, metadata: dict[str, str]
) -> None:
    save_segmentor(tiny_segmentor("mobilenet", "ccnet"), tmp_path / "model.safetensors", metadata)
    with pytest.raises(CheckpointError, match=next(iter(metadata))):
        load_segmentor(tmp_path / "model.safetensors")


def test_prefix_and_training_only_tensors_are_dropped(state: dict[str, Tensor], tmp_path: Path) -> None:
    extra = {
        "auxiliary_head.conv_seg.weight": torch.ones(5, 8, 1, 1),
        "backbone.stem.bn.num_batches_tracked": torch.tensor(7),
    }
    parallel = {f"module.{key}": tensor for key, tensor in {**state, **extra}.items()}
    torch.save(parallel, tmp_path / "model.pth")
    assert read_checkpoint(tmp_path / "model.pth").state_dict.keys() == state.keys()
    assert_equal_weights(load_segmentor(tmp_path / "model.pth"), state)


def test_missing_unexpected_and_misshapen_tensors_are_all_named(state: dict[str, Tensor], tmp_path: Path) -> None:
    del state["decode_head.cca.gamma.scale"]
    state["decode_head.extra.weight"] = torch.ones(1)
    state["decode_head.conv_seg.bias"] = torch.ones(6)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_segmentor(tmp_path / "model.safetensors")
    assert "missing decode_head.cca.gamma.scale" in str(caught.value)
    assert "unexpected decode_head.extra.weight" in str(caught.value)
    assert "decode_head.conv_seg.bias is [6], not [5]" in str(caught.value)


def test_unknown_architecture_is_refused(tmp_path: Path) -> None:
    save_file({"encoder.weight": torch.ones(3)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="not an architecture that we know"):
        load_segmentor(tmp_path / "model.safetensors")


def test_a_block_that_is_missing_is_named(tiny_segmentor: Build, tmp_path: Path) -> None:
    state = weights(tiny_segmentor("resnet", "ccnet"))
    torch.save({key: value for key, value in state.items() if "layer3.4." not in key}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"missing backbone\.layer3\.4\.conv1\.weight"):
        load_segmentor(tmp_path / "model.pth")


@pytest.mark.parametrize("weights", [True, False])
def test_a_bias_of_another_width_than_its_norm_is_refused(tmp_path: Path, weights: bool) -> None:
    state = random_state(shapes_of("official_ann", Sizes()))
    state["module.context.0.bias"] = torch.ones(99)
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"model\.pth: a bias and the norm after it are of different widths"):
        read_checkpoint(tmp_path / "model.pth", weights=weights)


def test_the_configuration_of_mmsegmentation_settles_the_options(tiny_segmentor: Build, tmp_path: Path) -> None:
    config = "model = dict(backbone=dict(contract_dilation=False), decode_head=dict(recurrence=3, align_corners=True))"
    state = weights(tiny_segmentor("resnet", "ccnet"))
    path = tmp_path / "model.pth"
    torch.save({"state_dict": state, "meta": {"config": config}}, path)
    loaded = load_segmentor(path)
    assert loaded.align_corners
    with torch.no_grad():
        assert [trace.step for trace in loaded(torch.randn(1, 3, 32, 32)).traces] == [1, 2, 3]
    assert not read_checkpoint(path).options.contract_dilation
    torch.save({"state_dict": state, "meta": {"config": config.replace("recurrence=3", "recurrence=9")}}, path)
    with pytest.raises(CheckpointError, match=r"model\.pth: the file says that recurrence is '9'; we know 1, 2, 3"):
        load_segmentor(path)


def test_values_that_only_float64_can_hold_are_refused(state: dict[str, Tensor], tmp_path: Path) -> None:
    state["decode_head.conv_seg.bias"] = torch.full((5,), 1e300, dtype=torch.float64)
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"decode_head\.conv_seg\.bias holds NaN or infinite weights"):
        load_segmentor(tmp_path / "model.pth")


def test_weights_of_8_bits_load(state: dict[str, Tensor], tmp_path: Path) -> None:
    state["decode_head.conv_seg.weight"] = state["decode_head.conv_seg.weight"].to(torch.float8_e4m3fn)
    save_file(state, tmp_path / "model.safetensors")
    loaded = load_segmentor(tmp_path / "model.safetensors").decode_head.conv_seg.weight
    assert torch.equal(loaded, state["decode_head.conv_seg.weight"].float())


def test_negative_variances_are_refused(state: dict[str, Tensor], tmp_path: Path) -> None:
    state["decode_head.convs.0.bn.running_var"] = -torch.ones_like(state["decode_head.convs.0.bn.running_var"])
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"decode_head\.convs\.0\.bn\.running_var holds negative variances"):
        load_segmentor(tmp_path / "model.pth")


def test_parameters_load_as_plain_values(tmp_path: Path) -> None:
    """As `state_dict(keep_vars=True)` gives them: a bias that is folded into a buffer would leave it a gradient."""
    state = random_state(shapes_of("official_ann", Sizes()))
    state |= {key: nn.Parameter(tensor) for key, tensor in state.items() if key.endswith(("weight", "bias"))}
    torch.save(state, tmp_path / "model.pth")
    assert not any(buffer.requires_grad for buffer in load_segmentor(tmp_path / "model.pth").buffers())


@pytest.mark.parametrize("weights", [True, False])
def test_two_networks_in_one_state_dict_are_refused(state: dict[str, Tensor], tmp_path: Path, weights: bool) -> None:
    """It would be chance which of them were served."""
    torch.save({**state, **{f"module.{key}": tensor + 1 for key, tensor in state.items()}}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"model\.pth: holds tensors twice"):
        read_checkpoint(tmp_path / "model.pth", weights=weights)
