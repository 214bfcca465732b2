"""Files for other tools, read by those that there are."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable

import numpy as np
import pytest
import shapely
from pycocotools.coco import COCO

from app.api.exports import to_coco, to_geojson, to_npz
from app.api.record import Record

MASK = np.array([[0, 0, 2, 0], [0, 0, 2, 0], [8, 8, 2, 0]], np.uint8)


@pytest.fixture
def record(make_record: Callable[..., Record]) -> Record:
    return make_record(MASK, confidence=51)


def test_coco_results_are_read_by_coco(record: Record) -> None:
    names = record.spec.classes.names
    truth = COCO()
    truth.dataset = {
        "images": [{"id": record.id, "height": 3, "width": 4}],
        "categories": [{"id": index, "name": name} for index, name in enumerate(names)],
        "annotations": [],
    }
    with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress there
        truth.createIndex()
        results = truth.loadRes(json.loads(to_coco(record)))
    segments = results.loadAnns(results.getAnnIds())
    assert [one["category_id"] for one in segments] == [0, 2, 8]
    for one in segments:
        member = one["category_id"] == MASK
        assert np.array_equal(results.annToMask(one), member)
        assert (one["area"], one["score"]) == (member.sum(), 0.2)


def test_geojson_is_read_by_geos(record: Record) -> None:
    text = to_geojson(record).decode()
    collection = json.loads(text)
    assert collection["type"] == "FeatureCollection"
    assert len(shapely.from_geojson(text).geoms) == 3
    sky, pole, car = collection["features"]
    assert sky["properties"] == {
        "class": "sky",
        "class_id": 0,
        "confidence": 0.2,
        "area": 7,
        "fraction": pytest.approx(7 / 12, abs=1e-6),
    }
    for feature in (sky, pole, car):
        shape = shapely.from_geojson(json.dumps(feature["geometry"]))
        assert (shape.geom_type, shape.is_valid) == ("MultiPolygon", True)
        assert shape.area == feature["properties"]["area"]
    assert shapely.from_geojson(json.dumps(car["geometry"])).bounds == (0, 2, 2, 3)


def test_npz_needs_no_pickle(record: Record) -> None:
    arrays = np.load(io.BytesIO(to_npz(record)), allow_pickle=False)
    assert np.array_equal(arrays["mask"], MASK)
    assert (arrays["confidence"] == 51).all()
    assert arrays["classes"].tolist() == list(record.spec.classes.names)
    assert arrays["palette"].tolist() == [list(color) for color in record.spec.classes.palette]
    assert {arrays[name].dtype for name in ("mask", "confidence", "palette")} == {np.dtype(np.uint8)}
