"""Each cell's total, the log-sum-exp of its logits, and what follows from the totals without the attention matrix.

With the totals of all cells known, who looks at a cell is one product: exp(scale * query . key - total). They are
0.3 MB at 128x256 cells, where the matrix of criss-cross attention has 50 MB, and that of dense attention 4 GB.

Most traces have the totals of the network's own softmax, in float32. They are used where the matrix would be computed
in float32 too; small matrices are computed in float64, and so are their totals.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from models.attention_maps import Cell, affinity, anchor_shares, one_cell
from models.traces import Trace

MOST_EXACT = 1 << 21  # weights of the largest matrix that is computed in float64; larger ones are in float32
TILE = 512  # cells each way, whose logits stay in a core's cache
ROWS = 256  # whole rows of dense attention that are made at a time
CELLS = 2048  # whose queries, converted to float32, stay in a core's cache


def totals_of(trace: Trace) -> Tensor:
    """log(sum(exp(scale * query . key))) over all cells, or anchors, that each cell sees: [H, W] float64."""
    if trace.logsumexp is not None and not is_exact(trace):
        return trace.logsumexp.double()
    if trace.block != "cca":
        return _dense_totals(trace).double().view(trace.grid)
    of_columns, of_rows = (torch.cat([_logsumexp(logits) for logits in arm]) for arm in _criss_cross_logits(trace))
    return torch.logaddexp(of_columns.T, of_rows).double()


def criss_cross_weights(trace: Trace, totals: Tensor) -> tuple[Tensor, Tensor]:
    """All of a criss-cross matrix that is not zero: of columns, without the cell itself, [W, H, H]; of rows [H, W, W].

    Args:
        totals: [H, W], as `totals_of` has them
    """
    height, width = trace.grid
    dtype = computed_as(trace)
    on_columns = torch.empty(width, height, height, dtype=dtype)
    on_rows = torch.empty(height, width, width, dtype=dtype)
    # One more channel subtracts the total in the product itself; as powers of two, exponentials take half the time.
    to_binary = 1 / math.log(2)
    query = torch.cat([trace.query.to(dtype) * (trace.scale * to_binary), totals.to(dtype)[None] * -to_binary])
    key = torch.cat([trace.key.to(dtype), torch.ones(1, height, width, dtype=dtype)])
    for logits in _along(query, key, on_rows):
        logits.exp2_()
    for logits in _along(query.mT.contiguous(), key.mT.contiguous(), on_columns):
        logits.exp2_()
    on_columns.diagonal(dim1=1, dim2=2).zero_()
    return on_columns, on_rows


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


def pyramid_map_to(trace: Trace, totals: Tensor, cell: Cell, level: int | None = None) -> Tensor:
    """Which cells look at a cell through a pyramid, and how much each: [H, W].

    Args:
        level: through the anchors of this scale alone
    """
    shares = anchor_shares(one_cell(cell, trace.grid), trace.pool_scales, level)
    anchors = shares.nonzero().squeeze(1)  # few: those of each scale whose windows the cell is in
    dtype = computed_as(trace)
    given, key = shares[anchors].to(dtype), trace.key[:, anchors].T.to(dtype) * trace.scale
    queries = trace.query.flatten(1).split(CELLS, dim=1)  # type: ignore[no-untyped-call]
    some = zip(queries, totals.flatten().to(dtype).split(CELLS), strict=True)  # type: ignore[no-untyped-call]
    seen = [given @ (key @ query.to(dtype)).sub_(total).exp_() for query, total in some]
    return torch.cat(seen).double().view(trace.grid)


def dense_looked_at(trace: Trace, cells: Tensor) -> Tensor:
    """What the cells [H, W], weighted so, look at on average in dense attention: v A [H, W] float64.

    Without totals in the trace each row gives its own on the way; those of other cells are not needed.
    """
    query, key = _dense(trace)
    given = cells.flatten().to(key.dtype)
    asked = given.nonzero().squeeze(1)
    seen = torch.zeros_like(given)
    if trace.logsumexp is None or is_exact(trace):
        for rows in asked.split(ROWS):  # type: ignore[no-untyped-call]
            weights = query[rows] @ key
            weights.sub_(weights.amax(1, keepdim=True)).exp_()
            seen += (given[rows] / weights.sum(1)) @ weights
        return seen.double().view(trace.grid)
    totals = trace.logsumexp.flatten()
    keys, parts = key.split(TILE, dim=1), seen.split(TILE)  # type: ignore[no-untyped-call]
    for rows in asked.split(TILE):  # type: ignore[no-untyped-call]
        some, total = query[rows], totals[rows, None]
        for columns, part in zip(keys, parts, strict=True):
            part += given[rows] @ (some @ columns).sub_(total).exp_()
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
        for columns, share in zip(keys, shares, strict=True):
            seen[rows] += (query[rows] @ columns).sub_(total[rows, None]).exp_() @ share
    return seen.double().view(trace.grid)


def _dense_totals(trace: Trace) -> Tensor:
    """A tile at a time, its sum and the running one brought to the larger of both maxima."""
    query, key = _dense(trace)
    totals = []
    keys = key.split(TILE, dim=1)  # type: ignore[no-untyped-call]
    for rows in query.split(TILE):  # type: ignore[no-untyped-call]
        total = torch.full((len(rows),), float("-inf"), dtype=rows.dtype)
        for columns in keys:
            total = torch.logaddexp(total, _logsumexp(rows @ columns))
        totals.append(total)
    return torch.cat(totals)


def _dense(trace: Trace) -> tuple[Tensor, Tensor]:
    """Queries [HW, C], scaled, and keys [C, HW]."""
    dtype = computed_as(trace)
    return trace.query.flatten(1).T.to(dtype).contiguous() * trace.scale, trace.key.flatten(1).to(dtype)


def is_exact(trace: Trace) -> bool:
    """Whether the whole matrix has so few weights that it is computed in float64."""
    height, width = trace.grid
    seen = height + width if trace.block == "cca" else trace.key[0].numel()
    return height * width * seen <= MOST_EXACT


def computed_as(trace: Trace) -> torch.dtype:
    return torch.float64 if is_exact(trace) else torch.float32


def _criss_cross_logits(trace: Trace) -> tuple[Iterator[Tensor], Iterator[Tensor]]:
    """A few lines of the grid at a time: of columns [w, H, H], without the cell itself; of rows [h, W, W]."""
    dtype = computed_as(trace)
    query, key = trace.query.to(dtype) * trace.scale, trace.key.to(dtype)
    of_columns = _along(query.mT, key.mT)
    return (_without_itself(logits) for logits in of_columns), _along(query, key)


def _without_itself(logits: Tensor) -> Tensor:
    logits.diagonal(dim1=1, dim2=2).fill_(float("-inf"))
    return logits


def _along(query: Tensor, key: Tensor, out: Tensor | None = None) -> Iterator[Tensor]:
    """Of queries and keys [C, lines, n], the logits within each line, some lines at a time: [some, n, n].

    Args:
        out: [lines, n, n] that they are to lie in; else each time in new memory
    """
    lines, length = query.shape[1:]
    some = max(1, TILE * TILE // (length * length))
    for start in range(0, lines, some):
        part = slice(start, start + some)
        into = None if out is None else out[part]
        yield torch.bmm(query[:, part].permute(1, 2, 0), key[:, part].permute(1, 0, 2), out=into)


def _logsumexp(logits: Tensor) -> Tensor:
    """Over the last dimension; overwrites the logits."""
    # A cell that is alone on its column has no logit there but -inf.
    largest = logits.amax(-1, keepdim=True).clamp_(min=torch.finfo(logits.dtype).min)
    return logits.sub_(largest).exp_().sum(-1).log_().add_(largest.squeeze(-1))
