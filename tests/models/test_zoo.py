from __future__ import annotations

import json
from pathlib import Path

from models.zoo import HEADS, PUBLISHED, of_file_name

METHODS = {"ccnet": "ccnet", "ann": "ann", "nonlocal": "nonlocal_net"}


def test_the_table_is_mmsegmentations(shared: Path) -> None:
    table = json.loads((shared / "reference" / "model_zoo.json").read_text())
    assert [
        (METHODS[one.head], one.data_set.name, f"R-{one.depth}-D8", one.crop, one.schedule, one.miou, one.file)
        for one in PUBLISHED
    ] == [
        (row["method"], row["dataset"], row["backbone"], row["crop"], row["iters"], row["miou"], Path(path).name)
        for row in table
        for path in [row["weights_path"]]
    ]
    assert [one.name for one in PUBLISHED] == [Path(row["weights_path"]).parent.name for row in table]


def test_every_checkpoint_has_a_file_of_its_own() -> None:
    assert len(PUBLISHED) == len({one.file for one in PUBLISHED}) == len({one.hash_prefix for one in PUBLISHED}) == 48
    assert all(len(one.hash_prefix) == 8 and int(one.hash_prefix, 16) for one in PUBLISHED)
    assert {one.head for one in PUBLISHED} == HEADS.keys()


def test_a_file_is_found_by_its_whole_name() -> None:
    for one in PUBLISHED:
        assert of_file_name(one.file) is one
        assert of_file_name(one.name) is None
    assert of_file_name("latest.pth") is None


def test_those_trained_on_squares_of_769_slide() -> None:
    assert {one.data for one in PUBLISHED if one.slides} == {"cityscapes"}
    assert sum(one.slides for one in PUBLISHED) == 12
