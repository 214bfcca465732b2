"""What the values in a data set's masks mean."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import yaml

from models.classes import CAMVID, ClassSet


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
    """Read `names`, `palette` (RGB) and optionally `ignore` (255 if absent) from YAML, of which JSON is a part.

    Raises:
        LabelsError: not that, or as many colours as names are not there
    """
    try:
        content = yaml.safe_load(path.read_text())
        names = tuple(str(name) for name in content["names"])
        palette = tuple((int(red), int(green), int(blue)) for red, green, blue in content["palette"])
        ignored = frozenset(int(value) for value in content.get("ignore", [255]))
    except (OSError, yaml.YAMLError) as exc:
        raise LabelsError(f"{path}: {exc}") from exc
    except (KeyError, TypeError, ValueError) as exc:
        raise LabelsError(f"{path}: needs names, palette (RGB triples) and, if need be, ignore: {exc!r}") from exc
    if not 2 <= len(names) <= 255 or len(palette) != len(names):
        raise LabelsError(f"{path}: {len(names)} names and {len(palette)} colours; 2 to 255 of both, alike in number")
    if bad := [color for color in palette if not all(0 <= part <= 255 for part in color)]:
        raise LabelsError(f"{path}: {bad[0]} is no colour; its parts go from 0 to 255")
    return Labels(ClassSet(names, palette), ignored)


def to_json(classes: ClassSet) -> str:
    """For a checkpoint's header."""
    return json.dumps({"names": classes.names, "palette": classes.palette})
