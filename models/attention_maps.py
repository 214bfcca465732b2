"""From a trace and a query cell to the weights that the network used there: pure functions on the host.

Weights are float64, so that small ones do not vanish, and sum to 1 unless stated otherwise. A cell is (row,
column) in the trace's grid.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.traces import Trace

Cell = tuple[int, int]


def cell_of(x: float, y: float, width: int, height: int, grid: tuple[int, int]) -> Cell:
    """The grid cell that an image's pixel (x, y) falls into; the grid covers the whole image."""
    rows, columns = grid
    return min(rows - 1, int((y + 0.5) * rows / height)), min(columns - 1, int((x + 0.5) * columns / width))


def criss_cross_map(trace: Trace, cell: Cell) -> Tensor:
    """What one pass of criss-cross attention looks at from a cell: [H, W], zero off the cell's row and column."""
    row, column = cell
    return _criss_cross_rows(trace, torch.tensor([row]), torch.tensor([column]))[0]


def composed_criss_cross_map(first: Trace, second: Trace, cell: Cell) -> Tensor:
    """What two passes look at together: the cell's row of A2 A1, exactly; [H, W], nowhere zero.

    The second pass looks at the H + W - 1 cells of the cross, each of which saw its own cross in the
    first: no other rows of A1 are needed. This follows the attention alone, without gamma, values
    and residual. It is how information reaches a cell from anywhere (CCNet, section 3.3).
    """
    row, column = cell
    height, width = first.grid
    rows = torch.cat([torch.full((width,), row), torch.arange(height)])
    columns = torch.cat([torch.arange(width), torch.full((height,), column)])
    weights = criss_cross_map(second, cell)[rows, columns]
    weights[width + row] = 0.0  # the cell itself, listed with its row already
    return torch.einsum("n,nhw->hw", weights, _criss_cross_rows(first, rows, columns))


def dense_map(trace: Trace, cell: Cell) -> Tensor:
    """What non-local attention looks at from a cell: [H, W]."""
    weights = _weights(trace, cell, trace.key.double().flatten(1))
    return weights.view(trace.grid)


def anchor_weights(trace: Trace, cell: Cell) -> dict[int, Tensor]:
    """What pyramid attention looks at from a cell: scale s to its anchors' weights [s, s]; together they sum to 1."""
    weights = _weights(trace, cell, trace.key.double())
    parts = weights.split([scale * scale for scale in trace.pool_scales])  # type: ignore[no-untyped-call]
    return {scale: part.view(scale, scale) for scale, part in zip(trace.pool_scales, parts, strict=True)}


def back_projected_map(anchors: dict[int, Tensor], grid: tuple[int, int]) -> Tensor:
    """Anchors' weights spread over the cells that each averaged: [H, W], the sum unchanged.

    Pooling is linear, so a weight w on an anchor is a weight w / n on each of its n cells: exact.
    """
    height, width = grid
    return torch.stack(
        [
            _pooling_matrix(height, scale).T @ weights @ _pooling_matrix(width, scale)
            for scale, weights in anchors.items()
        ]
    ).sum(0)


def _criss_cross_rows(trace: Trace, rows: Tensor, columns: Tensor) -> Tensor:
    """Maps [N, H, W] of N cells at once."""
    query, key = trace.query.double()[:, rows, columns], trace.key.double()  # [C, N], [C, H, W]
    height = key.shape[1]
    on_column = torch.einsum("cn,chn->nh", query, key[:, :, columns])
    # The cell itself counts once: in its row.
    on_column[torch.arange(len(rows)), rows] = float("-inf")
    on_row = torch.einsum("cn,cnw->nw", query, key[:, rows, :])
    attention = torch.cat([on_column, on_row], dim=1).mul(trace.scale).softmax(1)
    maps = attention.new_zeros(len(rows), *trace.grid)
    index = torch.arange(len(rows))
    maps[index, :, columns] = attention[:, :height]
    maps[index, rows, :] += attention[:, height:]
    return maps


def _weights(trace: Trace, cell: Cell, keys: Tensor) -> Tensor:
    """Softmax over keys [C, S]: [S]."""
    query = trace.query.double()[:, cell[0], cell[1]]
    return (trace.scale * (query @ keys)).softmax(0)


def _pooling_matrix(size: int, cells: int) -> Tensor:
    """[cells, size], row i averaging the positions that adaptive pooling gives to cell i; windows may overlap."""
    position, cell = torch.arange(size), torch.arange(cells).unsqueeze(1)
    start, end = cell * size // cells, -((-(cell + 1) * size) // cells)
    window = ((position >= start) & (position < end)).double()
    return window / window.sum(1, keepdim=True)
