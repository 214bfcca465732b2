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


WRONG = {
    "no names": ({"palette": CONTENT["palette"]}, "'names'"),
    "no palette": ({"names": CONTENT["names"]}, "'palette'"),
    "no mapping": (["soil", "crop"], "needs names, palette"),
    "nothing": (None, "needs names, palette"),
    "a colour by name": ({**CONTENT, "palette": ["red", "lime", "blue"]}, "'r'"),
    "a colour of two parts": ({**CONTENT, "palette": [[1, 2]] * 3}, "RGB triples"),
    "a colour of four parts": ({**CONTENT, "palette": [[1, 2, 3, 4]] * 3}, "RGB triples"),
    "a part above 255": ({**CONTENT, "palette": [[0, 0, 0], [0, 256, 0], [1, 1, 1]]}, "(0, 256, 0) is no colour"),
    "a part below 0": ({**CONTENT, "palette": [[0, 0, 0], [0, 0, 0], [1, -1, 1]]}, "(1, -1, 1) is no colour"),
    "a colour too few": ({**CONTENT, "palette": [[0, 0, 0]] * 2}, "3 names and 2 colours"),
    "one class": ({"names": ["soil"], "palette": [[0, 0, 0]]}, "1 names and 1 colours; 2 to 255"),
    "256 classes": ({"names": [*range(256)], "palette": [[0, 0, 0]] * 256}, "256 names and 256 colours; 2 to 255"),
    "one value to ignore": ({**CONTENT, "ignore": 255}, "ignore"),
    "a word to ignore": ({**CONTENT, "ignore": ["void"]}, "'void'"),
}


@pytest.mark.parametrize("name", ["labels.yaml", "labels.json"])
@pytest.mark.parametrize(("content", "said"), WRONG.values(), ids=WRONG)
def test_wrong_content_is_refused_with_file_and_value(content: object, said: str, name: str, tmp_path: Path) -> None:
    path = written(content, tmp_path, name)
    with pytest.raises(LabelsError, match=f"^{re.escape(str(path))}: .*{re.escape(said)}"):
        load_labels(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"names: [soil, crop", "line 1"), (b"{names: ", "expected"), (b"names: \xff\xfe", "utf-8")],
    ids=["yaml", "json", "bytes"],
)
def test_file_that_cannot_be_parsed_is_refused(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.yaml"
    path.write_bytes(content)
    with pytest.raises(LabelsError, match=f"(?s)^{re.escape(str(path))}: .*{said}"):
        load_labels(path)


def test_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(LabelsError, match=r"absent\.yaml: .*No such file"):
        load_labels(tmp_path / "absent.yaml")
