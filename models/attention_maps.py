"""From a trace and a query cell to the weights that the network used there: pure functions on the host.

All is computed in float64, so that small weights do not vanish. A cell is (row, column) in the trace's grid. A
block's attention is a matrix A, whose row is what a cell looks at (sum 1), and whose column is who looks at it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.ops.attention import pooling_matrix
from models.traces import Trace

Cell = tuple[int, int]
Weights: TypeAlias = Tensor  # [H, W] float64


def cell_of(x: float, y: float, width: int, height: int, grid: tuple[int, int]) -> Cell:
    """The grid cell that an image's pixel (x, y) falls into; the grid covers the whole image."""
    rows, columns = grid
    return min(rows - 1, int((y + 0.5) * rows / height)), min(columns - 1, int((x + 0.5) * columns / width))


def cells_of(member: NDArray[np.bool_], grid: tuple[int, int]) -> Tensor:
    """The share of an image's true pixels that fall into each cell: [h, w], sum 1 if there are any.

    Args:
        member: [H, W] of the image
    """
    pixels = member.view(np.uint8)
    down, across = (_starts(size, cells) for size, cells in zip(member.shape, grid, strict=True))
    running = np.zeros((grid[0], member.shape[1] + 1), dtype=np.int64)
    # A row of the grid at a time: to add up rows of pixels is much faster than to add up within them.
    rows = [pixels[start:stop].sum(0, dtype=np.uint16) for start, stop in pairwise(down)]
    np.cumsum(rows, axis=1, out=running[:, 1:])
    counts = np.diff(running[:, across], axis=1)
    return torch.from_numpy(counts / max(1, counts.sum()))


def _starts(size: int, cells: int) -> list[int]:
    """Where each cell's pixels begin along an axis, and where they end; a small image has none in some."""
    index = ((np.arange(size) + 0.5) * cells / size).astype(np.int64)
    starts: list[int] = np.searchsorted(index, np.arange(cells + 1)).tolist()
    return starts


def one_cell(cell: Cell, grid: tuple[int, int]) -> Tensor:
    """[H, W], 1 at the cell."""
    weights = torch.zeros(grid, dtype=torch.float64)
    weights[cell] = 1.0
    return weights


def criss_cross_map(trace: Trace, cell: Cell) -> Tensor:
    """What one pass of criss-cross attention looks at from a cell: [H, W], zero off the cell's row and column."""
    row, column = cell
    query = trace.query[:, row, column].double()
    on_column = query @ trace.key[:, :, column].double()
    on_column[row] = float("-inf")  # the cell itself counts once: in its row
    on_row = query @ trace.key[:, row].double()
    weights = torch.cat([on_column, on_row]).mul(trace.scale).softmax(0)
    return _cross(weights[: len(on_column)], weights[len(on_column) :], cell)


def composed_criss_cross_map(first: Trace, second: Trace, cell: Cell) -> Tensor:
    """What two passes look at together: the cell's row of A2 A1, exactly; [H, W], nowhere zero.

    The second pass looks at the H + W - 1 cells of the cross, each of which saw its own cross in the
    first: no other rows of A1 are needed. This follows the attention alone, without gamma, values
    and residual. It is how information reaches a cell from anywhere (CCNet, section 3.3).
    """
    row, column = cell
    weights = criss_cross_map(second, cell)
    on_row, on_column = weights[row].clone(), weights[:, column].clone()
    on_column[row] = 0.0  # in its row already
    columns_of_row, along_row = _attention_of_row(first, row)
    rows_of_column, along_column = _attention_of_column(first, column)
    seen = on_row * columns_of_row + on_column[:, None] * rows_of_column
    seen[row] += on_row @ along_row
    seen[:, column] += on_column @ along_column
    return seen


def rollout_criss_cross_map(first: Trace, second: Trace, cell: Cell) -> Tensor:
    """What two passes look at together, with their residuals: [H, W], sum 1.

    The cell's row of R2 R1, where R = (|gamma| A + I) / (1 + |gamma|): a pass adds gamma times what it looks at to
    what was there, which is a look at the cell itself. So it is attention rollout (arXiv 2005.00928), its two equal
    halves replaced by the weights that this network has learnt. The value projection is in neither; with a gamma
    near 0, as trained networks often have it, nearly all weight stays at the cell.
    """
    first_share, second_share = _context_share(first), _context_share(second)
    seen = first_share * second_share * composed_criss_cross_map(first, second, cell)
    seen += first_share * (1 - second_share) * criss_cross_map(first, cell)
    seen += second_share * (1 - first_share) * criss_cross_map(second, cell)
    seen[cell] += (1 - first_share) * (1 - second_share)
    return seen


def with_residual(trace: Trace, attended: Tensor, before: Tensor) -> Tensor:
    """One pass of `rollout_criss_cross_map`, given A times what was before."""
    share = _context_share(trace)
    return share * attended + (1 - share) * before


def dense_map(trace: Trace, cell: Cell) -> Tensor:
    """What non-local attention looks at from a cell: [H, W]."""
    query = trace.query[:, cell[0], cell[1], None, None]
    return affinity(query, trace.key).mul_(trace.scale).flatten().softmax(0).view(trace.grid)


def anchor_weights(trace: Trace, cell: Cell) -> dict[int, Tensor]:
    """What pyramid attention looks at from a cell: scale s to its anchors' weights [s, s]; together they sum to 1."""
    query = trace.query[:, cell[0], cell[1]].double()
    return by_scale((trace.scale * (query @ trace.key.double())).softmax(0), trace.pool_scales)


def by_scale(anchors: Tensor, scales: tuple[int, ...]) -> dict[int, Tensor]:
    """Anchors [S] as scale s to [s, s]."""
    parts = anchors.split([scale * scale for scale in scales])  # type: ignore[no-untyped-call]
    return {scale: part.view(scale, scale) for scale, part in zip(scales, parts, strict=True)}


def anchor_shares(cells: Tensor, scales: tuple[int, ...], level: int | None = None) -> Tensor:
    """The share of each anchor that comes from the given cells: their weights, pooled as keys are, [S] float64.

    Args:
        cells: weights of the cells, [H, W] float64
        level: for anchors of this scale alone; those of others get 0
    """
    height, width = cells.shape
    shares = [
        (pooling_matrix(height, scale) @ cells @ pooling_matrix(width, scale).T) * (level in (None, scale))
        for scale in scales
    ]
    return torch.cat([share.flatten() for share in shares])


def back_projected_map(anchors: dict[int, Tensor], grid: tuple[int, int]) -> Tensor:
    """Anchors' weights spread over the cells that each averaged: [H, W], the sum unchanged.

    Pooling is linear, so a weight w on an anchor is a weight w / n on each of its n cells: exact.
    """
    height, width = grid
    return torch.stack(
        [pooling_matrix(height, scale).T @ weights @ pooling_matrix(width, scale) for scale, weights in anchors.items()]
    ).sum(0)


def affinity(one: Tensor, other: Tensor) -> Tensor:
    """Sum over channels of [C, 1 or H, 1 or W] times [C, H, W]: [H, W] float64.

    A channel at a time stays in the cache; all in float64 at once would take ten times as long.
    """
    total = torch.zeros(other.shape[1:], dtype=torch.float64)
    for factor, channel in zip(one.double(), other, strict=True):
        total.addcmul_(factor.expand_as(total), channel.float().double())
    return total


def _cross(on_column: Tensor, on_row: Tensor, cell: Cell) -> Tensor:
    """A map [H, W] of the weights on a cell's column [H] and row [W]; of its own weight, the row's counts."""
    weights = on_row.new_zeros(len(on_column), len(on_row))
    weights[:, cell[1]] = on_column
    weights[cell[0]] = on_row
    return weights


def _attention_of_row(trace: Trace, row: int) -> tuple[Tensor, Tensor]:
    """All attention of a row's cells: [H, W] up and down their columns without themselves; [W, W] along the row."""
    query = trace.query[:, row].double()
    off = affinity(query[:, None, :], trace.key)
    off[row] = float("-inf")
    along = query.T @ trace.key[:, row].double()
    weights = torch.cat([off.T, along], dim=1).mul_(trace.scale).softmax(1)
    return weights[:, : len(off)].T, weights[:, len(off) :]


def _attention_of_column(trace: Trace, column: int) -> tuple[Tensor, Tensor]:
    """All attention of a column's cells: [H, W] left and right of it without themselves; [H, H] along the column."""
    query = trace.query[:, :, column].double()
    off = affinity(query[:, :, None], trace.key)
    off[:, column] = float("-inf")
    along = query.T @ trace.key[:, :, column].double()
    weights = torch.cat([off, along], dim=1).mul_(trace.scale).softmax(1)
    return weights[:, : off.shape[1]], weights[:, off.shape[1] :]


def _context_share(trace: Trace) -> float:
    gamma = 1.0 if trace.gamma is None else abs(float(trace.gamma))
    return gamma / (1 + gamma)
