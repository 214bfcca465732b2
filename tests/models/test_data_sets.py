from __future__ import annotations

import json
from pathlib import Path

import pytest

from models.classes import default_palette
from models.data_sets import ADE20K, CAMVID, CITYSCAPES, DATA_SETS, VOC, DataSet, of_class_count


@pytest.mark.parametrize(
    ("name", "data_set"), [("cityscapes", CITYSCAPES), ("ade20k", ADE20K), ("voc", VOC), ("camvid", CAMVID)]
)
def test_classes_and_palettes_are_the_published_ones(name: str, data_set: DataSet, shared: Path) -> None:
    published = json.loads((shared / "reference" / "palettes.json").read_text())[name]
    assert list(data_set.classes.names) == [name.strip() for name in published["classes"]]
    assert [list(color) for color in data_set.classes.palette] == published["palette"]


@pytest.mark.parametrize("data_set", DATA_SETS, ids=lambda data_set: data_set.name)
def test_every_id_has_a_name_and_a_colour(data_set: DataSet) -> None:
    names, palette = data_set.classes.names, data_set.classes.palette
    assert len(names) == len(palette) == len(set(names))
    assert all(0 <= part <= 255 for color in palette for part in color)
    assert of_class_count(len(names)) is data_set


def test_no_data_set_has_seven_classes() -> None:
    assert of_class_count(7) is None


def test_colours_of_unknown_classes_are_all_different() -> None:
    assert len(set(default_palette(256))) == 256
    assert all(0 <= part <= 255 for color in default_palette(256) for part in color)
