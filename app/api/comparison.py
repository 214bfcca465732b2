"""Where several models' masks of one image differ."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from app.api.record import Record
from app.api.schemas import ClassPair, Disagreement, ModelPair
from app.imaging import Array, encode_ids

MOST_CLASS_PAIRS = 5
Ids = NDArray[np.uint16]


def disagreement(records: Sequence[Record]) -> Disagreement:
    """Between two or more results of one image.

    Classes are the same if their names are: models number them differently.
    """
    names = list(dict.fromkeys(name for record in records for name in record.spec.classes.names))
    masks = [_by_name(record, names) for record in records]
    different = _count_classes(masks) - 1
    spread = (different * (255 / (len(masks) - 1))).round().astype(np.uint8)
    return Disagreement(
        share=_share(different > 0),
        mask=base64.b64encode(encode_ids(spread)).decode(),
        pairs=[
            _pair([records[one].spec.name, records[other].spec.name], (masks[one], masks[other]), names)
            for one, other in combinations(range(len(records)), 2)
        ],
    )


def _by_name(record: Record, names: list[str]) -> Ids:
    index = np.array([names.index(name) for name in record.spec.classes.names], dtype=np.uint16)
    return index[record.segmentation.mask]


def _count_classes(masks: Sequence[Ids]) -> Array:
    """How many different classes each pixel has: [H, W], from 1."""
    count = np.zeros(masks[0].shape, dtype=np.uint8)
    for index, mask in enumerate(masks):
        fresh = np.ones(mask.shape, dtype=bool)
        for earlier in masks[:index]:
            fresh &= mask != earlier
        count += fresh
    return count


def _pair(models: list[str], masks: tuple[Ids, Ids], names: list[str]) -> ModelPair:
    first, second = masks
    differ = first != second
    kinds = np.bincount(first[differ].astype(np.int64) * len(names) + second[differ])
    heaviest = np.argsort(-kinds, kind="stable")[:MOST_CLASS_PAIRS]
    return ModelPair(
        models=models,
        share=_share(differ),
        top=[
            ClassPair(
                classes=[names[kind // len(names)], names[kind % len(names)]], share=round(pixels / differ.size, 6)
            )
            for kind, pixels in zip(heaviest.tolist(), kinds[heaviest].tolist(), strict=True)
            if pixels
        ],
    )


def _share(pixels: NDArray[np.bool_]) -> float:
    return round(float(pixels.mean()), 6)
