"""Confusion matrix and what follows from it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """All in percent."""

    miou: float
    accuracy: float
    iou: tuple[float, ...]  # per class; NaN for one that occurs neither in the masks nor in the predictions

    def to_json(self) -> str:
        # JSON knows no NaN.
        known = [None if math.isnan(iou) else iou for iou in self.iou]
        return json.dumps({**asdict(self), "iou": known}, indent=2, allow_nan=False)


def confusion_matrix(mask: Tensor, ids: Tensor, num_classes: int) -> Tensor:
    """Pixels by true and predicted class, [K, K] int64; true ids of K and above are not counted."""
    labelled = mask < num_classes
    pairs = mask[labelled].long() * num_classes + ids[labelled].long()
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)


def scores(confusion: Tensor) -> Scores:
    """Intersection over union per class and in the mean over the classes that occur, and pixel accuracy."""
    hits = confusion.diagonal().double()
    union = confusion.sum(0) + confusion.sum(1) - hits
    iou = 100 * hits / union
    occurring = iou[union > 0]
    return Scores(occurring.mean().item(), (100 * hits.sum() / confusion.sum()).item(), tuple(iou.tolist()))
