"""Each cell's log-sum-exp, and what follows from it without the matrix.

With the totals of all cells known, who looks at a cell is one product: exp(scale * query . key - total). They are
0.3 MB at 128x256 cells, where the matrix of criss-cross attention has 50 MB, and that of dense attention 4 GB.

They are made from the trace. What the network had is of queries and keys before these were rounded to halves: with it,
the weights of a cell would not sum to 1.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from models.attention_maps import Cell, affinity
from models.traces import Trace

MOST_EXACT = 1 << 21  # weights that are computed in float64; more are in float32
TILE = 512  # cells each way: so many logits stay in a core's cache
ROWS = 256  # of dense attention that are made whole at a time


def totals_of(trace: Trace) -> Tensor:
    """log(sum(exp(scale * query . key))) over all that each cell of cca, nl or pam sees: [H, W] float64."""
    if trace.block != "cca":
        return _dense_totals(trace).double().view(trace.grid)
    columns, rows = (torch.cat([exponentials(logits)[1] for logits in arm]) for arm in criss_cross_logits(trace))
    return torch.logaddexp(columns.T, rows).double()


def criss_cross_logits(trace: Trace) -> tuple[Iterator[Tensor], Iterator[Tensor]]:
    """A few lines of the grid at a time: of columns [w, H, H], without the cell itself; of rows [h, W, W]."""
    height, width = trace.grid
    kept = computed_as(height * width * (height + width))
    query, key = trace.query.to(kept) * trace.scale, trace.key.to(kept)
    return _along(query.mT, key.mT, with_itself=False), _along(query, key, with_itself=True)


def exponentials(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Puts exp(logits - max) in their place, over the last dimension; returns the max and the log-sum-exp."""
    # A cell that is alone on its column has no logit there but -inf.
    largest = logits.amax(-1, keepdim=True).clamp_(min=torch.finfo(logits.dtype).min)
    total = logits.sub_(largest).exp_().sum(-1).log_()
    largest = largest.squeeze(-1)
    return largest, total.add_(largest)


def computed_as(weights: int) -> torch.dtype:
    return torch.float64 if weights <= MOST_EXACT else torch.float32


def criss_cross_map_to(trace: Trace, totals: Tensor, cell: Cell) -> Tensor:
    """Which cells look at a cell in one pass, and how much each: [H, W], zero off the cell's row and column."""
    row, column = cell
    key = trace.key[:, row, column].double() * trace.scale
    weights = torch.zeros_like(totals)
    weights[:, column] = (key @ trace.query[:, :, column].double() - totals[:, column]).exp_()
    weights[row] = (key @ trace.query[:, row].double() - totals[row]).exp_()
    return weights


def criss_cross_looking_at(trace: Trace, totals: Tensor, on_cross: Tensor, cell: Cell) -> Tensor:
    """How much each cell looks at those of a cross in one pass: the product A v [H, W].

    A cell off the cross meets it twice: its column crosses the row, and its row the column. A cell on the cross
    sees all of the line that it is on.

    Args:
        on_cross: v [H, W], zero off the row and the column of `cell`
    """
    row, column = cell
    query, key = trace.query, trace.key
    on_row, on_column = on_cross[row], on_cross[:, column]
    seen = affinity(key[:, row, None], query).mul_(trace.scale).sub_(totals).exp_().mul_(on_row)
    seen += affinity(key[:, :, column, None], query).mul_(trace.scale).sub_(totals).exp_().mul_(on_column[:, None])
    along_row = query[:, row].double().T @ key[:, row].double()
    along_row = along_row.mul_(trace.scale).sub_(totals[row, :, None]).exp_()
    along_column = query[:, :, column].double().T @ key[:, :, column].double()
    along_column = along_column.mul_(trace.scale).sub_(totals[:, column, None]).exp_()
    seen[row], seen[:, column] = along_row @ on_row, along_column @ on_column
    seen[cell] += along_row[column] @ on_row - along_row[column, column] * on_row[column]  # itself once
    return seen


def dense_map_to(trace: Trace, totals: Tensor, cell: Cell) -> Tensor:
    """Which cells look at a cell in dense attention, and how much each: [H, W]."""
    key = trace.key[:, cell[0], cell[1], None, None]
    return affinity(key, trace.query).mul_(trace.scale).sub_(totals).exp_()


def dense_looked_at(trace: Trace, cells: Tensor) -> Tensor:
    """What the cells [H, W], weighted so, look at on average in dense attention: v A [H, W] float64.

    Each row gives its own total on the way: those of other cells are not needed.
    """
    query, key = _dense(trace)
    given = cells.flatten().to(key.dtype)
    asked = given.nonzero().squeeze(1)
    seen, buffer = torch.zeros_like(given), key.new_empty(ROWS, key.shape[1])
    for start in range(0, len(asked), ROWS):
        rows = asked[start : start + ROWS]
        weights = torch.mm(query[rows], key, out=buffer[: len(rows)])
        weights.sub_(weights.amax(1, keepdim=True)).exp_()
        seen += (given[rows] / weights.sum(1)) @ weights
    return seen.double().view(trace.grid)


def dense_looking_at(trace: Trace, totals: Tensor, cells: Tensor) -> Tensor:
    """How much each cell looks at these, weighted so, in dense attention: A v [H, W] float64."""
    query, key = _dense(trace)
    given, total = cells.flatten().to(key.dtype), totals.flatten().to(key.dtype)
    asked = given.nonzero().squeeze(1)
    keys, shares = key[:, asked].split(TILE, dim=1), given[asked].split(TILE)  # type: ignore[no-untyped-call]
    seen = torch.zeros_like(given)
    for start in range(0, len(query), TILE):
        rows = slice(start, start + TILE)
        for key, share in zip(keys, shares, strict=True):
            seen[rows] += (query[rows] @ key).sub_(total[rows, None]).exp_() @ share
    return seen.double().view(trace.grid)


def _dense_totals(trace: Trace) -> Tensor:
    """A tile at a time, its sum and the running one brought to the larger of both maxima."""
    query, key = _dense(trace)
    totals = []
    keys = key.split(TILE, dim=1)  # type: ignore[no-untyped-call]
    for rows in query.split(TILE):  # type: ignore[no-untyped-call]
        total = torch.full((len(rows),), float("-inf"), dtype=rows.dtype)
        for columns in keys:
            total = torch.logaddexp(total, exponentials(rows @ columns)[1])
        totals.append(total)
    return torch.cat(totals)


def _dense(trace: Trace) -> tuple[Tensor, Tensor]:
    """Queries [HW, C], scaled, and keys [C, HW]."""
    cells = trace.grid[0] * trace.grid[1]
    kept = computed_as(cells * cells)
    return trace.query.flatten(1).T.to(kept).contiguous() * trace.scale, trace.key.flatten(1).to(kept)


def _along(query: Tensor, key: Tensor, with_itself: bool) -> Iterator[Tensor]:
    """Of queries and keys [C, lines, n], the logits within each line [some lines, n, n]."""
    lines, length = query.shape[1:]
    some = max(1, TILE * TILE // (length * length))
    for start in range(0, lines, some):
        part = slice(start, start + some)
        logits = torch.bmm(query[:, part].permute(1, 2, 0), key[:, part].permute(1, 0, 2))
        if not with_itself:
            logits.diagonal(dim1=1, dim2=2).fill_(float("-inf"))
        yield logits
