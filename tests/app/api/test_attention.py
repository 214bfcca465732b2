"""Which block, step and level a request means, and what it is told; without HTTP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from app.api.attention import AttentionMap, Question, attention_map, class_id, is_slow
from app.api.attention_views import describe
from app.api.derived import Derived
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
    return AttentionMap("nl", np.array(weights, np.float64), point=(0, 0), cell=cell)


def ask(record: Record, about: Any, block: str | None = None, step: str | None = None, **more: Any) -> AttentionMap:
    return attention_map(record, Question(about, block, step, **more), Derived(1 << 24))


def matrix_of(ask_row: Callable[[tuple[int, int]], AttentionMap]) -> np.ndarray[Any, Any]:
    """Rows of all cells, by the answer to each pixel in the middle of a cell of 4 x 4 pixels."""
    points = [(4 * column + 2, 4 * row + 2) for row in range(6) for column in range(8)]
    return np.stack([ask_row(point).weights.ravel() for point in points])


@pytest.mark.parametrize("step", ["1", "2", "composed", None])
def test_steps_differ(make_record: Callable[..., Record], crosses: tuple[Trace, ...], step: str | None) -> None:
    record = make_record(MASK, *crosses)
    result = ask(record, (13, 9), "cca", step)
    assert (result.block, result.step, result.level) == ("cca", step or "composed", None)
    assert result.cell == (2, 3)
    assert result.weights.sum() == pytest.approx(1, abs=1e-12)
    assert (result.on_cross == pytest.approx(1, abs=1e-12)) == (step in ("1", "2"))
    others = {"1", "2", "composed"} - {step or "composed"}
    for other in others:
        assert not np.allclose(ask(record, (13, 9), None, other).weights, result.weights)


@pytest.mark.parametrize("step", [None, "1"])
def test_one_pass_is_a_step_too(
    make_record: Callable[..., Record], crosses: tuple[Trace, ...], step: str | None
) -> None:
    record = make_record(MASK, crosses[0])
    assert describe(record).blocks[0].steps == ["1"]
    result = ask(record, (0, 0), None, step)
    assert result.step == "1"
    assert result.weights.dtype == np.float64
    assert result.on_cross == pytest.approx(1, abs=1e-12)


def test_three_passes_are_not_composed(make_record: Callable[..., Record], crosses: tuple[Trace, ...]) -> None:
    third = Trace("cca", 3, crosses[0].query, crosses[1].key)
    record = make_record(MASK, *crosses, third)
    assert describe(record).blocks[0].steps == ["1", "2", "3"]
    maps = {step: ask(record, (0, 0), None, step).weights for step in (None, "1", "2", "3")}
    assert np.array_equal(maps[None], maps["3"]), "the last is the default"
    assert not np.allclose(maps["3"], maps["2"])
    with pytest.raises(InvalidParameter, match="composed"):
        ask(record, (0, 0), None, "composed")


@pytest.mark.parametrize(
    ("point", "block"), [((32, 0), None), ((0, 24), None), ((-1, 0), None), ((0, 0), "nl"), ((0, 0), "apnb")]
)
def test_wrong_questions(
    make_record: Callable[..., Record], crosses: tuple[Trace, ...], point: tuple[int, int], block: str | None
) -> None:
    with pytest.raises(InvalidParameter):
        ask(make_record(MASK, *crosses), point, block, None)


def test_without_traces(make_record: Callable[..., Record]) -> None:
    with pytest.raises(InvalidParameter, match="attention=false"):
        describe(make_record(MASK))


def test_a_level_that_the_pyramid_lacks(make_record: Callable[..., Record]) -> None:
    trace = Trace("apnb", 1, torch.randn(4, 6, 8).half(), torch.randn(4, 5).half(), pool_scales=(1, 2))
    record = make_record(MASK, trace)
    assert describe(record).blocks[0].levels == ["all", "1", "2"]
    with pytest.raises(InvalidParameter, match="level"):
        ask(record, (0, 0), level="8")


def test_numbers_about_a_map() -> None:
    even = found([[0.25, 0.25], [0.25, 0.25]])
    assert even.entropy == pytest.approx(2)
    assert even.on_cross == pytest.approx(0.75)
    assert str(found([[0, 0], [0, 1]]).entropy) == "0.0", "without a minus"
    assert found([[0, 0], [0, 1]]).on_cross == 0
    assert even.on_cross is not None
    twice = found([[0.5, 0.5], [0.5, 0.5]])
    assert (twice.entropy, twice.on_cross) == (even.entropy, even.on_cross), "of the shares of whatever sum"


QUESTIONS = [
    {"block": "cca", "step": "1"},
    {"block": "cca", "step": "2"},
    {"block": "cca", "step": "composed"},
    {"block": "cca", "step": "composed", "compose": "rollout"},
    {"block": "apnb"},
    {"block": "apnb", "level": "3"},
    {"block": "nl"},
]


@pytest.fixture
def every_block(make_record: Callable[..., Record], crosses: tuple[Trace, ...]) -> Record:
    """Sky, a pole and a car, and blocks of every kind over a grid of 6 x 8."""
    mask = np.zeros((24, 32), np.uint8)
    mask[5:17, 9:14], mask[20:, 3:30] = 2, 8
    draw = torch.Generator().manual_seed(3)
    query, key = torch.randn(2, 4, 6, 8, generator=draw).half()
    pooled = torch.randn(4, 110, generator=draw).half()
    gamma = tuple(replace(cross, gamma=torch.tensor(-0.3)) for cross in crosses)
    pyramid = Trace("apnb", 1, query, pooled, 0.5, (1, 3, 6, 8))
    return make_record(mask, *gamma, pyramid, Trace("nl", 1, query, key, 0.5))


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: "-".join(question.values()))
def test_who_looks_at_a_cell_is_a_column(every_block: Record, question: dict[str, str]) -> None:
    rows = matrix_of(lambda point: ask(every_block, point, **question))
    columns = matrix_of(lambda point: ask(every_block, point, direction="to", **question))
    np.testing.assert_allclose(columns, rows.T, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("direction", ["from", "to"])
@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: "-".join(question.values()))
def test_a_class_is_the_average_of_its_pixels(every_block: Record, question: dict[str, str], direction: Any) -> None:
    for name, index in (("pole", 2), ("8", 8)):
        answer = ask(every_block, name, direction=direction, **question)
        pixels = np.argwhere(every_block.segmentation.mask == index)[:, ::-1].tolist()
        each = [ask(every_block, tuple(pixel), direction=direction, **question).weights for pixel in pixels]
        np.testing.assert_allclose(answer.weights, np.mean(each, axis=0), rtol=1e-9, atol=1e-15)
        assert (answer.class_id, answer.cell, answer.point, answer.on_cross) == (index, None, None, None)


def test_rollout_knows_gamma(every_block: Record) -> None:
    rollout = ask(every_block, (13, 9), "cca", compose="rollout")
    assert (rollout.compose, rollout.gamma) == ("rollout", pytest.approx(-0.3))
    assert rollout.weights.sum() == pytest.approx(1, abs=1e-12)
    assert ask(every_block, (13, 9), "cca").compose == "product"
    assert ask(every_block, (13, 9), "cca").gamma is None


def test_anchors_are_of_what_is_looked_at(every_block: Record) -> None:
    assert ask(every_block, (1, 1), "apnb").anchors is not None
    average = ask(every_block, "sky", "apnb").anchors
    assert average is not None
    assert sum(anchor.sum() for anchor in average.values()) == pytest.approx(1, abs=1e-12)
    assert ask(every_block, (1, 1), "apnb", direction="to").anchors is None


@pytest.mark.parametrize("name", ["tree", "99", "", "-1", "8.0"])
def test_a_class_that_no_pixel_has(every_block: Record, name: str) -> None:
    with pytest.raises(InvalidParameter, match=r"there are sky, \w+, car"):
        class_id(every_block, name)


@pytest.mark.parametrize("question", [{"block": "cca", "step": "1"}, {"block": "nl"}, {"block": "apnb"}])
def test_nothing_to_compose(every_block: Record, question: dict[str, str]) -> None:
    with pytest.raises(InvalidParameter, match="compose"):
        ask(every_block, (0, 0), compose="rollout", **question)


def test_the_map_of_a_class_is_made_once(every_block: Record) -> None:
    derived = Derived(1 << 24)
    first = attention_map(every_block, Question("pole", "nl"), derived)
    assert attention_map(every_block, Question("pole", "nl"), derived) is first
    for other in (Question("car", "nl"), Question("pole", "nl", direction="to"), Question("pole", "cca")):
        assert attention_map(every_block, other, derived) is not first


def test_a_question_that_has_no_answer_leaves_nothing(every_block: Record) -> None:
    derived = Derived(1 << 24)
    with pytest.raises(InvalidParameter):
        attention_map(every_block, Question("unicorn"), derived)
    assert len(derived) == 0


def test_dense_attention_of_many_cells_is_slow_until_it_is_there(
    every_block: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    derived = Derived(1 << 24)
    slow = [Question("pole", "nl"), Question((3, 3), "nl", direction="to"), Question("pole", "nl", direction="to")]
    assert not any(is_slow(every_block, question, derived) for question in slow), "48 cells are few"
    monkeypatch.setattr("app.api.attention.MOST_QUICK", 48 * 48 - 1)
    quick = [Question((3, 3), "nl"), Question("pole", "apnb"), Question("pole", "cca", direction="to")]
    assert not any(is_slow(every_block, question, derived) for question in quick)
    for question in slow:
        assert is_slow(every_block, question, derived)
        attention_map(every_block, question, derived)
        assert not is_slow(every_block, question, derived)
    assert not is_slow(every_block, Question((9, 9), "nl", direction="to"), derived)
    (dense,) = (trace for trace in every_block.segmentation.traces if trace.block == "nl")
    known = (replace(dense, logsumexp=torch.zeros(6, 8)),)
    told = replace(every_block, segmentation=replace(every_block.segmentation, traces=known))
    assert not is_slow(told, Question((9, 9), "nl", direction="to"), Derived(1 << 20))
    assert is_slow(told, Question("pole", "nl", direction="to"), Derived(1 << 20))
