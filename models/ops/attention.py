"""Dense and pyramid attention: every position attends to all keys, or to a few pooled ones.

Non-local: Wang et al., arXiv 1711.07971. Pyramid pooling of keys and values: ANN, arXiv 1908.07678,
section 3.2, whose pooling (1, 3, 6, 8) gives 110 anchors.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from models.ops.blocks import DENSE_ELEMENTS, lines_at_once, runs_in_place, softmax_with_total
from models.ops.scripting import scripted

Attend = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor | None]]
Pool = Callable[[Tensor, tuple[int, ...]], Tensor]

FUSED_DTYPES = torch.float64, torch.float32, torch.bfloat16, torch.float16


def dense_attention_reference(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The definition, written down; same arguments and results as `dense_attention`."""
    affinity = scale * torch.einsum("bchw,bcs->bhws", query, key)
    return torch.einsum("bhws,bvs->bvhw", affinity.softmax(-1), value), affinity.logsumexp(-1)


def dense_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor | None]:
    """Attention of every position over S keys, without the [H * W, S] map in memory.

    Args:
        query: [B, C, H, W]
        key: [B, C, S]
        value: [B, V, S]
        scale: factor on the affinity

    Returns:
        context [B, V, H, W]
        logsumexp [B, H, W], float32 or better, of what the softmax is over; None where torch keeps it to itself: for
            gradients, exporters and other devices than a CPU
    """
    # Torch's fused kernel wants each position's channels side by side, or else falls back to the whole map.
    # In channels-last memory they are, and nothing is copied.
    queries, keys, values = (x.transpose(1, 2).contiguous() for x in (query.flatten(2), key, value))
    one_head = queries.unsqueeze(1), keys.unsqueeze(1), values.unsqueeze(1)
    logsumexp = None
    if key.shape[1] == value.shape[1] and runs_in_place(query, key, value, dtypes=FUSED_DTYPES):
        # What `scaled_dot_product_attention` calls here, and of whose results it drops the second.
        context, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*one_head, scale=scale)
    elif key.shape[1] != value.shape[1] and runs_in_place(query, key, value):
        context, logsumexp = _attend_by_blocks(queries, keys, values, scale)
    else:
        context = F.scaled_dot_product_attention(*one_head, scale=scale)
    if logsumexp is not None:
        logsumexp = logsumexp.reshape(-1, *query.shape[2:])
    return context.view(-1, *query.shape[2:], value.shape[1]).permute(0, 3, 1, 2), logsumexp


def _attend_by_blocks(queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """What torch's fused kernel for a CPU does, which wants as many channels in the values as in the keys.

    Args:
        queries: [B, N, C]
        keys: [B, S, C]
        values: [B, S, V]

    Returns:
        context [B, N, V]
        logsumexp [B, N]
    """
    context = values.new_empty(*queries.shape[:2], values.shape[2])
    logsumexp = values.new_empty(queries.shape[:2])
    at_once = lines_at_once(keys.shape[1], DENSE_ELEMENTS)
    for query, key, value, out, totals in zip(queries, keys, values, context, logsumexp, strict=True):
        totals.copy_(_attend_to_all(query, key, value, scale, out, at_once))
    return context, logsumexp


@scripted
def _attend_to_all(query: Tensor, key: Tensor, value: Tensor, scale: float, context: Tensor, at_once: int) -> Tensor:
    """Writes context [N, V]; returns logsumexp [N]."""
    totals = []
    for first in range(0, query.shape[0], at_once):
        last = first + at_once
        weights, total = softmax_with_total((query[first:last] @ key.mT).mul_(scale))
        totals.append(total)
        torch.mm(weights, value, out=context[first:last])
    return torch.cat(totals)


def pyramid_pool_reference(x: Tensor, pool_scales: tuple[int, ...]) -> Tensor:
    """The definition, written down; same arguments and result as `pyramid_pool`."""
    return torch.cat([F.adaptive_avg_pool2d(x, scale).flatten(2) for scale in pool_scales], dim=2)


def pyramid_pool(x: Tensor, pool_scales: tuple[int, ...]) -> Tensor:
    """Average-pool to a grid per scale and list all cells, coarse to fine, each grid row by row.

    Args:
        x: [B, C, H, W]; a map smaller than a grid is fine, its windows overlap

    Returns:
        [B, C, S], S the sum of the squared scales
    """
    if torch.compiler.is_exporting() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return _pool_by_products(x, pool_scales)
    return pyramid_pool_reference(x, pool_scales)


def pooling_matrix(
    size: int, *scales: int, device: torch.device | None = None, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Adaptive average pooling of a line, as a matrix [sum of scales, size]; windows may overlap."""
    scale = torch.tensor([[scale] for scale in scales for _ in range(scale)], device=device)
    cell = torch.tensor([[cell] for scale in scales for cell in range(scale)], device=device)
    pixel = torch.arange(size, device=device)
    # A cell averages all pixels that it overlaps.
    overlaps = (pixel * scale < (cell + 1) * size) & ((pixel + 1) * scale > cell * size)
    windows: Tensor = overlaps.to(dtype) / overlaps.sum(1, keepdim=True)
    return windows


def _pool_by_products(x: Tensor, pool_scales: tuple[int, ...]) -> Tensor:
    """With windows as matrices an exporter finds products alone, right at any size; ONNX has no adaptive pooling."""
    height, width = x.shape[2:]
    with torch.autocast(x.device.type, enabled=False):
        exact = torch.promote_types(x.dtype, torch.float32)
        by_rows = pooling_matrix(height, *pool_scales, device=x.device, dtype=exact)
        by_columns = pooling_matrix(width, *pool_scales, device=x.device, dtype=exact)
        # [sum of scales, H] x [B, H, W * C], which in channels-last memory is a view
        rows = by_rows @ x.to(exact).permute(0, 2, 3, 1).flatten(2)
        rows = rows.view(*rows.shape[:2], width, -1)
        cells, first = [], 0
        for scale in pool_scales:
            band = slice(first, first + scale)
            cells.append((by_columns[band] @ rows[:, band]).flatten(1, 2))  # [B, scale * scale, C]
            first += scale
        return torch.cat(cells, dim=1).transpose(1, 2).to(x.dtype)
