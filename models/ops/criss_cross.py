"""Criss-cross attention, after CCNet (arXiv 1811.11721, section 3.2).

Each position attends to its own column and row, H + W - 1 positions instead of H * W. The affinity
is not scaled, and the position itself, which lies on both arms, counts once: in the row.
"""

import torch
from torch import Tensor

from models.ops.blocks import LINE_ELEMENTS, lines_at_once, runs_in_place, softmax_with_total
from models.ops.scripting import scripted


def criss_cross_attention_reference(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """The definition, written down; same arguments and results as `criss_cross_attention`."""
    height = query.shape[2]
    column = torch.einsum("bchw,bcgw->bhwg", query, key)
    itself = torch.eye(height, dtype=torch.bool, device=query.device)[:, None, :]
    row = torch.einsum("bchw,bchg->bhwg", query, key)
    affinity = torch.cat([column.masked_fill(itself, float("-inf")), row], dim=-1)
    attention = affinity.softmax(-1)
    on_column, on_row = attention[..., :height], attention[..., height:]
    context = torch.einsum("bhwg,bcgw->bchw", on_column, value) + torch.einsum("bhwg,bchg->bchw", on_row, value)
    return context, affinity.logsumexp(-1)


def criss_cross_attention(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Each position's attention-weighted sum of the values on its column and row.

    Args:
        query, key: [B, C, H, W]
        value: [B, V, H, W], in any dtype; in bfloat16 it halves the time on a CPU that multiplies such

    Returns:
        context [B, V, H, W], in the value's dtype and in channels-last memory
        logsumexp [B, H, W], float32 or better: a position weighs each one of its cross by exp(query . key - logsumexp),
            so any row or column of the attention can be computed again without the others
    """
    # Affinities are unscaled: as half-precision numbers they would overflow or lose what distinguishes them.
    exact = torch.promote_types(query.dtype, torch.float32)
    inputs = query.to(exact), key.to(exact), value
    with torch.autocast(query.device.type, enabled=False):
        if runs_in_place(*inputs, dtypes=(torch.float64, torch.float32, torch.bfloat16)):
            return _attend_by_blocks(*inputs)
        return _attend_at_once(*inputs)


def _attend_at_once(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Two batched products, one over rows and one over columns, and no more than an exporter can follow.

    The arms share one maximum and one normaliser, so their affinities are never concatenated. In channels-last memory
    neither arm copies its inputs.
    """
    row = _by_rows(query) @ _by_rows(key).mT  # [B, H, W, W]
    column = _by_columns(query) @ _by_columns(key).mT  # [B, W, H, H]
    column = column.masked_fill(_diagonal(query.shape[2], query.device), float("-inf"))

    # Any shift cancels in the quotient, so none of its gradient is needed.
    highest = torch.maximum(row.amax(-1), column.amax(-1).mT).detach()  # [B, H, W]
    row = (row - highest.unsqueeze(-1)).exp()
    column = (column - highest.mT.unsqueeze(-1)).exp()
    total = row.sum(-1) + column.sum(-1).mT

    if value.dtype == query.dtype:  # fewer divisions: V channels a position instead of H + W weights
        context = _aggregate(row, column, value) / total.unsqueeze(-1)
    else:  # the sum of H + W unnormalised values may be beyond float16
        row, column = row / total.unsqueeze(-1), column / total.mT.unsqueeze(-1)
        context = _aggregate(row.to(value.dtype), column.to(value.dtype), value)
    return context.permute(0, 3, 1, 2), highest + total.log()


def _attend_by_blocks(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """The same in two passes, in blocks of rows and of columns: beyond the results, a few MB at any size."""
    batch, channels, height, width = value.shape
    context = value.new_empty(batch, height, width, channels)
    logsumexp = query.new_empty(batch, height, width)
    for image in zip(query, key, value, context, logsumexp, strict=True):
        _attend_along_rows(*image, lines_at_once(width**2, LINE_ELEMENTS))
        if height > 1:
            _attend_along_columns(*image, lines_at_once(height**2, LINE_ELEMENTS))
    return context.permute(0, 3, 1, 2), logsumexp


@scripted
def _attend_along_rows(
    query: Tensor, key: Tensor, value: Tensor, context: Tensor, logsumexp: Tensor, at_once: int
) -> None:
    """Attention of each position to its row alone, written to context [H, W, V] and logsumexp [H, W]."""
    query, key, value = query.permute(1, 2, 0), key.permute(1, 2, 0), value.permute(1, 2, 0)  # [H, W, C]
    for first in range(0, query.shape[0], at_once):
        last = first + at_once
        weights, total = softmax_with_total(query[first:last] @ key[first:last].mT)
        logsumexp[first:last] = total
        torch.bmm(weights.to(value.dtype), value[first:last], out=context[first:last])


@scripted
def _attend_along_columns(
    query: Tensor, key: Tensor, value: Tensor, context: Tensor, logsumexp: Tensor, at_once: int
) -> None:
    """Adds each position's column to what its row has left: the mean of both, weighted by the exponentials' sums."""
    query, key, value = query.permute(2, 1, 0), key.permute(2, 1, 0), value.permute(2, 1, 0)  # [W, H, C]
    context, logsumexp = context.transpose(0, 1), logsumexp.T
    for first in range(0, query.shape[0], at_once):
        last = first + at_once
        affinity = query[first:last] @ key[first:last].mT
        affinity.diagonal(dim1=1, dim2=2).fill_(float("-inf"))
        weights, on_column = softmax_with_total(affinity)
        on_row = logsumexp[first:last]
        share = torch.sigmoid(on_column - on_row).unsqueeze(-1)
        context[first:last].lerp_(weights.to(value.dtype) @ value[first:last], share.to(value.dtype))
        torch.logaddexp(on_row, on_column, out=on_row)


def _diagonal(size: int, device: torch.device) -> Tensor:
    position = torch.arange(size, device=device)
    return position == position.unsqueeze(1)


def _aggregate(row: Tensor, column: Tensor, value: Tensor) -> Tensor:
    """Weights [B, H, W, W] and [B, W, H, H] times the values [B, V, H, W]: [B, H, W, V]."""
    return row @ _by_rows(value) + (column @ _by_columns(value)).transpose(1, 2)


def _by_rows(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)  # [B, H, W, C]


def _by_columns(x: Tensor) -> Tensor:
    return x.permute(0, 3, 2, 1)  # [B, W, H, C]
