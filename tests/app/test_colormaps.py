from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from app.colormaps import COLORMAPS, ColormapName

NAMES = get_args(ColormapName)

# First, middle and last colour as matplotlib 3.10 and Google's turbo table give them.
KNOWN: dict[ColormapName, tuple[tuple[int, int, int], ...]] = {
    "viridis": ((68, 1, 84), (33, 145, 140), (253, 231, 37)),
    "inferno": ((0, 0, 4), (188, 55, 84), (252, 255, 164)),
    "turbo": ((48, 18, 59), (164, 252, 60), (122, 4, 3)),
    "gray": ((0, 0, 0), (128, 128, 128), (255, 255, 255)),
}


def test_every_name_has_a_table() -> None:
    assert sorted(COLORMAPS) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_table_has_256_colours(name: ColormapName) -> None:
    assert COLORMAPS[name].shape == (256, 3)
    assert COLORMAPS[name].dtype == np.uint8


@pytest.mark.parametrize("name", NAMES)
def test_colours_are_the_published_ones(name: ColormapName) -> None:
    assert COLORMAPS[name][[0, 128, 255]].tolist() == [list(color) for color in KNOWN[name]]


@pytest.mark.parametrize("name", NAMES)
def test_neighbours_are_close(name: ColormapName) -> None:
    assert np.abs(np.diff(COLORMAPS[name].astype(int), axis=0)).max() <= 10


@pytest.mark.parametrize("name", ["viridis", "inferno", "gray"])
def test_more_is_brighter(name: ColormapName) -> None:
    luminance = COLORMAPS[name] @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(luminance) > -1.0).all()
    assert luminance[-1] - luminance[0] > 150
