"""What the values in a data set's masks mean."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from models.classes import CAMVID, ClassSet

IGNORED = 255  # unless a file says otherwise; no more names than that fit below it


class LabelsError(Exception):
    """A labels file, or a mask that does not keep to it; the message names the file and the value."""


@dataclass(frozen=True)
class Labels:
    """
    Attributes:
        classes: names and colours; a class's id is its place
        ignored: mask values that stand for no class
    """

    classes: ClassSet
    ignored: frozenset[int]

    @property
    def count(self) -> int:
        return len(self.classes.names)


CAMVID_LABELS = Labels(CAMVID, frozenset({len(CAMVID.names)}))


def load_labels(path: Path) -> Labels:
    """Read `names`, `palette` (RGB) and optionally `ignore` ([255] if absent) from YAML, of which JSON is a part.

    Raises:
        LabelsError: the file is not that; the message names the value
    """
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as exc:
        raise LabelsError(f"{path}: {' '.join(str(exc).split())}") from exc
    if not isinstance(content, dict) or not {"names", "palette"} <= content.keys():
        raise LabelsError(f"{path}: needs names and palette, and may have ignore")
    content = {"ignore": [IGNORED], **content}
    for key, (is_right, rule) in RULES.items():
        if not isinstance(content[key], list):
            raise LabelsError(f"{path}: {key} is {content[key]!r}, not a list")
        for item in content[key]:
            if not is_right(item):
                raise LabelsError(f"{path}: {key} holds {item!r}; {rule}")
    names, palette, ignored = (content[key] for key in RULES)
    if not 2 <= len(names) <= IGNORED or len(palette) != len(names) or len(set(names)) != len(names):
        raise LabelsError(
            f"{path}: {len(set(names))} different names of {len(names)}, {len(palette)} colours; "
            f"2 to {IGNORED} of each, alike in number"
        )
    if classes := sorted(value for value in ignored if value < len(names)):
        raise LabelsError(f"{path}: ignore holds {classes[0]}, which is the id of {names[classes[0]]!r}")
    return Labels(ClassSet(tuple(names), tuple(tuple(color) for color in palette)), frozenset(ignored))


def _is_name(value: object) -> bool:
    return isinstance(value, str)


def _is_byte(value: object) -> bool:
    return type(value) is int and 0 <= value <= 255


def _is_color(value: object) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(_is_byte, value))


# What each item of a list must be.
RULES: dict[str, tuple[Callable[[object], bool], str]] = {
    "names": (_is_name, "a name is a text"),
    "palette": (_is_color, "a colour is three numbers from 0 to 255"),
    "ignore": (_is_byte, "a mask's value is a number from 0 to 255"),
}


def to_json(classes: ClassSet) -> str:
    """For a checkpoint's header."""
    return json.dumps({"names": classes.names, "palette": classes.palette})
