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


def pyramid_pool(x: Tensor, pool_scales: tuple[int, ...]) -> Tensor:
    """Average-pool to a grid per scale and list all cells, coarse to fine, each grid row by row.

    Args:
        x: [B, C, H, W]; a map smaller than a grid is fine, its windows overlap

    Returns:
        [B, C, S], S the sum of the squared scales
    """
    return torch.cat([F.adaptive_avg_pool2d(x, scale).flatten(2) for scale in pool_scales], dim=2)
