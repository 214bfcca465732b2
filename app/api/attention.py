"""A record's attention: which block a question means, and the weights that answer it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from app.api.derived import Derived
from app.api.record import Record
from app.errors import InvalidParameter
from models import Trace, attention_maps, attention_totals
from models.attention_maps import Weights
from models.attention_matrices import CrissCrossMatrix, PyramidMatrix

MOST_QUICK = 1 << 24  # weights of dense attention that are made in less than a tenth of a second
COMPOSED = "composed"
Compose = Literal["product", "rollout"]
Direction = Literal["from", "to"]
Map = NDArray[np.float64]


@dataclass(frozen=True)
class Question:
    """
    Attributes:
        about: a pixel (x, y), or a class by name or id, for the average over its pixels
        block, step, compose: None for the block's own default
        direction: what that looks at, or who looks at it
    """

    about: tuple[int, int] | str
    block: str | None = None
    step: str | None = None
    compose: Compose | None = None
    level: str = "all"
    direction: Direction = "from"


@dataclass(frozen=True)
class AttentionMap:
    """
    Attributes:
        weights: [h, w] on the block's grid
        block, step, compose, level: what was chosen, None where the block has no such choice
        point, cell: the pixel (x, y) and its (row, column) in the grid, None for a class
        class_id: None for a pixel
        anchors: of what is looked at through a pyramid, weights by pool scale
        gamma: of a rollout, the factor beside the residual
    """

    block: str
    weights: Map
    direction: Direction = "from"
    step: str | None = None
    compose: Compose | None = None
    level: str | None = None
    point: tuple[int, int] | None = None
    cell: tuple[int, int] | None = None
    class_id: int | None = None
    anchors: Mapping[str, Map] | None = None
    gamma: float | None = None

    @property
    def nbytes(self) -> int:
        return self.weights.nbytes

    @property
    def on_cross(self) -> float | None:
        """Share of the weight on the cell's own row and column."""
        if self.cell is None:
            return None
        row, column = self.cell
        on_it = self.weights[row].sum() + self.weights[:, column].sum() - self.weights[self.cell]
        return float(on_it / max(self.weights.sum(), np.finfo(np.float64).tiny))

    @property
    def entropy(self) -> float:
        """In bits, of the shares of the sum: log2 of how many cells it would be, had all the same."""
        positive = self.weights[self.weights > 0]
        shares = positive / positive.sum()
        return max(0.0, float(-(shares * np.log2(shares)).sum()))  # rounded, it could be a little less, or a minus 0


def attention_map(record: Record, question: Question, derived: Derived) -> AttentionMap:
    """The answer to a question.

    Raises:
        InvalidParameter: the point is outside the image, no pixel has the class, or the result has no such block,
            step or level
    """
    if isinstance(question.about, str):  # as much work as all its cells together
        return derived.get(record.id, question, lambda: _answer(record, question, derived))
    return _answer(record, question, derived)


def is_slow(record: Record, question: Question, derived: Derived) -> bool:
    """Whether an answer takes seconds: dense attention of many cells, of a class or who looks, not yet known.

    Raises:
        InvalidParameter: the result has no such block
    """
    trace = traces_of(record, question.block)[0]
    if trace.block == "cca" or trace.pool_scales or (trace.grid[0] * trace.grid[1]) ** 2 <= MOST_QUICK:
        return False
    if isinstance(question.about, str):
        return not derived.has(record.id, question)
    return question.direction == "to" and trace.logsumexp is None and not derived.has(record.id, _name("totals", trace))


def _answer(record: Record, question: Question, derived: Derived) -> AttentionMap:
    traces = traces_of(record, question.block)
    step = _step(traces, question.step)
    compose = _compose(step, question.compose)
    level = _level(traces[0], question.level)
    asked = _Asked(record, traces if step == COMPOSED else [traces[int(step or 1) - 1]], question, derived)
    anchors = None
    if traces[0].pool_scales:
        weights, anchors = asked.of_pyramid(level or "all")
    else:
        weights = asked.of_cells(compose == "rollout")
    gamma = traces[0].gamma
    return AttentionMap(
        block=traces[0].block,
        weights=weights,
        direction=question.direction,
        step=step,
        compose=compose,
        level=level,
        point=None if isinstance(question.about, str) else question.about,
        cell=asked.cell,
        class_id=asked.class_id,
        anchors=anchors,
        gamma=float(gamma) if compose == "rollout" and gamma is not None else None,
    )


class _Asked:
    """A question together with the traces that it is about: one, or two to compose.

    What a cell looks at is one row of the attention, and is computed alone. Who looks at it is a column, which the
    totals of all rows give. Of a class many rows or columns are averaged: a product with the matrix.
    """

    def __init__(self, record: Record, traces: list[Trace], question: Question, derived: Derived) -> None:
        self.cell: tuple[int, int] | None = None
        self.class_id: int | None = None
        self._record, self._traces, self._derived = record, traces, derived
        self._is_from = question.direction == "from"
        grid = traces[0].grid
        if isinstance(question.about, str):
            self.class_id = class_id(record, question.about)
            self._given = attention_maps.cells_of(record.segmentation.mask == self.class_id, grid)
        else:
            self.cell = _cell(record, question.about, grid)
            self._given = attention_maps.one_cell(self.cell, grid)

    def of_pyramid(self, level: str) -> tuple[Map, Mapping[str, Map] | None]:
        """Weights through one level or all, and the anchors of all, which only what is looked at has."""
        trace, scale = self._traces[0], None if level == "all" else int(level)
        if self.cell is None:
            matrix = self._derived.get(self._record.id, _name("matrix", trace), lambda: PyramidMatrix(trace))
            if not self._is_from:
                return matrix.looking_at(self._given, scale).numpy(), None
            anchors = matrix.anchors(self._given)
        elif self._is_from:
            anchors = attention_maps.anchor_weights(trace, self.cell)
        else:
            return attention_totals.pyramid_map_to(trace, self._totals(trace), self.cell, scale).numpy(), None
        shown = anchors if scale is None else {scale: anchors[scale]}
        by_scale = {str(scale): anchor.numpy() for scale, anchor in anchors.items()}
        return attention_maps.back_projected_map(shown, trace.grid).numpy(), by_scale

    def of_cells(self, is_rollout: bool) -> Map:
        if self.cell is not None and self._is_from:
            return self._row(self.cell, is_rollout)
        # Read from the right, A2 A1 v; from the left, v A2 A1.
        seen = self._given
        for trace in reversed(self._traces) if self._is_from else self._traces:
            attended = self._dense(trace) if trace.block != "cca" else self._criss_cross(trace, seen)
            seen = attention_maps.with_residual(trace, attended, seen) if is_rollout else attended
        return seen.numpy()

    def _criss_cross(self, trace: Trace, seen: Weights) -> Weights:
        if self.cell is None:
            matrix = self._derived.get(self._record.id, _name("matrix", trace), lambda: CrissCrossMatrix(trace))
            return matrix.looked_at(seen) if self._is_from else matrix.looking_at(seen)
        totals = self._totals(trace)
        if seen is self._given:
            return attention_totals.criss_cross_map_to(trace, totals, self.cell)
        return attention_totals.criss_cross_looking_at(trace, totals, seen, self.cell)

    def _dense(self, trace: Trace) -> Weights:
        if self._is_from:
            return attention_totals.dense_looked_at(trace, self._given)
        if self.cell is None:
            return attention_totals.dense_looking_at(trace, self._totals(trace), self._given)
        return attention_totals.dense_map_to(trace, self._totals(trace), self.cell)

    def _totals(self, trace: Trace) -> Weights:
        return self._derived.get(self._record.id, _name("totals", trace), lambda: attention_totals.totals_of(trace))

    def _row(self, cell: tuple[int, int], is_rollout: bool) -> Map:
        if self._traces[0].block != "cca":
            return attention_maps.dense_map(self._traces[0], cell).numpy()
        if len(self._traces) == 1:
            return attention_maps.criss_cross_map(self._traces[0], cell).numpy()
        first, second = self._traces
        if is_rollout:
            return attention_maps.rollout_criss_cross_map(first, second, cell).numpy()
        return attention_maps.composed_criss_cross_map(first, second, cell).numpy()


def _name(what: str, trace: Trace) -> tuple[str, str, int]:
    return what, trace.block, trace.step


def blocks_of(record: Record) -> list[str]:
    """
    Raises:
        InvalidParameter: it has none
    """
    traces = record.segmentation.traces
    if not traces:
        raise InvalidParameter(
            f"result {record.id} has no attention: it was made with attention=false, by a model without any, or in "
            "passes of which none saw the whole image as usual; with mode=whole one does, unless scales leave out 1"
        )
    return list(dict.fromkeys(trace.block for trace in traces))


def traces_of(record: Record, block: str | None) -> list[Trace]:
    """The traces of one block in order of its steps; without a name, of the last block."""
    blocks = blocks_of(record)
    if block is not None and block not in blocks:
        raise InvalidParameter(f"the model has no block {block!r}; it has {', '.join(blocks)}")
    return [trace for trace in record.segmentation.traces if trace.block == (block or blocks[-1])]


def steps_of(traces: list[Trace]) -> list[str]:
    """Of criss-cross attention, the one block that may run more than once."""
    if traces[0].block != "cca":
        return []
    return [str(trace.step) for trace in traces] + [COMPOSED] * (len(traces) == 2)


def levels_of(trace: Trace) -> list[str]:
    return ["all", *map(str, trace.pool_scales)] if trace.pool_scales else []


def class_id(record: Record, name: str) -> int:
    """The id of a class given by name or id that some pixel of the mask has.

    Raises:
        InvalidParameter: none has; the message lists those that some have
    """
    names = record.spec.classes.names
    found = names.index(name) if name in names else int(name) if name.isdecimal() else -1
    present = np.flatnonzero(record.areas).tolist()
    if found not in present:
        there = ", ".join(names[index] for index in present)
        raise InvalidParameter(f"class: no pixel of the mask is {name!r}; there are {there}")
    return found


def _cell(record: Record, point: tuple[int, int], grid: tuple[int, int]) -> tuple[int, int]:
    width, height = record.size
    for name, value, last in zip(("x", "y"), point, (width - 1, height - 1), strict=True):
        if not 0 <= value <= last:
            limit = 0 if value < 0 else last
            raise InvalidParameter(
                f"{name} is {value}, outside the image of {width}x{height}", limit=limit, actual=value
            )
    return attention_maps.cell_of(*point, width, height, grid)


def _step(traces: list[Trace], step: str | None) -> str | None:
    steps = steps_of(traces)
    if step is not None and step not in steps:
        raise InvalidParameter(f"the block has no step {step!r}; it has {', '.join(steps) or 'only one'}")
    return step or (steps[-1] if steps else None)


def _compose(step: str | None, compose: Compose | None) -> Compose | None:
    if step == COMPOSED:
        return compose or "product"
    if compose is not None:
        why = f"step {step} is a single step" if step else "the block has no steps"
        raise InvalidParameter(f"compose is {compose}, but {why}: there is nothing to compose")
    return None


def _level(trace: Trace, level: str) -> str | None:
    levels = levels_of(trace)
    if level not in ("all", *levels):
        raise InvalidParameter(f"the block has no level {level!r}; it has {', '.join(levels) or 'none'}")
    return level if levels else None
