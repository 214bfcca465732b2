"""Which block, step and level a request means, and what it is told; without HTTP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from app.api.attention import AttentionMap, attention_map, describe, render_heat, to_npy, to_reply
from app.api.record import Record
from app.errors import InvalidParameter
from models import Trace

MASK = np.zeros((24, 32), np.uint8)
Decoded = Callable[[bytes], np.ndarray[Any, Any]]


@pytest.fixture
def crosses() -> tuple[Trace, ...]:
    """Two passes of criss-cross attention over a grid of 6 x 8."""
    draws = torch.randn(2, 2, 4, 6, 8, generator=torch.Generator().manual_seed(2)).half()
    return tuple(Trace("cca", step, *draw) for step, draw in enumerate(draws, 1))


def found(weights: list[list[float]], cell: tuple[int, int] = (0, 0)) -> AttentionMap:
    return AttentionMap("nl", (0, 0), cell, np.array(weights, np.float64))


@pytest.mark.parametrize("step", ["1", "2", "composed", None])
def test_steps_differ(make_record: Callable[..., Record], crosses: tuple[Trace, ...], step: str | None) -> None:
    record = make_record(MASK, *crosses)
    result = attention_map(record, (13, 9), "cca", step, "all")
    assert (result.block, result.step, result.level) == ("cca", step or "composed", None)
    assert result.cell == (2, 3)
    assert result.weights.sum() == pytest.approx(1, abs=1e-12)
    assert (result.on_cross == pytest.approx(1, abs=1e-12)) == (step in ("1", "2"))
    others = {"1", "2", "composed"} - {step or "composed"}
    for other in others:
        assert not np.allclose(attention_map(record, (13, 9), None, other, "all").weights, result.weights)


@pytest.mark.parametrize("step", [None, "1"])
def test_one_pass_is_a_step_too(
    make_record: Callable[..., Record], crosses: tuple[Trace, ...], step: str | None
) -> None:
    record = make_record(MASK, crosses[0])
    assert describe(record).blocks[0].steps == ["1"]
    result = attention_map(record, (0, 0), None, step, "all")
    assert result.step == "1"
    assert result.weights.dtype == np.float64
    assert result.on_cross == pytest.approx(1, abs=1e-12)


def test_three_passes_are_not_composed(make_record: Callable[..., Record], crosses: tuple[Trace, ...]) -> None:
    third = Trace("cca", 3, crosses[0].query, crosses[1].key)
    record = make_record(MASK, *crosses, third)
    assert describe(record).blocks[0].steps == ["1", "2", "3"]
    maps = {step: attention_map(record, (0, 0), None, step, "all").weights for step in (None, "1", "2", "3")}
    assert np.array_equal(maps[None], maps["3"]), "the last is the default"
    assert not np.allclose(maps["3"], maps["2"])
    with pytest.raises(InvalidParameter, match="composed"):
        attention_map(record, (0, 0), None, "composed", "all")


@pytest.mark.parametrize(
    ("point", "block"), [((32, 0), None), ((0, 24), None), ((-1, 0), None), ((0, 0), "nl"), ((0, 0), "apnb")]
)
def test_wrong_questions(
    make_record: Callable[..., Record], crosses: tuple[Trace, ...], point: tuple[int, int], block: str | None
) -> None:
    with pytest.raises(InvalidParameter):
        attention_map(make_record(MASK, *crosses), point, block, None, "all")


def test_without_traces(make_record: Callable[..., Record]) -> None:
    with pytest.raises(InvalidParameter, match="attention=false"):
        describe(make_record(MASK))


def test_a_level_that_the_pyramid_lacks(make_record: Callable[..., Record]) -> None:
    trace = Trace("apnb", 1, torch.randn(4, 6, 8).half(), torch.randn(4, 5).half(), pool_scales=(1, 2))
    record = make_record(MASK, trace)
    assert describe(record).blocks[0].levels == ["all", "1", "2"]
    with pytest.raises(InvalidParameter, match="level"):
        attention_map(record, (0, 0), None, None, "8")


def test_numbers_about_a_map() -> None:
    even = found([[0.25, 0.25], [0.25, 0.25]])
    assert even.entropy == pytest.approx(2)
    assert even.on_cross == pytest.approx(0.75)
    assert found([[0, 0], [0, 1]]).entropy == 0
    assert found([[0, 0], [0, 1]]).on_cross == 0


def test_top_has_the_heaviest_first(make_record: Callable[..., Record]) -> None:
    reply = to_reply(make_record(MASK), found([[0.1, 0.6, 0.0], [0.05, 0.05, 0.2]]))
    assert [(cell.row, cell.column) for cell in reply.top[:3]] == [(0, 1), (1, 2), (0, 0)]
    assert len(reply.top) == 6
    assert (reply.grid.width, reply.grid.height) == (3, 2)
    assert (reply.anchors, reply.levels) == (None, None)


def test_npy_needs_no_pickle() -> None:
    assert to_npy(found([[1.0]])).startswith(b"\x93NUMPY")


@pytest.mark.parametrize(("clip", "mean"), [(100.0, 80), (50.0, 89)])
def test_clip_makes_heavy_cells_alike(
    make_record: Callable[..., Record], decoded: Decoded, clip: float, mean: int
) -> None:
    weights = found([[0.0, 0.0, 0.2, 0.8] * 4])
    picture = decoded(render_heat(make_record(MASK), weights, clip, "gray", None, "PNG"))
    assert picture.shape == (24, 32, 3)
    assert picture.max() == 255
    assert picture.min() == 0
    assert abs(picture.mean() - mean) < 3


def test_clipping_does_not_light_up_what_is_next_to_nothing(
    make_record: Callable[..., Record], decoded: Decoded
) -> None:
    weights = found([[1e-9, 1e-9, 1e-9, 1.0]])
    picture = decoded(render_heat(make_record(MASK), weights, 10.0, "gray", None, "PNG"))
    assert picture[:, -1].min() == 255
    assert picture[:, 0].max() == 0


@pytest.mark.parametrize("weights", [[[0.0]], [[1.0]], [[0.0, 0.0]], [[1e-300] * 3]])
def test_poor_maps_are_drawn(make_record: Callable[..., Record], decoded: Decoded, weights: list[list[float]]) -> None:
    picture = decoded(render_heat(make_record(MASK), found(weights), 99.0, "turbo", 0.5, "PNG"))
    assert picture.shape == (24, 32, 3)
