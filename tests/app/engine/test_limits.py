from __future__ import annotations

import pytest

from app.engine.jobs import Lane
from app.engine.limits import Limits

LANE = Lane("a", (10, 10))


@pytest.mark.parametrize(
    ("size", "images"), [((10, 10), 8), ((10, 12), 8), ((10, 13), 7), ((20, 50), 1), ((100, 100), 1)]
)
def test_a_batch_is_limited_by_count_and_by_pixels_but_one_image_goes(size: tuple[int, int], images: int) -> None:
    assert Limits(8, 1000).of(Lane("a", size)) == images


def clean(limits: Limits, size: int, count: int = Limits.CLEAN) -> None:
    for _ in range(count):
        limits.passed(LANE, size)


def test_a_lane_out_of_memory_is_lowered_alone_and_recovers_slowly() -> None:
    limits = Limits(4, 10_000)
    limits.lower(LANE, 2)
    assert limits.of(LANE) == 2
    assert limits.of(Lane("b", (10, 10))) == 4
    clean(limits, 2, Limits.CLEAN - 1)
    assert limits.of(LANE) == 2
    clean(limits, 2, 1)
    assert limits.of(LANE) == 3
    clean(limits, 2)
    assert limits.of(LANE) == 3, "batches smaller than the limit prove nothing"
    clean(limits, 3, Limits.CLEAN - 1)
    assert limits.of(LANE) == 3, "the next image takes as long"
    clean(limits, 3, 1)
    assert limits.of(LANE) == 4
    clean(limits, 4, 10 * Limits.CLEAN)
    assert limits.of(LANE) == 4


def test_trouble_again_starts_it_anew() -> None:
    limits = Limits(8, 10_000)
    limits.lower(LANE, 4)
    clean(limits, 4, Limits.CLEAN - 1)
    limits.lower(LANE, 2)
    clean(limits, 2, Limits.CLEAN - 1)
    assert limits.of(LANE) == 2
    limits.lower(LANE, 0)
    assert limits.of(LANE) == 1, "one image is tried even if none has fitted"
    clean(limits, 1)
    assert limits.of(LANE) == 2, "from there it recovers like any other"


def test_pixels_limit_a_lane_in_trouble_too() -> None:
    limits = Limits(8, 300)
    limits.lower(LANE, 5)
    assert limits.of(LANE) == 3


def test_trouble_long_ago_is_forgotten_first() -> None:
    limits = Limits(8, 10**9)
    for width in range(1, Limits.LANES + 2):
        limits.lower(Lane("a", (1, width)), 2)
    assert limits.of(Lane("a", (1, 1))) == 8
    assert limits.of(Lane("a", (1, 2))) == 2
    limits.lower(Lane("a", (1, 2)), 1)
    limits.lower(Lane("b", (1, 1)), 2)
    assert limits.of(Lane("a", (1, 2))) == 1, "its trouble is new"
    assert limits.of(Lane("a", (1, 3))) == 8


def test_a_lane_that_has_recovered_takes_no_place_of_one_in_trouble() -> None:
    limits, first = Limits(2, 10**9), Lane("b", (10, 10))
    limits.lower(first, 1)
    limits.lower(LANE, 1)
    clean(limits, 1)
    for width in range(1, Limits.LANES):
        limits.lower(Lane("a", (1, width)), 1)
    assert limits.of(first) == 1
