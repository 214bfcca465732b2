from __future__ import annotations

import json

import pytest

from models import card
from models.card import NOTHING_SAID, Card, first_said, of_header


def test_the_first_that_says_anything_is_heard_field_by_field() -> None:
    said = first_said(Card(mode="slide"), Card(mode="whole", bgr=False), Card(bgr=True, miou=77.0))
    assert said == Card(mode="slide", bgr=False, miou=77.0)
    assert first_said(NOTHING_SAID, said) == first_said(said, NOTHING_SAID) == said


def test_an_empty_header_says_nothing() -> None:
    assert of_header({}) == NOTHING_SAID


def test_a_header_of_ours() -> None:
    metadata = {
        "title": "CCNet",
        "dataset": "fields",
        "classes": json.dumps({"names": ["soil", "crop"], "palette": [[1, 2, 3], [4, 5, 6]]}),
        "preprocessing": json.dumps({"scale": [640, 480], "mean": [1, 2, 3.5], "std": [4, 5, 6], "multiple": 16}),
        "inference": json.dumps({"mode": "slide", "crop": [32, 48], "stride": [16, 24], "scales": [1, 2]}),
        "miou": "67.4",
        "licence": "CC0",
        "source": "me",
        "recurrence": "2",
    }
    assert of_header(metadata) == Card(
        title="CCNet",
        dataset="fields",
        classes=("soil", "crop"),
        palette=((1, 2, 3), (4, 5, 6)),
        mean=(1.0, 2.0, 3.5),
        std=(4.0, 5.0, 6.0),
        scale=(640, 480),
        multiple=16,
        antialias=True,
        mode="slide",
        crop=(32, 48),
        stride=(16, 24),
        scales=(1.0, 2.0),
        miou=67.4,
        licence="CC0",
        source="me",
    )


@pytest.mark.parametrize(
    "metadata",
    [
        {"classes": "not JSON", "preprocessing": "[1, 2]", "inference": "null", "miou": "[]"},
        {
            "classes": '{"names": [1], "palette": [[1, 2], [3, 4]]}',
            "inference": '{"mode": "sideways", "crop": [1.5, 2]}',
        },
        {"classes": '{"names": ["half \\ud83d"]}', "preprocessing": "[" * 100_000, "miou": "NaN"},
        {"miou": "1" + "0" * 400},
        {"classes": '{"names": "abc", "palette": [[256, 0, 0]]}', "inference": '{"crop": [true, 2], "stride": 7}'},
    ],
)
def test_what_is_not_of_the_right_form_is_not_said(metadata: dict[str, str]) -> None:
    assert of_header(metadata) == NOTHING_SAID


def test_whole_characters_of_any_script_are_names() -> None:
    assert card.names(["дорога", "木", "🚗"]) == ("дорога", "木", "🚗")


def test_a_number_too_large_is_infinite() -> None:
    assert of_header({"inference": json.dumps({"scales": [1, 10**400]})}).scales == (1.0, float("inf"))


@pytest.mark.parametrize("value", [None, "abc", [1, 2], [1, 2, "3"], [True, 1, 2], 7])
def test_no_triple(value: object) -> None:
    assert card.triple(value) is None
