"""Run lengths against COCO's own reader, polygons against the pixels that they surround."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image, ImageDraw
from pycocotools import mask as coco

from app.regions import Polygon, Ring, encode_rle, trace_polygons

masks = arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 3))


def signed_area(ring: Ring) -> float:
    x, y = np.array(ring, dtype=float).T
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2)


def inside(polygons: list[Polygon], height: int, width: int) -> np.ndarray[Any, Any]:
    """Which pixels' centres lie in the polygons, by counting the upright edges to their left: even and odd."""
    crossed = np.zeros((height, width), dtype=int)
    for ring in (ring for polygon in polygons for ring in polygon):
        for (x, start), (_, end) in ((one, other) for one, other in pairwise(ring) if one[0] == other[0]):
            crossed[min(start, end) : max(start, end), x:] += 1
    return crossed % 2 == 1


@given(masks)
def test_run_lengths_are_read_back(mask: np.ndarray[Any, Any]) -> None:
    for class_id in range(4):
        rle = {"size": list(mask.shape), "counts": encode_rle(mask == class_id)}
        assert np.array_equal(coco.decode(rle), mask == class_id)
        assert coco.area(rle) == (mask == class_id).sum()


@given(masks)
def test_polygons_surround_their_pixels_and_no_others(mask: np.ndarray[Any, Any]) -> None:
    found = trace_polygons(mask)
    assert list(found) == np.unique(mask).tolist()
    for class_id, polygons in found.items():
        assert np.array_equal(inside(polygons, *mask.shape), mask == class_id)
        for outline, *holes in polygons:
            assert signed_area(outline) > 0
            assert all(signed_area(hole) < 0 for hole in holes)
            assert all(ring[0] == ring[-1] for ring in (outline, *holes))
            edges = [np.subtract(*pair) for ring in (outline, *holes) for pair in pairwise(ring)]
            assert all((edge == 0).sum() == 1 for edge in edges)
        assert sum(signed_area(ring) for polygon in polygons for ring in polygon) == (mask == class_id).sum()


def test_a_hole_and_an_island_in_it() -> None:
    mask = np.zeros((5, 5), np.uint8)
    mask[1:4, 1:4] = 1
    mask[2, 2] = 0
    found = trace_polygons(mask)
    assert [len(polygon) for polygon in found[0]] in ([2, 1], [1, 2])
    ((outline, hole),) = found[1]
    assert sorted(map(tuple, hole[:-1])) == [(2, 2), (2, 3), (3, 2), (3, 3)]
    assert sorted(map(tuple, outline[:-1])) == [(1, 1), (1, 4), (4, 1), (4, 4)]


def test_regions_that_touch_at_a_corner_are_apart() -> None:
    mask = np.array([[1, 0], [0, 1]], np.uint8)
    assert {class_id: len(polygons) for class_id, polygons in trace_polygons(mask).items()} == {0: 2, 1: 2}


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (180, 240)])
def test_one_class_is_one_rectangle(shape: tuple[int, int]) -> None:
    height, width = shape
    ((ring,),) = trace_polygons(np.full(shape, 3, np.uint8))[3]
    assert sorted(map(tuple, ring[:-1])) == sorted([(0, 0), (0, height), (width, 0), (width, height)])


def test_a_picture_with_curves() -> None:
    picture = Image.new("L", (300, 200))
    draw = ImageDraw.Draw(picture)
    for radius in range(90, 5, -7):
        draw.circle((150, 100), radius, fill=radius % 3)
    mask = np.array(picture)
    for class_id, polygons in trace_polygons(mask).items():
        assert np.array_equal(inside(polygons, 200, 300), mask == class_id)
