"""A record in each of the formats that a client can ask for."""

from __future__ import annotations

import base64

import numpy as np

from app.api.negotiation import negotiate
from app.api.record import Record
from app.api.schemas import Format, ImageSize, Links, Prediction, SegmentReply
from app.errors import NotAcceptable
from app.imaging import (
    MEDIA_TYPES,
    Array,
    ImageFormat,
    blend,
    decode,
    encode_ids,
    encode_palette,
    encode_rgb,
)

JSON = "application/json"

# What `Accept` alone asks for, best first. JPEG and WebP can't hold ids, so they mean the overlay.
OFFERS: dict[str, Format] = {JSON: "json", "image/png": "png", "image/jpeg": "overlay", "image/webp": "overlay"}
IMAGE_FORMATS: dict[str, ImageFormat] = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP"}
IMAGE_CONTENT: dict[str, dict[str, str]] = {media_type: {} for media_type in IMAGE_FORMATS}  # for OpenAPI


def choose_format(wanted: Format | None, accept: str | None) -> tuple[Format, str]:
    """Format and media type of the reply: the `format` parameter wins, `Accept` decides the rest.

    Raises:
        NotAcceptable: no format is given, and `Accept` takes none of what there is
    """
    if wanted is None:
        media_type = negotiate(accept, tuple(OFFERS))
        return OFFERS[media_type], media_type
    if wanted == "json":
        return wanted, JSON
    return wanted, image_type(accept) if wanted == "overlay" else "image/png"


def image_type(accept: str | None) -> str:
    """Media type for a picture whose format is settled by a parameter already: PNG unless another is preferred."""
    try:
        return negotiate(accept, tuple(IMAGE_FORMATS))
    except NotAcceptable:
        return MEDIA_TYPES["PNG"]


def render_image(record: Record, image_format: Format, media_type: str, alpha: float) -> bytes:
    """The mask as a picture, in any format but json."""
    mask, palette = record.segmentation.mask, np.array(record.spec.classes.palette, dtype=np.uint8)
    match image_format:
        case "palette":
            return encode_palette(mask, palette)
        case "color":
            return encode_rgb(palette[mask])
        case "overlay":
            return encode_rgb(blend(original(record), palette[mask], alpha), IMAGE_FORMATS[media_type])
        case _:
            return encode_ids(mask)


def original(record: Record) -> Array:
    """The image that was uploaded: [H, W, 3] uint8 RGB, upright."""
    width, height = record.size
    return decode(record.upload, max_pixels=width * height)


def render_json(record: Record) -> SegmentReply:
    """The reply to a segment request; its timings are those of the batch, and the caller adds its own."""
    width, height = record.size
    return SegmentReply(
        id=record.id,
        model=record.spec.name,
        image=ImageSize(width=width, height=height),
        class_map={str(index): name for index, name in enumerate(record.spec.classes.names)},
        segmentation_mask=base64.b64encode(encode_ids(record.segmentation.mask)).decode(),
        predictions=_predictions(record),
        timings_ms=record.segmentation.timings.milliseconds(),
        links=_links(record) if record.kept else Links(),
    )


def _links(record: Record) -> Links:
    return Links(
        mask=f"/results/{record.id}?format=png",
        overlay=f"/results/{record.id}?format=overlay",
        attention=f"/attention/{record.id}" if record.segmentation.traces else None,
    )


def _predictions(record: Record) -> list[Prediction]:
    mask, confidence = record.segmentation.mask, record.segmentation.confidence
    count = len(record.spec.classes.names)
    areas = np.bincount(mask.ravel(), minlength=count)
    certainty = np.bincount(mask.ravel(), weights=confidence.ravel() / np.float32(255), minlength=count)
    predictions = []
    for class_id in np.flatnonzero(areas).tolist():
        left, top, right, bottom = _bounds(mask == class_id)
        predictions.append(
            Prediction(
                class_name=record.spec.classes.names[class_id],
                class_id=class_id,
                confidence=round(certainty[class_id] / areas[class_id], 4),
                area=int(areas[class_id]),
                fraction=round(areas[class_id] / mask.size, 6),
                x=(left + right) / 2,
                y=(top + bottom) / 2,
                width=right - left,
                height=bottom - top,
            )
        )
    return predictions


def _bounds(member: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the smallest box around the true pixels; right and bottom lie outside."""
    columns, rows = np.flatnonzero(member.any(0)), np.flatnonzero(member.any(1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
