from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from models.backbones.mobilenet import MobileNetV2
from models.backbones.mobilenet_edgetpu import MobileNetEdgeTPU
from models.backbones.resnet import BLOCKS, BasicBlock, ResNet
from models.builder import Options, build_segmentor, output_channels
from models.errors import CheckpointError
from models.heads.ann import ANNHead
from models.heads.ccnet import CCHead
from models.heads.danet import DAHead
from models.heads.fcn import Head
from models.heads.gcnet import GCHead
from models.heads.non_local import NonLocalHead
from models.heads.pspnet import PSPHead
from models.layouts import IGNORED_PREFIXES
from models.segmentor import Segmentor

Build = Callable[[str, str], Segmentor]
Shapes = dict[str, torch.Size]

HEADS: dict[str, Callable[[], Head]] = {
    "ccnet": lambda: CCHead(2048, 512, 19),
    "ann": lambda: ANNHead((1024, 2048), 512, 19),
    "nonlocal": lambda: NonLocalHead(2048, 512, 19),
    "danet": lambda: DAHead(2048, 512, 19),
    "gcnet": lambda: GCHead(2048, 512, 19),
    "pspnet": lambda: PSPHead(2048, 512, 19),
}
TABLES = [*((name, 50) for name in HEADS), ("ccnet", 101), ("ann", 101)]


def read_table(shared: Path, name: str, depth: int) -> Shapes:
    """mmsegmentation's state dict as key to shape, less what serves training only."""
    table = json.loads((shared / "reference" / f"keys_{name}_r{depth}_d8.json").read_text())
    return {
        key: torch.Size(shape)
        for key, shape in table.items()
        if not key.startswith(IGNORED_PREFIXES) and not key.endswith("num_batches_tracked")
    }


def shapes_of(segmentor: Segmentor) -> Shapes:
    state = segmentor.state_dict()
    return {key: tensor.shape for key, tensor in state.items() if not key.endswith("num_batches_tracked")}


@pytest.mark.parametrize(
    ("backbone", "channels"),
    [
        (MobileNetV2, [24, 32, 96, 320]),
        (MobileNetEdgeTPU, [24, 40, 72, 144]),
        (lambda: ResNet((1, 2, 1, 3), stem_channels=(3, 10), planes=(5, 6, 8, 12)), [20, 24, 32, 48]),
        (lambda: ResNet((1, 1, 1, 1), block=BasicBlock, stem_channels=(4, 8), planes=(8, 9, 10, 11)), [8, 9, 10, 11]),
    ],
)
def test_output_channels_are_those_of_the_features(backbone: Callable[[], nn.Module], channels: list[int]) -> None:
    net = backbone().eval()
    with torch.no_grad():
        features = net(torch.randn(1, 3, 32, 32))
    assert output_channels(net) == [feature.shape[1] for feature in features.values()] == channels


@pytest.mark.parametrize(("name", "depth"), TABLES)
def test_full_size_networks_have_mmsegmentations_keys(shared: Path, name: str, depth: int) -> None:
    with torch.device("meta"):
        segmentor = Segmentor(ResNet(BLOCKS[depth]), HEADS[name]())
    assert shapes_of(segmentor) == read_table(shared, name, depth)


@pytest.mark.parametrize(("name", "depth"), TABLES)
def test_full_size_networks_are_built_from_their_shapes(shared: Path, name: str, depth: int) -> None:
    table = read_table(shared, name, depth)
    with torch.device("meta"):
        segmentor = build_segmentor(table, Options())
    assert shapes_of(segmentor) == table
    assert type(segmentor.decode_head) is type(HEADS[name]())


@pytest.mark.parametrize("head", ["fcn", "ccnet", "non_local", "ann", "danet", "gcnet", "pspnet"])
@pytest.mark.parametrize("backbone", ["resnet", "mobilenet", "edgetpu"])
def test_same_architecture_from_the_shapes(tiny_segmentor: Build, backbone: str, head: str) -> None:
    segmentor = tiny_segmentor(backbone, head)
    built = build_segmentor(shapes_of(segmentor), Options())
    assert str(built) == str(segmentor)
    assert not any(module.training for module in built.modules())


def test_options_fill_in_what_shapes_leave_open(tiny_segmentor: Build) -> None:
    shapes = shapes_of(tiny_segmentor("mobilenet", "ccnet"))
    options = Options(recurrence=3, output_stride=8, align_corners=True)
    built = build_segmentor(shapes, options)
    with torch.no_grad():
        _, traces = built(torch.randn(1, 3, 64, 64))
    assert [trace.step for trace in traces] == [1, 2, 3]
    assert traces[0].grid == (8, 8)
    assert built.align_corners


def test_defaults_are_the_papers(tiny_segmentor: Build) -> None:
    built = build_segmentor(shapes_of(tiny_segmentor("mobilenet", "ccnet")), Options())
    with torch.no_grad():
        _, traces = built(torch.randn(1, 3, 64, 64))
    assert [trace.grid for trace in traces] == [(4, 4), (4, 4)]
    assert not built.align_corners


def test_depths_and_widths_of_nobody_are_built() -> None:
    resnet = ResNet((1, 2, 1, 3), stem_channels=(3, 10), planes=(5, 6, 8, 12))
    segmentor = Segmentor(resnet, CCHead(48, 12, 7, query_channels=3, context_channels=9)).eval()
    assert str(build_segmentor(shapes_of(segmentor), Options())) == str(segmentor)


def test_means_of_a_pspnet_are_resized_as_the_options_say(tiny_segmentor: Build) -> None:
    shapes = shapes_of(tiny_segmentor("resnet", "pspnet"))
    for align_corners in (False, True):
        head = build_segmentor(shapes, Options(align_corners=align_corners)).decode_head
        assert isinstance(head, PSPHead)
        assert head.align_corners is align_corners


def test_basic_blocks_are_built() -> None:
    resnet = ResNet((2, 2, 2, 2), block=BasicBlock, stem_channels=(4, 8), planes=(8, 8, 16, 20))
    inner, out = ((3, 5), (4, 6)), (14, 11)
    segmentor = Segmentor(resnet, ANNHead((16, 20), 12, 7, inner_channels=inner, out_channels=out)).eval()
    assert str(build_segmentor(shapes_of(segmentor), Options())) == str(segmentor)


def test_unknown_backbone_is_refused(tiny_segmentor: Build) -> None:
    shapes = shapes_of(tiny_segmentor("resnet", "ccnet"))
    renamed = {key.replace("backbone.", "trunk."): shape for key, shape in shapes.items()}
    with pytest.raises(CheckpointError, match="no names of a backbone, but of decode_head, trunk"):
        build_segmentor(renamed, Options())


@pytest.mark.parametrize("module", ["decode_head.conv_seg", "decode_head.conv_cat.conv", "backbone.stem.0"])
def test_a_tensor_that_settles_the_architecture_is_named_if_missing(tiny_segmentor: Build, module: str) -> None:
    shapes = shapes_of(tiny_segmentor("resnet", "ccnet"))
    del shapes[f"{module}.weight"]
    with pytest.raises(CheckpointError, match=f"{module}.weight"):
        build_segmentor(shapes, Options())


@pytest.mark.parametrize("shape", [(), (5,)])
def test_a_tensor_of_too_few_dimensions_is_named(tiny_segmentor: Build, shape: tuple[int, ...]) -> None:
    shapes = shapes_of(tiny_segmentor("mobilenet", "ccnet"))
    shapes["decode_head.conv_seg.weight"] = torch.Size(shape)
    with pytest.raises(CheckpointError, match=r"decode_head\.conv_seg\.weight"):
        build_segmentor(shapes, Options())


# --- parts that don't belong together


def joined(tiny_segmentor: Build, backbone: str, part: str, taken: tuple[str, str]) -> Shapes:
    """Shapes of one network with a part of another."""
    mine, theirs = shapes_of(tiny_segmentor(backbone, "ccnet")), shapes_of(tiny_segmentor(*taken))
    shapes = {key: shape for key, shape in mine.items() if not key.startswith(part)}
    return {**shapes, **{key: shape for key, shape in theirs.items() if key.startswith(part)}}


@pytest.mark.parametrize("head", ["ccnet", "fcn", "non_local", "gcnet", "danet", "pspnet"])
def test_a_head_of_another_backbone_is_refused(tiny_segmentor: Build, head: str) -> None:
    shapes = joined(tiny_segmentor, "mobilenet", "decode_head.", ("edgetpu", head))
    with pytest.raises(CheckpointError, match="the head reads 144 channels where stage 4 of the backbone gives 80"):
        build_segmentor(shapes, Options())


def test_an_ann_reads_two_stages(tiny_segmentor: Build) -> None:
    shapes = joined(tiny_segmentor, "mobilenet", "decode_head.", ("edgetpu", "ann"))
    with pytest.raises(CheckpointError, match="the head reads 72 channels where stage 3 of the backbone gives 24"):
        build_segmentor(shapes, Options())


def test_a_decoder_of_another_backbone_is_refused(tiny_segmentor: Build) -> None:
    shapes = joined(tiny_segmentor, "mobilenet", "decoder.stride4.", ("edgetpu", "ccnet"))
    with pytest.raises(CheckpointError, match="the decoder reads 24 channels where stage 1 of the backbone gives 8"):
        build_segmentor(shapes, Options())
    shapes = shapes_of(tiny_segmentor("mobilenet", "ccnet"))
    shapes["decoder.stride8.mix.conv.weight"] = torch.Size([12, 30, 3, 3])
    with pytest.raises(CheckpointError, match="the decoder reads 22 channels where the head gives 16"):
        build_segmentor(shapes, Options())


@pytest.mark.parametrize("backbone", ["resnet", "mobilenet"])
def test_a_classifier_of_another_width_is_refused(tiny_segmentor: Build, backbone: str) -> None:
    shapes = shapes_of(tiny_segmentor(backbone, "ccnet"))
    shapes["decode_head.conv_seg.weight"] = torch.Size([5, 99, 1, 1])
    with pytest.raises(CheckpointError, match="the classifier reads 99 channels where the part before it gives"):
        build_segmentor(shapes, Options())
