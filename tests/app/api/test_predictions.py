"""What is said of each class of a mask made by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from app.api.predictions import predictions_of
from app.api.record import Record
from app.regions import encode_rle, trace_polygons

# Sky with a pole through it, and a car in the last row.
MASK = np.array([[0, 0, 2, 0], [0, 0, 2, 0], [8, 8, 2, 0]], np.uint8)


def test_each_class_has_its_own_regions(make_record: Callable[..., Record]) -> None:
    polygons = trace_polygons(MASK)
    found = predictions_of(make_record(MASK), ("rle", "polygons"))
    assert [one.class_id for one in found] == [0, 2, 8]
    for one in found:
        assert one.rle is not None
        assert (one.rle.size, one.rle.counts) == ((3, 4), encode_rle(one.class_id == MASK))
        assert one.polygons == polygons[one.class_id]
    assert [len(one.polygons or ()) for one in found] == [2, 1, 1]  # the pole parts the sky


def test_regions_are_left_out_unless_wanted(make_record: Callable[..., Record]) -> None:
    for one in predictions_of(make_record(MASK)):
        assert (one.rle, one.polygons) == (None, None)
