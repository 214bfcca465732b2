"""Dense and pyramid attention: every position attends to all keys, or to a few pooled ones.

Non-local: Wang et al., arXiv 1711.07971. Pyramid pooling of keys and values: ANN, arXiv 1908.07678,
section 3.2, whose pooling (1, 3, 6, 8) gives 110 anchors.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def dense_attention_reference(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """The definition, written down; same arguments and result as `dense_attention`."""
    affinity = scale * torch.einsum("bchw,bcs->bhws", query, key)
    return torch.einsum("bhws,bvs->bvhw", affinity.softmax(-1), value)


def dense_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Attention of every position over S keys, without the [H * W, S] map in memory.

    Args:
        query: [B, C, H, W]
        key: [B, C, S]
        value: [B, V, S]
        scale: factor on the affinity

    Returns:
        [B, V, H, W]
    """
    # Torch's fused kernel wants each position's channels side by side, or else falls back to the whole map.
    # In channels-last memory they are, and nothing is copied.
    queries, keys, values = (x.transpose(1, 2).contiguous().unsqueeze(1) for x in (query.flatten(2), key, value))
    context = F.scaled_dot_product_attention(queries, keys, values, scale=scale)
    return context.squeeze(1).transpose(1, 2).reshape(-1, value.shape[1], *query.shape[2:])


def pyramid_pool_reference(x: Tensor, pool_scales: tuple[int, ...]) -> Tensor:
    """The definition, written down; same arguments and result as `pyramid_pool`."""
    return torch.cat([F.adaptive_avg_pool2d(x, scale).flatten(2) for scale in pool_scales], dim=2)


def pyramid_pool(x: Tensor, pool_scales: tuple[int, ...]) -> Tensor:
    """Average-pool to a grid per scale and list all cells, coarse to fine, each grid row by row.

    The windows are written as matrices, the rows of all scales in one: the map is read once instead
    of once a scale, and an exporter finds nothing but products, right for a map of any size (ONNX has
    no adaptive pooling).

    Args:
        x: [B, C, H, W]; a map smaller than a grid is fine, its windows overlap

    Returns:
        [B, C, S], S the sum of the squared scales
    """
    height, width = x.shape[2:]
    with torch.autocast(x.device.type, enabled=False):
        exact = torch.promote_types(x.dtype, torch.float32)
        by_rows, by_columns = (_windows(size, pool_scales, x.device, exact) for size in (height, width))
        # [sum of scales, H] x [B, H, W * C], which in channels-last memory is a view
        rows = by_rows @ x.to(exact).permute(0, 2, 3, 1).flatten(2)
        rows = rows.view(*rows.shape[:2], width, -1)
        cells, first = [], 0
        for scale in pool_scales:
            band = slice(first, first + scale)
            cells.append((by_columns[band] @ rows[:, band]).flatten(1, 2))  # [B, scale * scale, C]
            first += scale
        return torch.cat(cells, dim=1).transpose(1, 2).to(x.dtype)


def _windows(size: int, pool_scales: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Adaptive pooling of a line, as a matrix [sum of scales, size]: a cell averages all pixels that it overlaps."""
    scales = torch.tensor([[scale] for scale in pool_scales for _ in range(scale)], device=device)
    cells = torch.tensor([[cell] for scale in pool_scales for cell in range(scale)], device=device)
    pixels = torch.arange(size, device=device)
    overlaps = (pixels * scales < (cells + 1) * size) & ((pixels + 1) * scales > cells * size)
    return overlaps.to(dtype) / overlaps.sum(1, keepdim=True)
