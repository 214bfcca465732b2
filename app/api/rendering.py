"""A record in each of the formats that a client can ask for."""

from __future__ import annotations

import base64

import numpy as np

from app.api.exports import to_coco, to_geojson, to_npz
from app.api.negotiation import negotiate
from app.api.predictions import predictions_of
from app.api.record import Record
from app.api.schemas import Format, ImageSize, Links, Part, SegmentReply
from app.errors import NotAcceptable
from app.imaging import (
    LONGEST_SIDE,
    MEDIA_TYPES,
    Array,
    ImageFormat,
    blend,
    colored,
    decode,
    encode_ids,
    encode_palette,
    encode_rgb,
)

JSON = "application/json"
GEOJSON = "application/geo+json"
NPZ = "application/x-npz"  # not registered, as NPY is not

# What `Accept` alone asks for, best first. JPEG and WebP can't hold ids, so they mean the overlay.
OFFERS: dict[str, Format] = {
    JSON: "json",
    "image/png": "png",
    "image/jpeg": "overlay",
    "image/webp": "overlay",
    GEOJSON: "geojson",
    NPZ: "npz",
}
# Of formats that are no PNG.
MEDIA_TYPE_OF: dict[Format, str] = {"json": JSON, "coco": JSON, "geojson": GEOJSON, "npz": NPZ}
IMAGE_FORMATS: dict[str, ImageFormat] = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP"}
IMAGE_CONTENT: dict[str, dict[str, str]] = {media_type: {} for media_type in IMAGE_FORMATS}  # for OpenAPI
CONTENT: dict[str, dict[str, str]] = {media_type: {} for media_type in OFFERS if media_type != JSON}


def choose_format(wanted: Format | None, accept: str | None) -> tuple[Format, str]:
    """Format and media type of the reply: the `format` parameter wins, `Accept` decides the rest.

    Raises:
        NotAcceptable: no format is given, and `Accept` takes none of what there is
    """
    if wanted is None:
        media_type = negotiate(accept, tuple(OFFERS))
        return OFFERS[media_type], media_type
    if wanted == "overlay":
        return wanted, image_type(accept)
    return wanted, MEDIA_TYPE_OF.get(wanted, "image/png")


def image_type(accept: str | None) -> str:
    """Media type for a picture whose format is settled by a parameter already: PNG unless another is preferred."""
    try:
        return negotiate(accept, tuple(IMAGE_FORMATS))
    except NotAcceptable:
        return MEDIA_TYPES["PNG"]


def fitting_type(media_type: str, accept: str | None, size: tuple[int, int]) -> str:
    """The media type itself, or of a picture whose sides (width, height) it cannot hold another that `Accept` takes.

    Raises:
        NotAcceptable: it takes none that can hold them
    """
    side = max(size)
    if media_type not in IMAGE_FORMATS or side <= (limit := LONGEST_SIDE[IMAGE_FORMATS[media_type]]):
        return media_type
    able = tuple(other for other, image_format in IMAGE_FORMATS.items() if side <= LONGEST_SIDE[image_format])
    try:
        return negotiate(accept, able)
    except NotAcceptable as exc:
        detail = f"the picture is {size[0]}x{size[1]}; the limit of a side in {media_type} is {limit}, and {exc.detail}"
        raise NotAcceptable(detail, limit=limit, actual=side) from None


def render_file(record: Record, wanted: Format, media_type: str, alpha: float) -> bytes:
    """The result in any format but json."""
    mask, palette = record.segmentation.mask, np.array(record.spec.classes.palette, dtype=np.uint8)
    match wanted:
        case "palette":
            return encode_palette(mask, palette)
        case "color":
            return encode_rgb(colored(mask, palette))
        case "overlay":
            return encode_rgb(blend(original(record), colored(mask, palette), alpha), IMAGE_FORMATS[media_type])
        case "confidence":
            return encode_ids(record.segmentation.confidence)
        case "coco":
            return to_coco(record)
        case "geojson":
            return to_geojson(record)
        case "npz":
            return to_npz(record)
        case _:
            return encode_ids(mask)


def original(record: Record) -> Array:
    """The image that was uploaded: [H, W, 3] uint8 RGB, upright."""
    width, height = record.size
    return decode(record.upload, max_pixels=width * height)


def render_json(record: Record, parts: tuple[Part, ...] = ("mask",)) -> SegmentReply:
    """The reply to a segment request; its timings are those of the batch, and the caller adds its own."""
    width, height = record.size
    mask = base64.b64encode(encode_ids(record.segmentation.mask)).decode() if "mask" in parts else None
    return SegmentReply(
        id=record.id,
        model=record.spec.name,
        image=ImageSize(width=width, height=height),
        class_map={str(index): name for index, name in enumerate(record.spec.classes.names)},
        segmentation_mask=mask,
        predictions=predictions_of(record, parts),
        timings_ms=record.segmentation.timings.milliseconds(),
        links=_links(record) if record.kept else Links(),
    )


def _links(record: Record) -> Links:
    return Links(
        mask=f"/results/{record.id}?format=png",
        overlay=f"/results/{record.id}?format=overlay",
        attention=f"/attention/{record.id}" if record.segmentation.traces else None,
    )
