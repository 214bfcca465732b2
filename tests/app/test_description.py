from __future__ import annotations

from pathlib import Path

import pytest

from app.description import read_description
from models import Card, CheckpointError


def described(tmp_path: Path, text: str) -> Card:
    (tmp_path / "mine.yaml").write_text(text)
    return read_description(tmp_path / "mine.pth")


def test_without_a_file_nothing_is_said(tmp_path: Path) -> None:
    assert read_description(tmp_path / "mine.pth") == Card()


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "{}"])
def test_an_empty_file_says_nothing(tmp_path: Path, text: str) -> None:
    assert described(tmp_path, text) == Card()


def test_all_that_can_be_said(tmp_path: Path) -> None:
    text = """
        title: Fields
        dataset: fields of ours
        classes: [soil, crop]
        palette: [[120, 90, 60], [0, 160, 0]]
        mean: [123.675, 116.28, 103.53]
        std: [58.4, 57, 57.4]
        bgr: true
        scale: [1024, 768]
        mode: slide
        crop: [512, 512]
        stride: [341, 341]
        scales: [0.5, 1]
        flip: true
        align_corners: false
        recurrence: 3
        miou: 61.5
        licence: CC0
        source: trained on a rainy day
    """
    assert described(tmp_path, text) == Card(
        title="Fields",
        dataset="fields of ours",
        classes=("soil", "crop"),
        palette=((120, 90, 60), (0, 160, 0)),
        mean=(123.675, 116.28, 103.53),
        std=(58.4, 57.0, 57.4),
        bgr=True,
        scale=(1024, 768),
        mode="slide",
        crop=(512, 512),
        stride=(341, 341),
        scales=(0.5, 1.0),
        flip=True,
        align_corners=False,
        recurrence=3,
        miou=61.5,
        licence="CC0",
        source="trained on a rainy day",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colours: [[1, 2, 3]]", "unknown key 'colours'; there are title, dataset, classes, palette"),
        ("palette: [[1, 2, 300]]", r"palette\.0\.2: Input should be less than or equal to 255, not 300$"),
        ("mode: sideways", "mode: Input should be 'whole' or 'slide', not 'sideways'$"),
        ("mean: [1, 2]", r"mean\.2: Field required$"),
        ("std: [.nan, 1, 1]", r"std\.0: Input should be a finite number"),
        ("scale: [0, 10]", r"scale\.0: Input should be greater than or equal to 1"),
        ("scales: [0]", r"scales\.0: Input should be greater than 0"),
        ("scale: [100000, 5]", r"scale\.0: Input should be less than or equal to 65535"),
        ("recurrence: 4", "recurrence: Input should be 1, 2 or 3, not 4$"),
        ("classes: []", "classes: Tuple should have at least 1 item"),
        ("classes: [1, 2]", r"classes\.0: Input should be a valid string"),
        ("mode: &all [*all]", "mode: Input should be 'whole' or 'slide', not "),
        ("flip: {[1, 2]: 3}", "no YAML|flip: Input should be a valid boolean"),
        (f"title: [{'x, ' * 9999}]", r"title: .*, not \['x', .{,60}\.\.\.\]$"),
        ("- a\n- b", r"not a mapping of keys to values, but \['a', 'b'\]$"),
        ("just text", "not a mapping of keys to values, but 'just text'$"),
        ("classes: [a, b", "no YAML: while parsing"),
        ("x: !!python/object/apply:os.system ['true']", "no YAML: could not determine a constructor"),
        ("[" * 5000, "no YAML"),
    ],
)
def test_what_is_wrong_is_one_sentence_that_names_it(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"mine\.yaml: {message}") as caught:
        described(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe\xfd\x00\x81")
    with pytest.raises(CheckpointError, match=r"mine\.yaml: no YAML"):
        read_description(tmp_path / "mine.pth")


def test_either_suffix_but_not_both(tmp_path: Path) -> None:
    (tmp_path / "mine.yml").write_text("title: Fields")
    assert read_description(tmp_path / "mine.pth") == Card(title="Fields")
    (tmp_path / "mine.yaml").write_text("title: Other fields")
    with pytest.raises(CheckpointError, match=r"mine\.yaml: there is mine\.yml too"):
        read_description(tmp_path / "mine.pth")
