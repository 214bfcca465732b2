"""Where masks made by hand differ."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from app.api.comparison import disagreement
from app.api.record import Record
from models.classes import ClassSet

Decoded = Callable[[bytes], np.ndarray[Any, Any]]
Made = Callable[..., Record]
ROWS = [[0, 0, 2, 0], [0, 0, 2, 0], [8, 8, 2, 0]]  # sky, a pole, a car


def renamed(record: Record, model: str, **changes: Any) -> Record:
    return replace(record, spec=replace(record.spec, name=model, **changes))


def test_two_models(make_record: Made, decoded: Decoded) -> None:
    first, second = np.array(ROWS, np.uint8), np.array(ROWS, np.uint8)
    second[2, 0] = second[2, 1] = 0
    second[0, 0] = 2
    found = disagreement([renamed(make_record(first), "a"), renamed(make_record(second), "b")])
    assert found.share == 0.25
    assert np.array_equal(decoded(base64.b64decode(found.mask)) == 255, first != second)
    (pair,) = found.pairs
    assert (pair.models, pair.share) == (["a", "b"], 0.25)
    # In the models' order, most first.
    assert [(one.classes, one.share) for one in pair.top] == [
        (["car", "sky"], pytest.approx(2 / 12, abs=1e-6)),
        (["sky", "pole"], pytest.approx(1 / 12, abs=1e-6)),
    ]


def test_three_models_each_with_its_own_mind(make_record: Made, decoded: Decoded) -> None:
    masks = [np.array([row], np.uint8) for row in ([0, 0, 0, 0], [0, 0, 2, 2], [0, 3, 2, 3])]
    found = disagreement([renamed(make_record(mask), name) for mask, name in zip(masks, "abc", strict=True)])
    assert decoded(base64.b64decode(found.mask)).tolist() == [[0, 128, 128, 255]]
    assert found.share == 0.75
    assert {"".join(pair.models): pair.share for pair in found.pairs} == {"ab": 0.5, "ac": 0.75, "bc": 0.5}


def test_models_that_agree(make_record: Made) -> None:
    records = [make_record(np.array(ROWS, np.uint8)) for _ in range(2)]
    found = disagreement(records)
    assert (found.share, found.pairs[0].share, found.pairs[0].top) == (0, 0, [])


def test_classes_are_compared_by_name(make_record: Made, decoded: Decoded) -> None:
    """The same name at another id agrees, the same id by another name does not."""
    turned = ClassSet(("road", "sky"), ((0, 0, 0), (1, 1, 1)))
    first = renamed(make_record(np.array([[0, 0]], np.uint8)), "a")
    second = renamed(make_record(np.array([[1, 0]], np.uint8)), "b", classes=turned)
    found = disagreement([first, second])
    assert decoded(base64.b64decode(found.mask)).tolist() == [[0, 255]]
    assert found.pairs[0].top[0].classes == ["sky", "road"]


def test_only_the_five_largest_kinds_are_listed(make_record: Made) -> None:
    mask = np.arange(8, dtype=np.uint8)[None]
    found = disagreement([make_record(mask), make_record(mask[:, ::-1].copy())])
    assert found.share == 1
    names = make_record(mask).spec.classes.names
    assert [one.classes[0] for one in found.pairs[0].top] == list(names[:5])  # of equals, in the models' order
