"""The drawn street scenes: repeatable, fully labelled and laid out like a street."""

from __future__ import annotations

import numpy as np
import pytest

from training.scenes import ROAD, SKY, draw_street


def test_same_seed_gives_same_pixels() -> None:
    image, mask = draw_street(3, 160, 120)
    again, mask_again = draw_street(3, 160, 120)
    assert np.array_equal(image, again)
    assert np.array_equal(mask, mask_again)


def test_other_seed_gives_other_pixels() -> None:
    image, mask = draw_street(3, 160, 120)
    other, other_mask = draw_street(4, 160, 120)
    assert not np.array_equal(image, other)
    assert not np.array_equal(mask, other_mask)


@pytest.mark.parametrize(("width", "height"), [(480, 360), (64, 48), (97, 131), (640, 256)])
def test_shapes_and_types(width: int, height: int) -> None:
    image, mask = draw_street(0, width, height)
    assert image.shape == (height, width, 3)
    assert mask.shape == (height, width)
    assert image.dtype == np.uint8
    assert mask.dtype == np.uint8


def test_twenty_scenes_show_all_classes_and_no_others() -> None:
    seen = {int(label) for seed in range(20) for label in np.unique(draw_street(seed)[1])}
    assert seen == set(range(11))


def test_sky_is_above_road() -> None:
    for seed in range(5):
        mask = draw_street(seed, 240, 180)[1]
        assert np.nonzero(mask == SKY)[0].mean() < np.nonzero(mask == ROAD)[0].mean()


def test_picture_is_neither_black_nor_white() -> None:
    for seed in range(5):
        image = draw_street(seed, 240, 180)[0]
        assert 60 < image.mean() < 200
        assert image.std() > 20
