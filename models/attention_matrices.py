"""A block's whole attention, for classes: the average over many rows or columns of it.

Both are products with a distribution v over cells: `looked_at` is v A (for a pyramid `anchors` is as much of it as its
anchors), and `looking_at` is A v. A matrix is made once for a trace; each product reads as much of it as v needs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.attention_maps import anchor_shares, by_scale
from models.attention_totals import computed_as, criss_cross_weights, totals_of
from models.traces import Trace

Array = NDArray[np.floating]


class CrissCrossMatrix:
    """Kept as two arms: of H W rows with H W weights each, only H + W - 1 are not zero."""

    def __init__(self, trace: Trace) -> None:
        # [W, H, H] and [H, W, W], of each cell what it looks at
        self._columns, self._rows = (arm.numpy() for arm in criss_cross_weights(trace, totals_of(trace)))

    @property
    def nbytes(self) -> int:
        return self._columns.nbytes + self._rows.nbytes

    def looked_at(self, cells: Tensor) -> Tensor:
        """What the cells [H, W], weighted so, look at on average: [H, W] float64."""
        return self._along_both(cells, _looked_at)

    def looking_at(self, cells: Tensor) -> Tensor:
        """How much each cell looks at these, weighted so: [H, W] float64."""
        return self._along_both(cells, _looking_at)

    def _along_both(self, cells: Tensor, product: Callable[[Array, slice, Array], Array]) -> Tensor:
        given = cells.numpy().astype(self._rows.dtype)
        down, across = _box(given)
        some, seen = given[down, across], np.zeros_like(given)
        seen[down] += product(self._rows[down], across, np.ascontiguousarray(some))
        seen[:, across] += product(self._columns[across], down, np.ascontiguousarray(some.T)).T
        return torch.from_numpy(seen.astype(np.float64))


class PyramidMatrix:
    """Kept as the weights on anchors; pooling, the matrix's other factor, is the same for every trace."""

    def __init__(self, trace: Trace) -> None:
        dtype = computed_as(trace)
        # With each anchor's cells side by side a product takes half the time.
        logits = (trace.key.to(dtype) * trace.scale).T @ trace.query.to(dtype).flatten(1)
        self._weights = logits.softmax(0)  # [S, HW]
        self._grid, self._scales = trace.grid, trace.pool_scales

    @property
    def nbytes(self) -> int:
        return self._weights.nbytes

    def anchors(self, cells: Tensor) -> dict[int, Tensor]:
        """What the cells [H, W], weighted so, look at on average: scale s to [s, s]."""
        weights = self._weights @ cells.flatten().to(self._weights.dtype)
        return by_scale(weights.double(), self._scales)

    def looking_at(self, cells: Tensor, level: int | None = None) -> Tensor:
        """How much each cell looks at these, weighted so: [H, W] float64.

        Args:
            level: through the anchors of this scale alone
        """
        given = anchor_shares(cells, self._scales, level).to(self._weights.dtype)
        return (given @ self._weights).double().view(self._grid)


# NumPy's einsum: its vecmat and matvec are slower on whole matrices, torch's bmm several times so.
def _looked_at(lines: Array, ends: slice, given: Array) -> Array:
    """Within each of the lines [l, n, n]: v A, of a v that is 0 outside the ends."""
    seen: Array = np.einsum("lij,li->lj", lines[:, ends], given)
    return seen


def _looking_at(lines: Array, ends: slice, given: Array) -> Array:
    """Within each of the lines: A v."""
    seen: Array = np.einsum("lij,lj->li", lines[:, :, ends], given)
    return seen


def _box(given: Array) -> tuple[slice, slice]:
    """The rows and columns that all weights above 0 lie in."""
    down, across = (np.flatnonzero(given.any(axis)) for axis in (1, 0))
    if not down.size:
        return slice(0), slice(0)
    return slice(int(down[0]), int(down[-1]) + 1), slice(int(across[0]), int(across[-1]) + 1)
