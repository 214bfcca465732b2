"""A block's whole attention, for questions that no single row of it answers.

Who looks at a cell is a column of the matrix A, and the average over a class's cells a mean of many rows or columns.
Both are products with a distribution over cells, v: `looked_at` is v A, `looking_at` is A v. A matrix is made
once for a trace; each product then reads it once.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from models.attention_maps import back_projected_map, by_scale
from models.ops.attention import pooling_matrix
from models.traces import Trace

MOST_EXACT = 1 << 21  # weights that are kept in float64; more are kept in float32, computed in float64
CHUNK = 1 << 23  # weights that non-local attention computes at a time


class Matrix(Protocol):
    @property
    def nbytes(self) -> int: ...

    def looked_at(self, cells: Tensor) -> Tensor:
        """What the cells [H, W], weighted so, look at on average: [H, W] float64."""

    def looking_at(self, cells: Tensor) -> Tensor:
        """How much each cell looks at these, weighted so: [H, W] float64."""


def matrix_of(trace: Trace) -> Matrix:
    if trace.pool_scales:
        return PyramidMatrix(trace)
    return CrissCrossMatrix(trace) if trace.block == "cca" else DenseMatrix(trace)


class CrissCrossMatrix:
    """Kept as two arms: of H W rows with H W weights each, only H + W - 1 are not zero."""

    def __init__(self, trace: Trace) -> None:
        query, key = trace.query.double(), trace.key.double()
        columns = torch.einsum("chw,ckw->whk", query, key).mul_(trace.scale)
        rows = torch.einsum("chw,chk->hwk", query, key).mul_(trace.scale)
        columns.diagonal(dim1=1, dim2=2).fill_(float("-inf"))  # the cell itself counts once: in its row
        total = torch.logaddexp(columns.logsumexp(2).T, rows.logsumexp(2))  # [H, W]
        kept = _kept_as(columns.numel() + rows.numel())
        # NumPy's: torch multiplies many matrices with a vector each several times slower.
        self._columns = columns.sub_(total.T[:, :, None]).exp_().to(kept).numpy()  # [W, H, H]
        self._rows = rows.sub_(total[:, :, None]).exp_().to(kept).numpy()  # [H, W, W]

    @property
    def nbytes(self) -> int:
        return self._columns.nbytes + self._rows.nbytes

    def looked_at(self, cells: Tensor) -> Tensor:
        given = cells.numpy().astype(self._rows.dtype)
        seen = np.vecmat(given.T, self._columns).T + np.vecmat(given, self._rows)
        return torch.from_numpy(seen.astype(np.float64))

    def looking_at(self, cells: Tensor) -> Tensor:
        given = cells.numpy().astype(self._rows.dtype)
        seen = np.matvec(self._columns, given.T).T + np.matvec(self._rows, given)
        return torch.from_numpy(seen.astype(np.float64))


class PyramidMatrix:
    """Kept as the weights on anchors; pooling, the matrix's other factor, is the same for every trace."""

    def __init__(self, trace: Trace) -> None:
        weights = (trace.query.double().flatten(1).T @ trace.key.double()).mul_(trace.scale).softmax(1)
        self._weights = weights.to(_kept_as(weights.numel()))  # [HW, S]
        self._grid, self._scales = trace.grid, trace.pool_scales

    @property
    def nbytes(self) -> int:
        return self._weights.nbytes

    def anchors(self, cells: Tensor) -> dict[int, Tensor]:
        """What the cells look at on average: scale s to [s, s]."""
        weights = cells.flatten().to(self._weights.dtype) @ self._weights
        return by_scale(weights.double(), self._scales)

    def looked_at(self, cells: Tensor) -> Tensor:
        return back_projected_map(self.anchors(cells), self._grid)

    def looking_at(self, cells: Tensor, level: int | None = None) -> Tensor:
        """
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


class DenseMatrix:
    """Kept as the normaliser of each row alone: at 128x256 cells there are a thousand million weights."""

    def __init__(self, trace: Trace) -> None:
        cells = trace.grid[0] * trace.grid[1]
        kept = _kept_as(cells * cells)
        self._query = trace.query.flatten(1).to(kept).mul(trace.scale).T.contiguous()  # [HW, C]
        self._key = trace.key.flatten(1).to(kept)  # [C, HW]
        self._grid = trace.grid
        rows = [(part @ self._key).logsumexp(1) for part in self._query.split(max(1, CHUNK // cells))]  # type: ignore[no-untyped-call]
        self._total = torch.cat(rows)

    @property
    def nbytes(self) -> int:
        return self._query.nbytes + self._key.nbytes + self._total.nbytes

    def looked_at(self, cells: Tensor) -> Tensor:
        given = cells.flatten().to(self._total.dtype)
        seen = torch.zeros_like(given)
        for index in self._chunks(given):
            logits = self._query[index] @ self._key - self._total[index, None]
            seen += given[index] @ logits.exp_()
        return seen.double().view(self._grid)

    def looking_at(self, cells: Tensor) -> Tensor:
        given = cells.flatten().to(self._total.dtype)
        seen = torch.zeros_like(given)
        for index in self._chunks(given):
            logits = self._query @ self._key[:, index] - self._total[:, None]
            seen += logits.exp_() @ given[index]
        return seen.double().view(self._grid)

    def _chunks(self, given: Tensor) -> tuple[Tensor, ...]:
        """The cells that are asked about, as many at a time as memory bears."""
        asked = given.nonzero().squeeze(1)
        chunks: tuple[Tensor, ...] = asked.split(max(1, CHUNK // len(given)))  # type: ignore[no-untyped-call]
        return chunks


def _kept_as(weights: int) -> torch.dtype:
    return torch.float64 if weights <= MOST_EXACT else torch.float32
