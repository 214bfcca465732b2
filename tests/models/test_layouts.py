"""Every layout that we read, against its own network written out in tests/models/reference.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.builder import build_segmentor
from models.checkpoint import load_segmentor, read_checkpoint
from models.errors import CheckpointError
from models.layouts import (
    IGNORED_SUFFIX,
    MMSEGMENTATION,
    OFFICIAL_ANN,
    OFFICIAL_CCNET,
    Layout,
    detect_layout,
    strip_prefix,
    to_our_names,
    to_our_values,
    to_their_name,
)
from tests.models.reference import (
    MMSEG_V1,
    MMSEG_V1D,
    NETWORKS,
    Sizes,
    Source,
    State,
    full_size,
    logits_of,
    mmseg_logits,
    mmseg_shapes,
    random_state,
    shapes_of,
)

SMALL = Sizes()
OTHER = Sizes((2, 1, 3, 2), (5, 9), (4, 6, 8, 10), 20, 7, 3, auxiliary=9)
BASIC = Sizes((2, 1, 1, 2), (4, 8), (8, 8, 10, 12), 16, 3, basic=True)
OFFICIAL = ["official_ccnet", "official_ann"]


def save(state: State, tmp_path: Path) -> Path:
    torch.save(state, tmp_path / "model.pth")
    return tmp_path / "model.pth"


def assert_same_logits(name: str, state: State, path: Path, height: int, width: int) -> None:
    image = torch.randn(2, 3, height, width)
    with torch.no_grad():
        logits = load_segmentor(path)(image).logits
    expected = logits_of(name, state, image)
    assert logits.shape == expected.shape
    assert expected.std() > 0.05  # so something came through
    assert (logits - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize(("height", "width"), [(64, 96), (65, 97), (90, 61), (33, 17)])
@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_the_sources(name: str, height: int, width: int, tmp_path: Path) -> None:
    state = random_state(shapes_of(name, SMALL))
    assert_same_logits(name, state, save(state, tmp_path), height, width)


@pytest.mark.parametrize("sizes", [OTHER, BASIC], ids=["other", "basic"])
@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_the_sources_at_other_widths_and_depths(name: str, sizes: Sizes, tmp_path: Path) -> None:
    state = random_state(shapes_of(name, sizes), seed=1)
    assert_same_logits(name, state, save(state, tmp_path), 51, 74)


@pytest.mark.parametrize("source", [MMSEG_V1, MMSEG_V1D], ids=["v1", "v1d"])
@pytest.mark.parametrize("sizes", [SMALL, BASIC], ids=["bottleneck", "basic"])
@pytest.mark.parametrize("head", ["ccnet", "pspnet"])
def test_other_resnets_of_mmsegmentation(head: str, sizes: Sizes, source: Source, tmp_path: Path) -> None:
    state, image = random_state(mmseg_shapes(head, sizes, source)), torch.randn(2, 3, 51, 74)
    with torch.no_grad():
        expected = mmseg_logits(head, state, image, source)
        logits = load_segmentor(save(state, tmp_path))(image).logits
    assert logits.shape == expected.shape
    assert (logits - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_what_a_plain_stem_lacks_has_the_files_own_name(tmp_path: Path) -> None:
    state = random_state(mmseg_shapes("ccnet", SMALL, MMSEG_V1))
    del state["backbone.bn1.running_var"]
    with pytest.raises(CheckpointError, match=r"missing backbone\.bn1\.running_var$"):
        load_segmentor(save(state, tmp_path))


@pytest.mark.parametrize(
    ("name", "depth", "table"),
    [
        *((name, 50, f"{name}_r50_d8") for name in NETWORKS if name not in (*OFFICIAL, "fcn")),
        *((name, 101, f"{name}_r101_d8") for name in ("ccnet", "ann")),
        *((name, 101, f"{name}_r101") for name in OFFICIAL),
    ],
)
def test_the_reference_at_full_size_has_the_published_keys(name: str, depth: int, table: str, shared: Path) -> None:
    published = json.loads((shared / "reference" / f"keys_{table}.json").read_text())
    assert {key: list(shape) for key, shape in shapes_of(name, full_size(name, depth)).items()} == published


@pytest.mark.parametrize("name", OFFICIAL)
def test_full_size_official_checkpoints_fill_ours_shape_for_shape(name: str) -> None:
    shapes = shapes_of(name, full_size(name, 101))
    with torch.device("meta"):
        theirs = strip_prefix({key: torch.empty(shape) for key, shape in shapes.items()})
        layout = detect_layout(theirs)
        ours = to_our_values(to_our_names(theirs, layout), layout)
        segmentor = build_segmentor({key: tensor.shape for key, tensor in ours.items()}, layout.options)
    wanted = {key: tensor.shape for key, tensor in segmentor.state_dict().items() if not key.endswith(IGNORED_SUFFIX)}
    assert {key: tensor.shape for key, tensor in ours.items()} == wanted


@pytest.mark.parametrize(
    ("name", "layout"),
    [("official_ccnet", OFFICIAL_CCNET), ("official_ann", OFFICIAL_ANN), ("ccnet", MMSEGMENTATION)],
)
def test_layouts_are_told_apart_by_their_keys(name: str, layout: Layout, tmp_path: Path) -> None:
    path = save(random_state(shapes_of(name, SMALL)), tmp_path)
    checkpoint = read_checkpoint(path)
    assert checkpoint.layout is layout
    assert checkpoint.options == layout.options


@pytest.mark.parametrize("layout", [OFFICIAL_CCNET, OFFICIAL_ANN])
def test_names_are_found_back(layout: Layout) -> None:
    name = "official_ccnet" if layout is OFFICIAL_CCNET else "official_ann"
    theirs = strip_prefix({key: torch.empty(shape) for key, shape in shapes_of(name, SMALL).items()})
    renamed = to_our_names(theirs, layout)
    back = {to_their_name(key, layout) for key in renamed}
    assert back == {key for key in theirs if not key.startswith("dsn.") and not key.endswith(IGNORED_SUFFIX)}
    assert all(key.startswith(("backbone.", "decode_head.")) for key in renamed)


def as_parallel(state: State) -> State:
    return {f"module.{key.removeprefix('module.')}": tensor for key, tensor in state.items()}


WRAPPED = {
    "bare": lambda state: state,
    "unwrapped": lambda state: {key.removeprefix("module."): tensor for key, tensor in state.items()},
    "parallel": as_parallel,
    "compiled": lambda state: {f"module._orig_mod.{key}": tensor for key, tensor in as_parallel(state).items()},
    "model": lambda state: {"model": state, "optimizer": {"lr": 0.01}, "iteration": 60000},
    "state_dict": lambda state: {"state_dict": state, "config_dict": {"gpu": [0]}, "runner_state": {"iters": 7}},
    "mmsegmentation-0": lambda state: {"meta": {"CLASSES": ("road", "sky"), "iter": 40000}, "state_dict": state},
    "mmsegmentation-1": lambda state: {
        "meta": {"dataset_meta": {"classes": ["road", "sky"]}, "iter": 40000},
        "state_dict": {**state, "data_preprocessor.mean": torch.ones(3, 1, 1)},
        "ema_state_dict": {"steps": torch.tensor(3)},
        "message_hub": {},
    },
    "averaged": lambda state: {
        "state_dict": {**state, **{f"ema_{key.replace('.', '_')}": tensor + 1 for key, tensor in state.items()}}
    },
    "double": lambda state: {key: tensor.double() for key, tensor in state.items()},
    "parameters": lambda state: {
        key: torch.nn.Parameter(tensor) if tensor.is_floating_point() else tensor for key, tensor in state.items()
    },
}


@pytest.mark.parametrize("wrapped", WRAPPED)
@pytest.mark.parametrize("name", ["ccnet", *OFFICIAL])
def test_however_it_is_wrapped(name: str, wrapped: str, tmp_path: Path) -> None:
    state = random_state(shapes_of(name, SMALL))
    torch.save(WRAPPED[wrapped](state), tmp_path / "model.pth")
    assert_same_logits(name, state, tmp_path / "model.pth", 33, 41)


@pytest.mark.parametrize("name", ["ann", *OFFICIAL])
def test_half_precision_is_converted_before_it_is_computed_with(name: str, tmp_path: Path) -> None:
    state = {
        key: tensor.half().float() if tensor.is_floating_point() else tensor
        for key, tensor in random_state(shapes_of(name, SMALL)).items()
    }
    half = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in state.items()}
    assert_same_logits(name, state, save(half, tmp_path), 33, 41)


@pytest.mark.parametrize("name", NETWORKS)
def test_heads_that_serve_training_alone_may_be_missing_or_spoilt(name: str, tmp_path: Path) -> None:
    state = random_state(shapes_of(name, SMALL))
    training = ("auxiliary_head.", "dsn.", "module.dsn.", "decode_head.pam_conv_seg.", "decode_head.cam_conv_seg.")
    without = {key: tensor for key, tensor in state.items() if not key.startswith(training)}
    assert len(without) < len(state)
    assert_same_logits(name, state, save(without, tmp_path), 33, 41)
    spoilt = {key: tensor * float("nan") if key.startswith(training) else tensor for key, tensor in state.items()}
    assert_same_logits(name, state, save(spoilt, tmp_path), 33, 41)


@pytest.mark.parametrize(
    ("name", "missing", "misshapen"),
    [
        ("official_ccnet", "head.cca.gamma", "head.bottleneck.1.running_var"),
        ("official_ann", "module.fusion.conv_bn_dropout.1.weight", "module.context.2.stages.0.W.bias"),
        ("danet", "decode_head.cam.gamma.scale", "decode_head.pam.key_project.bias"),
        ("gcnet", "decode_head.gc_block.channel_add_conv.3.bias", "decode_head.gc_block.conv_mask.bias"),
        ("pspnet", "decode_head.psp_modules.3.1.conv.weight", "decode_head.bottleneck.bn.bias"),
    ],
)
def test_what_does_not_fit_has_the_files_own_names(name: str, missing: str, misshapen: str, tmp_path: Path) -> None:
    state = random_state(shapes_of(name, SMALL))
    del state[missing]
    state[misshapen] = torch.ones(99)
    state["extra.weight"] = torch.ones(1)
    path = save(state, tmp_path)
    with pytest.raises(CheckpointError) as caught:
        load_segmentor(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: ")
    assert f"missing {missing.removeprefix('module.')};" in said
    assert f"{misshapen.removeprefix('module.')} is [99], not [" in said
    assert "unexpected extra.weight" in said


@pytest.mark.parametrize(
    ("name", "key"), [("official_ccnet", "head.convb.1.weight"), ("official_ann", "module.context.0.bias")]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(name: str, key: str, value: float, tmp_path: Path) -> None:
    state = random_state(shapes_of(name, SMALL))
    state[key][1] = value
    with pytest.raises(CheckpointError, match=rf"{key.removeprefix('module.')} holds NaN or infinite weights"):
        load_segmentor(save(state, tmp_path))


def other_head(part: str) -> dict[str, Tensor]:
    state = random_state(shapes_of("fcn", SMALL))
    kept = {key: tensor for key, tensor in state.items() if ".convs." not in key and ".conv_cat." not in key}
    return {**kept, f"decode_head.{part}.0.weight": torch.ones(4, 4, 1, 1)}


def test_other_heads_are_said_to_be_others(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"the head is none of CCNet, ANN.*: it has aspp_modules, conv_seg$"):
        load_segmentor(save(other_head("aspp_modules"), tmp_path))


@pytest.mark.parametrize(
    ("rename", "said"),
    [
        (lambda key: f"teacher.{key}", "no names of a backbone, but of teacher: not an"),
        (lambda key: key.replace("decode_head.", "head."), r"no tensor decode_head\.conv_seg\.weight"),
        (lambda key: key.replace("backbone.layer", "backbone.stage"), "the backbone is none of ResNetV1, V1c"),
    ],
)
def test_names_of_others_are_said_in_one_sentence(rename: Callable[[str], str], said: str, tmp_path: Path) -> None:
    state = {rename(key): tensor for key, tensor in random_state(shapes_of("ccnet", SMALL)).items()}
    with pytest.raises(CheckpointError, match=said):
        load_segmentor(save(state, tmp_path))


@pytest.mark.parametrize("missing", ["conv_cat", "convs.1"])
def test_an_fcn_frame_of_other_parts_is_refused(missing: str, tmp_path: Path) -> None:
    """Without `concat_input`, or with one convolution."""
    state = random_state(shapes_of("nonlocal", SMALL))
    kept = {key: tensor for key, tensor in state.items() if not key.startswith(f"decode_head.{missing}.")}
    with pytest.raises(CheckpointError, match=rf"missing decode_head\.{missing}\.conv\.weight"):
        load_segmentor(save(kept, tmp_path))


@pytest.mark.parametrize("classes", [1, 2, 150, 171, 255, 256])
@pytest.mark.parametrize("name", ["ann", "official_ccnet"])
def test_any_number_of_classes_that_masks_can_hold(name: str, classes: int, tmp_path: Path) -> None:
    state = random_state(shapes_of(name, replace(SMALL, classes=classes)))
    if classes in (1, 256):
        with pytest.raises(CheckpointError, match=f"it has {classes} classes; masks are of 2 to 255"):
            load_segmentor(save(state, tmp_path))
    else:
        assert_same_logits(name, state, save(state, tmp_path), 33, 41)
