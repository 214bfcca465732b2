"""A result as files of other tools: COCO results, GeoJSON, NumPy arrays."""

from __future__ import annotations

import io
import json

import numpy as np

from app.api.predictions import predictions_of
from app.api.record import Record


def to_coco(record: Record) -> bytes:
    """COCO's results: a list with one segment for each class, whose `image_id` is the result's id.

    Without boxes: a list that has them is read as one of boxes, and areas are then theirs.
    """
    segments = [
        {
            "image_id": record.id,
            "category_id": found.class_id,
            "segmentation": found.rle and found.rle.model_dump(),
            "score": found.confidence,
        }
        for found in predictions_of(record, ("rle",))
    ]
    return json.dumps(segments).encode()


def to_geojson(record: Record) -> bytes:
    """A FeatureCollection with one MultiPolygon for each class, in pixels from the upper left corner."""
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "MultiPolygon", "coordinates": found.polygons},
            "properties": {
                "class": found.class_name,
                "class_id": found.class_id,
                "confidence": found.confidence,
                "area": found.area,
                "fraction": found.fraction,
            },
        }
        for found in predictions_of(record, ("polygons",))
    ]
    return json.dumps({"type": "FeatureCollection", "features": features}).encode()


def to_npz(record: Record) -> bytes:
    """`mask` and `confidence` [H, W] uint8, `classes` [K] their names, `palette` [K, 3] uint8; loads without pickle."""
    classes, buffer = record.spec.classes, io.BytesIO()
    np.savez_compressed(
        buffer,
        mask=record.segmentation.mask,
        confidence=record.segmentation.confidence,
        classes=np.array(classes.names),
        palette=np.array(classes.palette, dtype=np.uint8),
    )
    return buffer.getvalue()
