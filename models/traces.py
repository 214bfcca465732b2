"""What an attention block computed anyway and a viewer needs later."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Block = Literal["cca", "afnb", "apnb", "nl", "pam"]

# Largest finite half: a query beyond it would turn into inf, and its attention into NaN.
FP16_MAX = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class Trace:
    """Query and key of one attention block; attention is `softmax(scale * query . key)` over the block's keys.

    Attributes:
        block: which block: criss-cross, AFNB, APNB, non-local or DANet's position attention
        step: which pass of a recurrent block, from 1 on
        query: [B, C, H, W], or [C, H, W] for one image
        key: [B, C, H, W]; pooled to [B, C, S] when `pool_scales` is set; without B for one image
        scale: the factor on the affinity (1 for criss-cross and position attention, d^-1/2 for the others)
        pool_scales: grid sizes of a pyramid block, coarse to fine; S is the sum of their squares
        gamma: [] or [1], the factor that the block's context has beside its residual, where there is one factor
        logsumexp: [B, H, W], without B for one image: the logarithm of what each query's weights are divided by, if the
            operator tells it
    """

    block: Block
    step: int
    query: Tensor
    key: Tensor
    scale: float = 1.0
    pool_scales: tuple[int, ...] = ()
    gamma: Tensor | None = None
    logsumexp: Tensor | None = None

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the query map."""
        return self.query.shape[-2], self.query.shape[-1]

    @property
    def nbytes(self) -> int:
        return self.query.nbytes + self.key.nbytes + (0 if self.logsumexp is None else self.logsumexp.nbytes)

    def mapped(self, copy: Callable[[Tensor], Tensor]) -> Trace:
        """With a copy of each tensor that is a pass's own; gamma is the network's."""
        logsumexp = None if self.logsumexp is None else copy(self.logsumexp)
        return replace(self, query=copy(self.query), key=copy(self.key), logsumexp=logsumexp)

    def of_image(self, index: int) -> Trace:
        """The trace of one image of the batch, copied to host memory, as exact as it was.

        A network in float32 needs float32: with halves, unscaled affinities would be off by per cents. For one in
        bfloat16 halves do: they have three more bits, and a smaller range, from 8e-6 to 65504 without loss.
        """
        gamma = None if self.gamma is None else self.gamma.detach().float().cpu().clone()
        return replace(self.mapped(lambda tensor: _to_host(tensor[index])), gamma=gamma)


def _to_host(tensor: Tensor) -> Tensor:
    # Always a copy: a slice of the batch would keep the whole batch alive in the result store.
    kept = tensor.detach().to(torch.float32, copy=True)
    if tensor.dtype in (torch.bfloat16, torch.float16):
        # In bfloat16 the bound itself would be rounded up, to what is infinite in half precision.
        kept = kept.clamp_(-FP16_MAX, FP16_MAX).to(torch.float16)
    return kept.cpu().contiguous()
