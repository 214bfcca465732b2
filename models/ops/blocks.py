"""Attention in blocks small enough for a CPU's cache: when it may be, how large they are, and their softmax."""

import torch
from torch import Tensor

# Affinities that are made at once. Along lines 1 MiB of float32, which stays in a core's cache until it is multiplied
# by the values of its lines; of all pairs 16 MiB, since each block reads all values again.
LINE_ELEMENTS, DENSE_ELEMENTS = 1 << 18, 1 << 22


def runs_in_place(*inputs: Tensor, dtypes: tuple[torch.dtype, ...] = (torch.float64, torch.float32)) -> bool:
    """Whether this is plain inference on a CPU: with gradients, or in an exported graph, blocks would cost more.

    Args:
        dtypes: that the blocks are made for
    """
    if torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return False
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]  # as OpenVINO does
        return False
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        return False
    return all(x.device.type == "cpu" and x.dtype in dtypes for x in inputs)


def lines_at_once(affinities: int, at_once: int) -> int:
    """How many lines or queries make a block, given how many affinities each has and how many may be made at once."""
    return max(1, at_once // affinities)


def softmax_with_total(affinity: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax over the last axis by torch's one pass, and the log-sum-exp, which follows from the largest weight."""
    weights = affinity.softmax(-1)
    return weights, affinity.amax(-1) - weights.amax(-1).log_()
