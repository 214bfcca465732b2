"""Formats and their choice, on a mask made by hand."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from app.api.record import Record
from app.api.rendering import choose_format, image_type, original, render_file, render_json
from app.api.schemas import Part
from app.errors import NotAcceptable
from models import Trace

Decoded = Callable[[bytes], np.ndarray[Any, Any]]
# Sky with a pole through it, and a car in the last row.
MASK = np.array([[0, 0, 2, 0], [0, 0, 2, 0], [8, 8, 2, 0]], np.uint8)


@pytest.fixture
def record(make_record: Callable[..., Record]) -> Record:
    return make_record(MASK, confidence=51)


@pytest.mark.parametrize(
    ("wanted", "accept", "chosen"),
    [
        (None, None, ("json", "application/json")),
        (None, "image/png", ("png", "image/png")),
        (None, "image/webp", ("overlay", "image/webp")),
        ("json", "image/png", ("json", "application/json")),
        ("png", "application/json", ("png", "image/png")),
        ("palette", "image/webp", ("palette", "image/png")),
        ("color", "text/html", ("color", "image/png")),
        ("overlay", "image/jpeg", ("overlay", "image/jpeg")),
        ("overlay", "text/html", ("overlay", "image/png")),
        ("overlay", "image/webp;q=0.9, image/*;q=0.1", ("overlay", "image/webp")),
        ("confidence", "application/json", ("confidence", "image/png")),
        ("coco", "image/png", ("coco", "application/json")),
        ("geojson", None, ("geojson", "application/geo+json")),
        ("npz", None, ("npz", "application/x-npz")),
        (None, "application/geo+json", ("geojson", "application/geo+json")),
        (None, "application/x-npz", ("npz", "application/x-npz")),
    ],
)
def test_the_parameter_wins(wanted: Any, accept: str | None, chosen: tuple[str, str]) -> None:
    assert choose_format(wanted, accept) == chosen


def test_without_the_parameter_accept_must_fit() -> None:
    with pytest.raises(NotAcceptable):
        choose_format(None, "text/html")
    assert image_type("text/html") == "image/png"


def test_pictures(record: Record, decoded: Decoded) -> None:
    palette = np.array(record.spec.classes.palette, np.uint8)
    assert np.array_equal(decoded(render_file(record, "png", "image/png", 0.5)), MASK)
    assert np.array_equal(decoded(render_file(record, "palette", "image/png", 0.5)), MASK)
    assert np.array_equal(decoded(render_file(record, "color", "image/png", 0.5)), palette[MASK])
    assert (decoded(render_file(record, "confidence", "image/png", 0.5)) == 51).all()
    mixed = decoded(render_file(record, "overlay", "image/png", 0.25)).astype(float)
    expected = 0.75 * original(record) + 0.25 * palette[MASK]
    assert np.abs(mixed - expected).max() <= 1


def test_json(record: Record, decoded: Decoded) -> None:
    reply = render_json(record).model_dump(by_alias=True, exclude_none=True)
    assert np.array_equal(decoded(base64.b64decode(reply["segmentation_mask"])), MASK)
    assert reply["image"] == {"width": 4, "height": 3}
    assert reply["timings_ms"] == {"forward": 500}
    sky, pole, car = reply["predictions"]
    assert sky == {
        "class": "sky",
        "class_id": 0,
        "confidence": 0.2,
        "area": 7,
        "fraction": pytest.approx(7 / 12, abs=1e-6),
        "x": 2,
        "y": 1.5,
        "width": 4,
        "height": 3,
    }
    assert [pole[name] for name in ("class", "area", "x", "y", "width", "height")] == ["pole", 3, 2.5, 1.5, 1, 3]
    assert [car[name] for name in ("class", "area", "x", "y", "width", "height")] == ["car", 2, 1, 2.5, 2, 1]


@pytest.mark.parametrize("parts", [(), ("rle",), ("mask", "polygons"), ("mask", "rle", "polygons")])
def test_json_has_the_parts_that_are_wanted(record: Record, parts: tuple[Part, ...]) -> None:
    reply = render_json(record, parts).model_dump(by_alias=True, exclude_none=True)
    assert ("segmentation_mask" in reply) == ("mask" in parts)
    for prediction in reply["predictions"]:
        assert {"rle", "polygons"} & prediction.keys() == set(parts) - {"mask"}


def test_attention_is_linked_if_there_is_any(make_record: Callable[..., Record], dense_trace: Trace) -> None:
    assert render_json(make_record(MASK)).links.attention is None
    assert render_json(make_record(MASK, dense_trace)).links.attention == "/attention/made-by-hand"
