"""What is said of a checkpoint beside its weights: by whoever serves it, by the file itself, by its kind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import inf, isfinite
from typing import Any

from models.classes import Color
from models.ops.upsample import Size
from models.windows import CHOICES, Average, BelowCrop, Mode, Upsampling

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Card:
    """Each field is None where nothing is said; what they mean is in `ModelSpec`, `Preprocessing` and `Inference`."""

    title: str | None = None
    dataset: str | None = None
    classes: tuple[str, ...] | None = None
    palette: tuple[Color, ...] | None = None
    mean: Triple | None = None
    std: Triple | None = None
    bgr: bool | None = None
    scale: tuple[int, int] | None = None
    multiple: int | None = None
    antialias: bool | None = None
    mode: Mode | None = None
    crop: Size | None = None
    stride: Size | None = None
    scales: tuple[float, ...] | None = None
    flip: bool | None = None
    below_crop: BelowCrop | None = None
    upsampling: Upsampling | None = None
    average: Average | None = None
    align_corners: bool | None = None
    recurrence: int | None = None
    miou: float | None = None
    licence: str | None = None
    source: str | None = None


NOTHING_SAID = Card()


def first_said(*cards: Card) -> Card:
    """Field by field, what the first card says that says anything."""
    return Card(
        **{
            field.name: next((said for card in cards if (said := getattr(card, field.name)) is not None), None)
            for field in fields(Card)
        }
    )


def of_header(metadata: Mapping[str, str]) -> Card:
    """What the header of a file of ours says; what is not of the right form is not said."""
    classes, preprocessing, inference = (_object(metadata, name) for name in ("classes", "preprocessing", "inference"))
    miou = numbers([_json(metadata.get("miou", ""))])
    return Card(
        title=metadata.get("title"),
        dataset=metadata.get("dataset"),
        classes=names(classes.get("names")),
        palette=colors(classes.get("palette")),
        mean=triple(preprocessing.get("mean")),
        std=triple(preprocessing.get("std")),
        bgr=truth(preprocessing.get("bgr")),
        scale=pair(preprocessing.get("scale")),
        multiple=whole(preprocessing.get("multiple")),
        # Ours are trained on images that were smoothed where they shrank.
        antialias=truth(preprocessing.get("antialias", True if preprocessing else None)),
        mode=choice("mode", inference.get("mode")),
        crop=pair(inference.get("crop")),
        stride=pair(inference.get("stride")),
        scales=numbers(inference.get("scales")),
        flip=truth(inference.get("flip")),
        **{name: choice(name, inference.get(name)) for name in ("below_crop", "upsampling", "average")},
        miou=miou[0] if miou is not None and isfinite(miou[0]) else None,
        licence=metadata.get("licence"),
        source=metadata.get("source"),
    )


def names(value: object) -> tuple[str, ...] | None:
    return tuple(value) if isinstance(value, (list, tuple)) and all(map(_is_text, value)) else None


def colors(value: object) -> tuple[Color, ...] | None:
    if not isinstance(value, (list, tuple)):
        return None
    found = [_integers(color, 3) for color in value]
    if any(color is None or not all(0 <= part <= 255 for part in color) for color in found):
        return None
    return tuple((color[0], color[1], color[2]) for color in found if color is not None)


def numbers(value: object) -> tuple[float, ...] | None:
    if not isinstance(value, (list, tuple)):
        return None
    if not all(isinstance(number, (int, float)) and not isinstance(number, bool) for number in value):
        return None
    return tuple(map(_float, value))


def triple(value: object) -> Triple | None:
    found = numbers(value)
    return None if found is None or len(found) != 3 else (found[0], found[1], found[2])


def pair(value: object) -> tuple[int, int] | None:
    found = _integers(value, 2)
    return None if found is None else (found[0], found[1])


def whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def truth(value: object) -> bool | None:
    return value if isinstance(value, bool) else None


def choice(name: str, value: object) -> Any:
    """The value of a field of `Inference` that has only so many."""
    return value if isinstance(value, str) and value in CHOICES[name] else None


def _is_text(value: object) -> bool:
    """Escapes of JSON, and pickles, may hold half a character, which no answer could be written with."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _float(number: float) -> float:
    try:
        return float(number)
    except OverflowError:  # an integer of hundreds of digits
        return inf


def _integers(value: object, count: int) -> tuple[int, ...] | None:
    if not isinstance(value, (list, tuple)) or len(value) != count:
        return None
    found = [whole(number) for number in value]
    return tuple(number for number in found if number is not None) if None not in found else None


def _object(metadata: Mapping[str, str], name: str) -> Mapping[str, object]:
    value = _json(metadata.get(name, ""))
    return value if isinstance(value, dict) else {}


def _json(text: str) -> object:
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):  # deeply nested text exhausts the parser
        return None
    return value
