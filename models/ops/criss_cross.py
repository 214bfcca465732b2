"""Criss-cross attention, after CCNet (arXiv 1811.11721, section 3.2).

Each position attends to its own column and row, H + W - 1 positions instead of H * W. The affinity
is not scaled, and the position itself, which lies on both arms, counts once: in the row.
"""

import torch
from torch import Tensor


def criss_cross_attention_reference(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The definition, written down: the working version below is tested against it.

    Args:
        query, key: [B, C, H, W]
        value: [B, V, H, W]

    Returns:
        [B, V, H, W], each position the attention-weighted sum of the values on its column and row
    """
    height = query.shape[2]
    column = torch.einsum("bchw,bcgw->bhwg", query, key)
    itself = torch.eye(height, dtype=torch.bool, device=query.device)[:, None, :]
    row = torch.einsum("bchw,bchg->bhwg", query, key)
    attention = torch.cat([column.masked_fill(itself, float("-inf")), row], dim=-1).softmax(-1)
    on_column, on_row = attention[..., :height], attention[..., height:]
    return torch.einsum("bhwg,bcgw->bchw", on_column, value) + torch.einsum("bhwg,bchg->bchw", on_row, value)


def criss_cross_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Criss-cross attention as two batched products, one over rows and one over columns.

    The arms share one maximum and one normaliser, so their affinities are never concatenated. In
    channels-last memory neither arm copies its inputs. Half-precision inputs get their affinities
    in float32, since these are unscaled and would overflow.

    Args:
        query, key: [B, C, H, W]
        value: [B, V, H, W]

    Returns:
        [B, V, H, W] in the value's dtype
    """
    with torch.autocast(query.device.type, enabled=False):
        exact = torch.promote_types(query.dtype, torch.float32)
        rows, columns = _by_rows(query.to(exact)), _by_columns(query.to(exact))
        row = rows @ _by_rows(key.to(exact)).transpose(-1, -2)  # [B, H, W, W]
        column = columns @ _by_columns(key.to(exact)).transpose(-1, -2)  # [B, W, H, H]
        column.diagonal(dim1=-2, dim2=-1).fill_(float("-inf"))

        # Any shift cancels in the quotient, so none of its gradient is needed.
        highest = torch.maximum(row.amax(-1), column.amax(-1).transpose(1, 2)).detach()  # [B, H, W]
        row = (row - highest.unsqueeze(-1)).exp()
        column = (column - highest.transpose(1, 2).unsqueeze(-1)).exp()
        normaliser = row.sum(-1) + column.sum(-1).transpose(1, 2)

        if value.dtype == exact:  # fewer divisions: V channels a position instead of H + W weights
            context = _aggregate(row, column, value) / normaliser.unsqueeze(-1)
        else:  # the sum of H + W unnormalised values may be beyond float16
            row = row / normaliser.unsqueeze(-1)
            column = column / normaliser.transpose(1, 2).unsqueeze(-1)
            context = _aggregate(row.to(value.dtype), column.to(value.dtype), value)
        return context.permute(0, 3, 1, 2)


def _aggregate(row: Tensor, column: Tensor, value: Tensor) -> Tensor:
    """Weights [B, H, W, W] and [B, W, H, H] times the values [B, V, H, W]: [B, H, W, V]."""
    return row @ _by_rows(value) + (column @ _by_columns(value)).transpose(1, 2)


def _by_rows(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)  # [B, H, W, C]


def _by_columns(x: Tensor) -> Tensor:
    return x.permute(0, 3, 2, 1)  # [B, W, H, C]
