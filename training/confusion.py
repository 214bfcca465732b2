"""Confusion matrix: counted, scored, drawn."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """All in percent."""

    miou: float
    accuracy: float
    iou: tuple[float, ...]  # per class; NaN for one that occurs neither in the masks nor in the predictions

    def to_json(self) -> str:
        # JSON knows no NaN.
        known = {
            "miou": _or_none(self.miou),
            "accuracy": _or_none(self.accuracy),
            "iou": [_or_none(iou) for iou in self.iou],
        }
        return json.dumps(known, indent=2, allow_nan=False)


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


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


CELL, MARGIN = 44, 120


def draw(confusion: Tensor, names: Sequence[str]) -> Image.Image:
    """The matrix as a picture: rows are true classes, cells the percentage of a row's pixels."""
    count = len(names)
    shares = 100 * confusion / confusion.sum(1, keepdim=True).clamp(min=1)
    picture = Image.new("RGB", (MARGIN + count * CELL, MARGIN + count * CELL), "white")
    canvas, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
    for row, name in enumerate(names):
        top = MARGIN + row * CELL
        canvas.text((MARGIN - 8, top + CELL / 2), name, "black", font, anchor="rm")
        label = Image.new("L", (MARGIN, CELL), 255)
        ImageDraw.Draw(label).text((8, CELL / 2), name, 0, font, anchor="lm")
        picture.paste(label.rotate(90, expand=True), (top, 0))
        for column in range(count):
            share = float(shares[row, column])
            left = MARGIN + column * CELL
            # White at 0 to a dark blue at 100; the eye needs the lower shares spread out.
            depth = math.sqrt(share / 100)
            color = (round(255 - 225 * depth), round(255 - 175 * depth), round(255 - 105 * depth))
            canvas.rectangle((left, top, left + CELL - 2, top + CELL - 2), color)
            text = f"{share:.0f}" if share >= 0.5 else ""
            canvas.text((left + CELL / 2, top + CELL / 2), text, "white" if share > 40 else "black", font, anchor="mm")
    return picture
