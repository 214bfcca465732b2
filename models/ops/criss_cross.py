"""Criss-cross attention, after CCNet (arXiv 1811.11721, section 3.2).

Each position attends to its own column and row, H + W - 1 positions instead of H * W. The affinity
is not scaled, and the position itself, which lies on both arms, counts once: in the row.
"""

import torch
from torch import Tensor

from models.ops.blocks import LINE_ELEMENTS, blocks, runs_in_place


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
        value: [B, V, H, W]

    Returns:
        context [B, V, H, W], in the value's dtype and in channels-last memory
        logsumexp [B, H, W], float32 or better: a position weighs each one of its cross by exp(query . key - logsumexp),
            so any row or column of the attention can be had again without the others
    """
    inputs = query, key, value
    with torch.autocast(query.device.type, enabled=False):
        if runs_in_place(*inputs):
            return _attend_by_blocks(*inputs)
        return _attend_at_once(*inputs)


def _attend_at_once(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Two batched products, one over rows and one over columns, and no more than an exporter can follow.

    The arms share one maximum and one normaliser, so their affinities are never concatenated. In channels-last memory
    neither arm copies its inputs. Half-precision inputs get their affinities in float32, since these are unscaled and
    would overflow.
    """
    exact = torch.promote_types(query.dtype, torch.float32)
    rows, columns = _by_rows(query.to(exact)), _by_columns(query.to(exact))
    row = rows @ _by_rows(key.to(exact)).mT  # [B, H, W, W]
    column = columns @ _by_columns(key.to(exact)).mT  # [B, W, H, H]
    column = column.masked_fill(_diagonal(query.shape[2], query.device), float("-inf"))

    # Any shift cancels in the quotient, so none of its gradient is needed.
    highest = torch.maximum(row.amax(-1), column.amax(-1).mT).detach()  # [B, H, W]
    row = (row - highest.unsqueeze(-1)).exp()
    column = (column - highest.mT.unsqueeze(-1)).exp()
    total = row.sum(-1) + column.sum(-1).mT

    if value.dtype == exact:  # fewer divisions: V channels a position instead of H + W weights
        context = _aggregate(row, column, value) / total.unsqueeze(-1)
    else:  # the sum of H + W unnormalised values may be beyond float16
        row, column = row / total.unsqueeze(-1), column / total.mT.unsqueeze(-1)
        context = _aggregate(row.to(value.dtype), column.to(value.dtype), value)
    return context.permute(0, 3, 1, 2), highest + total.log()


def _attend_by_blocks(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """The same in two passes, in blocks of rows and of columns: beyond the results, a few MB at any size."""
    batch, channels, height, width = value.shape
    context = value.new_empty(batch, height, width, channels)
    logsumexp = value.new_empty(batch, height, width)
    for image in zip(query, key, value, context, logsumexp, strict=True):
        _attend_along_rows(*image)
        _attend_along_columns(*image)
    return context.permute(0, 3, 1, 2), logsumexp


def _attend_along_rows(query: Tensor, key: Tensor, value: Tensor, context: Tensor, logsumexp: Tensor) -> None:
    """Attention of each position to its row alone, written to context [H, W, V] and logsumexp [H, W]."""
    query, key, value = (x.permute(1, 2, 0) for x in (query, key, value))  # [H, W, C]
    for part in blocks(len(query), query.shape[1] ** 2, LINE_ELEMENTS):
        weights = query[part] @ key[part].mT
        highest = weights.amax(-1, keepdim=True)
        total = weights.sub_(highest).exp_().sum(-1, keepdim=True)
        torch.bmm(weights.div_(total), value[part], out=context[part])
        logsumexp[part] = highest.add_(total.log_()).squeeze(-1)


def _attend_along_columns(query: Tensor, key: Tensor, value: Tensor, context: Tensor, logsumexp: Tensor) -> None:
    """Adds each position's column to what is there of its row."""
    query, key, value = (x.permute(2, 1, 0) for x in (query, key, value))  # [W, H, C]
    context, logsumexp = context.transpose(0, 1), logsumexp.T
    itself = _diagonal(query.shape[1], query.device)
    for part in blocks(len(query), query.shape[1] ** 2, LINE_ELEMENTS):
        weights = (query[part] @ key[part].mT).masked_fill_(itself, float("-inf"))
        on_row = logsumexp[part].unsqueeze(-1)  # [n, H, 1]
        highest = torch.maximum(weights.amax(-1, keepdim=True), on_row)
        kept = (on_row - highest).exp_()
        total = weights.sub_(highest).exp_().sum(-1, keepdim=True).add_(kept)
        seen = weights.div_(total) @ value[part]
        torch.addcmul(seen, context[part], kept.div_(total), out=context[part])
        logsumexp[part] = highest.add_(total.log_()).squeeze(-1)


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
