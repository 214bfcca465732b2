"""Class names and palettes, in the order of their ids."""

from __future__ import annotations

from dataclasses import dataclass

Color = tuple[int, int, int]


@dataclass(frozen=True)
class ClassSet:
    """What a model's ids mean: an id is a place in both."""

    names: tuple[str, ...]
    palette: tuple[Color, ...]  # RGB


# SegNet's 11 classes (arXiv 1511.00561), with its colours; Pavement is where they differ from CamVid's own list.
CAMVID = ClassSet(
    names=(
        *("sky", "building", "pole", "road", "pavement", "tree"),
        *("sign symbol", "fence", "car", "pedestrian", "bicyclist"),
    ),
    palette=(
        *((128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0)),
        *((192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192)),
    ),
)
