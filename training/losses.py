"""What training minimises."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from training.data import IGNORE


def resize(logits: Tensor, masks: Tensor) -> Tensor:
    """[B, K, h, w] in any precision to float32 [B, K, H, W], the size of the masks [B, H, W]."""
    return F.interpolate(logits.float(), masks.shape[1:], mode="bilinear", align_corners=False)


def cross_entropy(logits: Tensor, masks: Tensor, class_weights: Tensor) -> Tensor:
    """Weighted mean over the labelled pixels, 0 where there is none.

    Args:
        logits: [B, K, H, W]
        masks: [B, H, W] class ids, IGNORE where unlabelled
        class_weights: [K]
    """
    total = F.cross_entropy(logits, masks, class_weights, ignore_index=IGNORE, reduction="sum")
    # A crop without a single labelled pixel has no loss; a mean over none would be NaN for good.
    return total / class_weights[masks[masks != IGNORE]].sum().clamp(min=1)


def lovasz_softmax(logits: Tensor, masks: Tensor) -> Tensor:
    """1 - IoU, extended to probabilities, averaged over the classes present (arXiv 1705.08790, section 3.2).

    It follows the measure that counts, in which a class of thin poles weighs as much as the sky.

    Args:
        logits: [B, K, H, W]
        masks: [B, H, W] class ids, IGNORE where unlabelled
    """
    labelled = masks != IGNORE
    truth = masks[labelled]  # [N]
    probabilities = logits.softmax(1).movedim(1, -1)[labelled]  # [N, K]
    present = torch.unique(truth)
    if not len(present):
        return probabilities.sum()
    return torch.stack(
        [_lovasz_of_class((truth == label).float(), probabilities[:, label]) for label in present]
    ).mean()


def _lovasz_of_class(truth: Tensor, probability: Tensor) -> Tensor:
    """The Lovász extension of one class's Jaccard loss at the errors of N pixels."""
    errors, order = (truth - probability).abs().sort(descending=True)
    hits = truth[order]
    # Jaccard loss once the first n + 1 pixels of this order are wrong; its increments are the gradient.
    losses = 1 - (hits.sum() - hits.cumsum(0)) / (hits.sum() + (1 - hits).cumsum(0))
    # Not `@`, which autocast would round to bfloat16.
    return (errors * losses.diff(prepend=losses.new_zeros(1))).sum()
