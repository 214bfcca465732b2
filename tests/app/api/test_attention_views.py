"""What is told and drawn of an attention map."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from app.api.attention import AttentionMap
from app.api.attention_views import Look, normalized, render_heat, to_npy, to_reply
from app.api.record import Record

MASK = np.zeros((24, 32), np.uint8)
Decoded = Callable[[bytes], np.ndarray[Any, Any]]


def found(weights: list[list[float]], cell: tuple[int, int] = (0, 0)) -> AttentionMap:
    return AttentionMap("nl", np.array(weights, np.float64), point=(0, 0), cell=cell)


def test_top_has_the_heaviest_first(make_record: Callable[..., Record]) -> None:
    reply = to_reply(make_record(MASK), found([[0.1, 0.6, 0.0], [0.05, 0.05, 0.2]]), 10, True)
    heaviest = [(0, 1), (1, 2), (0, 0), (1, 0), (1, 1)]  # of equals the one that is read first; none without weight
    assert [(cell.row, cell.column) for cell in reply.top] == heaviest
    assert (reply.grid.width, reply.grid.height) == (3, 2)
    assert (reply.anchors, reply.levels) == (None, None)


def test_npy_is_row_by_row_and_needs_no_pickle() -> None:
    for weights in (WEIGHTS, np.asfortranarray(WEIGHTS)):
        npy = to_npy(AttentionMap("nl", weights))
        assert b"'fortran_order': False" in npy
        assert npy.endswith(WEIGHTS.tobytes())
        assert np.array_equal(np.load(io.BytesIO(npy), allow_pickle=False), WEIGHTS)


@pytest.mark.parametrize(("clip", "mean"), [(100.0, 80), (50.0, 89)])
def test_clip_makes_heavy_cells_alike(
    make_record: Callable[..., Record], decoded: Decoded, clip: float, mean: int
) -> None:
    weights = found([[0.0, 0.0, 0.2, 0.8] * 4])
    picture = decoded(render_heat(make_record(MASK), weights, Look(clip, colormap="gray", alpha=None), "PNG"))
    assert picture.shape == (24, 32, 3)
    assert picture.max() == 255
    assert picture.min() == 0
    assert abs(picture.mean() - mean) < 3


def test_clipping_does_not_light_up_what_is_next_to_nothing(
    make_record: Callable[..., Record], decoded: Decoded
) -> None:
    weights = found([[1e-9, 1e-9, 1e-9, 1.0]])
    picture = decoded(render_heat(make_record(MASK), weights, Look(10.0, colormap="gray", alpha=None), "PNG"))
    assert picture[:, -1].min() == 255
    assert picture[:, 0].max() == 0


@pytest.mark.parametrize("weights", [[[0.0]], [[1.0]], [[0.0, 0.0]], [[1e-300] * 3]])
def test_poor_maps_are_drawn(make_record: Callable[..., Record], decoded: Decoded, weights: list[list[float]]) -> None:
    picture = decoded(render_heat(make_record(MASK), found(weights), Look(colormap="turbo", alpha=0.5), "PNG"))
    assert picture.shape == (24, 32, 3)


def test_reply_leaves_out_what_is_not_wanted(make_record: Callable[..., Record]) -> None:
    reply = to_reply(make_record(MASK), found([[0.1, 0.6, 0.3]]), 1, False)
    assert (reply.weights, len(reply.top)) == (None, 1)
    assert to_reply(make_record(MASK), found([[1.0]]), 0, True).top == []


def test_reply_about_a_class(make_record: Callable[..., Record]) -> None:
    reply = to_reply(make_record(MASK), AttentionMap("nl", np.full((2, 2), 0.25), class_id=0), 1, True)
    assert reply.of_class is not None
    assert (reply.of_class.name, reply.of_class.pixels) == ("sky", MASK.size)
    assert (reply.x, reply.y, reply.cell, reply.on_cross) == (None, None, None, None)


WEIGHTS = np.array([[0.0, 0.1, 0.2], [0.3, 0.4, 0.0]])


@pytest.mark.parametrize(
    ("norm", "expected"),
    [
        ("max", [[0, 0.25, 0.5], [0.75, 1, 0]]),
        ("rank", [[0, 0.25, 0.5], [0.75, 1, 0]]),
        ("sum", [[0, 0.1, 0.3], [0.6, 1, 0]]),
        ("log", [[0, 1 + np.log10(0.25) / 4, 1 + np.log10(0.5) / 4], [1 + np.log10(0.75) / 4, 1, 0]]),
    ],
)
def test_norms(norm: Any, expected: list[list[float]]) -> None:
    np.testing.assert_allclose(normalized(WEIGHTS, norm, 100), expected, rtol=1e-12)


def test_what_is_beyond_a_share_holds_the_rest() -> None:
    weights = np.random.default_rng(0).exponential(size=(12, 16))
    assert weights[normalized(weights, "sum", 100) > 0.4].sum() >= 0.6 * weights.sum()


def test_cells_have_edges_if_wanted(make_record: Callable[..., Record], decoded: Decoded) -> None:
    record, weights = make_record(MASK), found([[0.0, 1.0]])
    look = Look(100, colormap="gray", alpha=None)
    hard = decoded(render_heat(record, weights, replace(look, is_smooth=False), "PNG"))
    assert np.array_equal(np.unique(hard), [0, 255])
    assert (hard[:, :16] == 0).all()
    assert len(np.unique(decoded(render_heat(record, weights, look, "PNG")))) > 2


@pytest.mark.parametrize("alpha", [None, 0.5])
def test_a_pixel_for_each_cell(make_record: Callable[..., Record], decoded: Decoded, alpha: float | None) -> None:
    weights = found([[0.0, 0.5, 1.0], [0.0, 0.0, 0.0]])
    look = Look(100, colormap="gray", alpha=alpha, at_map_size=True)
    picture = decoded(render_heat(make_record(MASK), weights, look, "PNG"))
    assert picture.shape == (2, 3, 3)
    if alpha is None:
        assert picture[0, :, 0].tolist() == [0, 128, 255]
