"""The classes that a mask has, with what is known of each."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from app.api.record import Record
from app.api.schemas import Part, Prediction, Rle
from app.regions import encode_rle, trace_polygons


def predictions_of(record: Record, parts: tuple[Part, ...] = ()) -> list[Prediction]:
    """
    Args:
        parts: those that are of a class, rle and polygons, are added to each
    """
    mask, confidence = record.segmentation.mask, record.segmentation.confidence
    (rows, columns), names = mask.shape, record.spec.classes.names
    # How often each class has each confidence, of which areas and means follow: one pass over whole numbers.
    pairs = (mask.astype(np.uint16) << 8 | confidence).ravel()
    counts = np.bincount(pairs, minlength=len(names) << 8).reshape(len(names), 256)
    areas, certainty = counts.sum(1), counts @ (np.arange(256) / 255)
    polygons = trace_polygons(mask) if "polygons" in parts else {}
    predictions = []
    for class_id in np.flatnonzero(areas).tolist():
        member = mask == class_id
        left, top, right, bottom = _bounds(member)
        predictions.append(
            Prediction(
                class_name=names[class_id],
                class_id=class_id,
                confidence=round(certainty[class_id] / areas[class_id], 4),
                area=int(areas[class_id]),
                fraction=round(areas[class_id] / mask.size, 6),
                x=(left + right) / 2,
                y=(top + bottom) / 2,
                width=right - left,
                height=bottom - top,
                rle=Rle(size=(rows, columns), counts=encode_rle(member)) if "rle" in parts else None,
                polygons=polygons.get(class_id),
            )
        )
    return predictions


def _bounds(member: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the smallest box around the true pixels; right and bottom lie outside."""
    columns, rows = np.flatnonzero(member.any(0)), np.flatnonzero(member.any(1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
