"""A block's whole attention, for classes: the average over many rows or columns of it.

Both are products with a distribution over cells, v: `looked_at` is v A, `looking_at` is A v. A matrix is made
once for a trace; each product then reads as much of it as v needs.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.attention_maps import back_projected_map, by_scale
from models.attention_totals import computed_as, criss_cross_logits, exponentials
from models.ops.attention import pooling_matrix
from models.traces import Trace

Array = NDArray[np.floating]


class CrissCrossMatrix:
    """Kept as two arms: of H W rows with H W weights each, only H + W - 1 are not zero."""

    def __init__(self, trace: Trace) -> None:
        columns, rows = criss_cross_logits(trace)
        self._columns, across, of_columns = _exponentials(columns)
        self._rows, along, of_rows = _exponentials(rows)
        total = torch.logaddexp(of_columns.T, of_rows)
        # What each arm lacks; to multiply the vectors by it is cheaper than the weights.
        self._of_columns, self._of_rows = (across.T - total).exp_().numpy(), (along - total).exp_().numpy()

    @property
    def nbytes(self) -> int:
        return self._columns.nbytes + self._rows.nbytes + self._of_columns.nbytes + self._of_rows.nbytes

    def looked_at(self, cells: Tensor) -> Tensor:
        """What the cells [H, W], weighted so, look at on average: [H, W] float64."""
        given = cells.numpy().astype(self._rows.dtype)
        down, across = _box(given)
        seen = np.zeros_like(given)
        # NumPy's einsum: its vecmat and matvec are slower on whole matrices, torch's bmm several times so.
        columns = np.ascontiguousarray((given * self._of_columns)[down, across].T)
        seen[:, across] += np.einsum("wij,wi->wj", self._columns[across, down], columns).T
        rows = np.ascontiguousarray((given * self._of_rows)[down, across])
        seen[down] += np.einsum("hij,hi->hj", self._rows[down, across], rows)
        return torch.from_numpy(seen.astype(np.float64))

    def looking_at(self, cells: Tensor) -> Tensor:
        """How much each cell looks at these, weighted so: [H, W] float64."""
        given = cells.numpy().astype(self._rows.dtype)
        down, across = _box(given)
        seen = np.zeros_like(given)
        columns = np.ascontiguousarray(given[down, across].T)
        seen[:, across] += np.einsum("wij,wj->wi", self._columns[across, :, down], columns).T
        seen *= self._of_columns
        rows = np.ascontiguousarray(given[down, across])
        seen[down] += np.einsum("hij,hj->hi", self._rows[down, :, across], rows) * self._of_rows[down]
        return torch.from_numpy(seen.astype(np.float64))


class PyramidMatrix:
    """Kept as the weights on anchors; pooling, the matrix's other factor, is the same for every trace."""

    def __init__(self, trace: Trace) -> None:
        kept = computed_as(trace.key.shape[-1] * trace.grid[0] * trace.grid[1])
        logits = trace.query.to(kept).flatten(1).T @ (trace.key.to(kept) * trace.scale)
        self._weights = logits.softmax(1)  # [HW, S]
        self._grid, self._scales = trace.grid, trace.pool_scales

    @property
    def nbytes(self) -> int:
        return self._weights.nbytes

    def anchors(self, cells: Tensor) -> dict[int, Tensor]:
        """What the cells [H, W], weighted so, look at on average: scale s to [s, s]."""
        weights = cells.flatten().to(self._weights.dtype) @ self._weights
        return by_scale(weights.double(), self._scales)

    def looked_at(self, cells: Tensor) -> Tensor:
        """What the cells, weighted so, look at on average: [H, W] float64."""
        return back_projected_map(self.anchors(cells), self._grid)

    def looking_at(self, cells: Tensor, level: int | None = None) -> Tensor:
        """How much each cell looks at these, weighted so: [H, W] float64.

        Args:
            level: through the anchors of this scale alone
        """
        height, width = self._grid
        shares = [
            (pooling_matrix(height, scale) @ cells @ pooling_matrix(width, scale).T) * (level in (None, scale))
            for scale in self._scales
        ]
        given = torch.cat([share.flatten() for share in shares]).to(self._weights.dtype)
        return (self._weights @ given).double().view(self._grid)


def _exponentials(arm: Iterator[Tensor]) -> tuple[Array, Tensor, Tensor]:
    """Of an arm's logits: exp(logits - max) [lines, n, n], the max and the log-sum-exp [lines, n]."""
    parts = [(logits, *exponentials(logits)) for logits in arm]
    kept, largest, totals = (torch.cat(part) for part in zip(*parts, strict=True))
    return kept.numpy(), largest, totals


def _box(given: Array) -> tuple[slice, slice]:
    """The rows and columns that all weights above 0 lie in."""
    down, across = (np.flatnonzero(given.any(axis)) for axis in (1, 0))
    if not down.size:
        return slice(0), slice(0)
    return slice(int(down[0]), int(down[-1]) + 1), slice(int(across[0]), int(across[-1]) + 1)
