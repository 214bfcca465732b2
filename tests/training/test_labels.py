"""Labels files, right and wrong in each way there is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from models.classes import CAMVID, ClassSet
from training.labels import CAMVID_LABELS, Labels, LabelsError, load_labels, to_json

CONTENT = {"names": ["soil", "crop", "weed"], "palette": [[90, 60, 30], [0, 160, 0], [220, 0, 80]], "ignore": [7, 255]}
README = Path(__file__).parents[2] / "training" / "README.md"
LABELS = Labels(
    ClassSet(("soil", "crop", "weed"), ((90, 60, 30), (0, 160, 0), (220, 0, 80))), ignored=frozenset({7, 255})
)


def written(content: object, folder: Path, name: str = "labels.yaml") -> Path:
    path = folder / name
    path.write_text(json.dumps(content) if name.endswith("json") else yaml.safe_dump(content))
    return path


@pytest.mark.parametrize("name", ["labels.yaml", "labels.json"])
def test_json_and_yaml_are_read_alike(name: str, tmp_path: Path) -> None:
    assert load_labels(written(CONTENT, tmp_path, name)) == LABELS
    assert LABELS.count == 3


def test_readme_s_example_is_a_labels_file(tmp_path: Path) -> None:
    example = re.search(r"```yaml\n(.*?)```", README.read_text(), re.DOTALL)
    assert example is not None
    (tmp_path / "labels.yaml").write_text(example[1])
    assert load_labels(tmp_path / "labels.yaml") == LABELS


def test_255_is_ignored_if_nothing_is_said(tmp_path: Path) -> None:
    content = {key: value for key, value in CONTENT.items() if key != "ignore"}
    assert load_labels(written(content, tmp_path)).ignored == {255}


def test_nothing_need_be_ignored(tmp_path: Path) -> None:
    assert load_labels(written({**CONTENT, "ignore": []}, tmp_path)).ignored == frozenset()


def test_camvid_ignores_the_value_after_its_classes() -> None:
    assert (CAMVID_LABELS.classes, CAMVID_LABELS.count, CAMVID_LABELS.ignored) == (CAMVID, 11, frozenset({11}))


@pytest.mark.parametrize("classes", [LABELS.classes, CAMVID])
def test_what_a_header_keeps_is_read_back(classes: ClassSet, tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text(to_json(classes))
    assert load_labels(tmp_path / "labels.json").classes == classes


FORM = "needs names and palette, and may have ignore"
TEXT = "a name is a text"
COLOUR = "a colour is three numbers from 0 to 255"
BYTE = "a mask's value is a number from 0 to 255"
WRONG = {
    "no names": ({"palette": CONTENT["palette"]}, FORM),
    "no palette": ({"names": CONTENT["names"]}, FORM),
    "no mapping": (["soil", "crop"], FORM),
    "nothing": (None, FORM),
    "names in one text": ({**CONTENT, "names": "soil crop weed"}, "names is 'soil crop weed', not a list"),
    "a palette by name": ({**CONTENT, "palette": {"soil": [1, 2, 3]}}, "palette is {'soil': [1, 2, 3]}, not a list"),
    "one value to ignore": ({**CONTENT, "ignore": 255}, "ignore is 255, not a list"),
    "ignore left blank": ({**CONTENT, "ignore": None}, "ignore is None, not a list"),
    "a number for a name": ({**CONTENT, "names": ["soil", 2, "weed"]}, f"names holds 2; {TEXT}"),
    "a truth value for a name": ({**CONTENT, "names": ["soil", False, "weed"]}, f"names holds False; {TEXT}"),
    "a colour by name": ({**CONTENT, "palette": ["red", "lime", "blue"]}, f"palette holds 'red'; {COLOUR}"),
    "a colour of two parts": ({**CONTENT, "palette": [[1, 2]] * 3}, f"palette holds [1, 2]; {COLOUR}"),
    "a colour of four parts": ({**CONTENT, "palette": [[1, 2, 3, 4]] * 3}, f"palette holds [1, 2, 3, 4]; {COLOUR}"),
    "a part above 255": ({**CONTENT, "palette": [[0, 0, 0], [0, 256, 0], [1, 1, 1]]}, f"holds [0, 256, 0]; {COLOUR}"),
    "a part below 0": ({**CONTENT, "palette": [[0, 0, 0], [0, 0, 0], [1, -1, 1]]}, f"holds [1, -1, 1]; {COLOUR}"),
    "a fraction": ({**CONTENT, "palette": [[0, 0.5, 0]] * 3}, f"palette holds [0, 0.5, 0]; {COLOUR}"),
    "a word to ignore": ({**CONTENT, "ignore": ["void"]}, f"ignore holds 'void'; {BYTE}"),
    "a truth value to ignore": ({**CONTENT, "ignore": [True]}, f"ignore holds True; {BYTE}"),
    "256 to ignore": ({**CONTENT, "ignore": [255, 256]}, f"ignore holds 256; {BYTE}"),
    "a class to ignore": ({**CONTENT, "ignore": [255, 2, 1]}, "ignore holds 1, which is the id of 'crop'"),
    "a name twice": ({**CONTENT, "names": ["soil", "crop", "soil"]}, "2 different names of 3, 3 colours; 2 to 255"),
    "a colour too few": ({**CONTENT, "palette": [[0, 0, 0]] * 2}, "3 different names of 3, 2 colours"),
    "one class": ({"names": ["soil"], "palette": [[0, 0, 0]]}, "1 different names of 1, 1 colours; 2 to 255"),
    "256 classes": (
        {"names": [str(index) for index in range(256)], "palette": [[0, 0, 0]] * 256},
        "256 different names of 256, 256 colours; 2 to 255",
    ),
}


@pytest.mark.parametrize("name", ["labels.yaml", "labels.json"])
@pytest.mark.parametrize(("content", "said"), WRONG.values(), ids=WRONG)
def test_wrong_content_is_refused_with_file_and_value(content: object, said: str, name: str, tmp_path: Path) -> None:
    path = written(content, tmp_path, name)
    with pytest.raises(LabelsError, match=f"^{re.escape(str(path))}: .*{re.escape(said)}"):
        load_labels(path)


def test_yaml_s_no_is_not_taken_for_a_name(tmp_path: Path) -> None:
    (tmp_path / "labels.yaml").write_text("names: [soil, no]\npalette: [[0, 0, 0], [1, 1, 1]]\n")
    with pytest.raises(LabelsError, match="names holds False; a name is a text"):
        load_labels(tmp_path / "labels.yaml")


def test_most_classes_that_a_mask_can_hold_beside_255(tmp_path: Path) -> None:
    content = {"names": [str(index) for index in range(255)], "palette": [[0, 0, 0]] * 255}
    labels = load_labels(written(content, tmp_path))
    assert (labels.count, labels.ignored) == (255, frozenset({255}))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"names: [soil, crop", "line 1"),
        (b"names: [soil]\n  palette: [", "line 2"),
        (b"{names: ", "expected"),
        (b"names: \xff\xfe", "utf-8"),
    ],
    ids=["yaml", "indented", "json", "bytes"],
)
def test_file_that_cannot_be_parsed_is_refused_on_one_line(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.yaml"
    path.write_bytes(content)
    with pytest.raises(LabelsError) as refusal:
        load_labels(path)
    assert re.fullmatch(f"{re.escape(str(path))}: .*{said}.*", str(refusal.value))  # `.` is no line break


def test_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(LabelsError, match=r"absent\.yaml: .*No such file"):
        load_labels(tmp_path / "absent.yaml")
