from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engine.cost import Cost, Costs, Surprise
from app.engine.jobs import Lane

SMALL, LARGE = Lane("a", (10, 10)), Lane("a", (20, 20))


@given(fixed=st.floats(0.001, 10), each=st.floats(0, 10), sizes=st.lists(st.integers(1, 32), min_size=5, max_size=60))
def test_a_cost_finds_the_line_through_exact_data(fixed: float, each: float, sizes: list[int]) -> None:
    cost = Cost()
    for size in sizes:
        cost.learn(size, fixed + each * size)
    for size in range(1, 33) if len(set(sizes)) > 1 else set(sizes):
        assert cost.predict(size) == pytest.approx(fixed + each * size, rel=1e-3)


@given(st.lists(st.tuples(st.integers(1, 64), st.floats(0, 100)), min_size=5, max_size=60), st.integers(1, 64))
def test_a_cost_is_never_negative_and_grows_with_the_batch(data: list[tuple[int, float]], size: int) -> None:
    cost = Cost()
    for count, seconds in data:
        cost.learn(count, seconds)
    less, more = cost.predict(size), cost.predict(size + 1)
    assert less is not None
    assert more is not None
    assert 0 <= less <= more


@given(size=st.integers(1, 10**7), seconds=st.floats(0.001, 10), count=st.integers(Cost.MINIMUM, 60))
def test_what_has_been_seen_in_one_size_alone_costs_in_proportion(size: int, seconds: float, count: int) -> None:
    cost = Cost()
    for _ in range(count):
        cost.learn(size, seconds)
    assert cost.predict(2 * size) == pytest.approx(2 * seconds)


def test_no_line_is_so_steep_that_it_leaves_the_mean() -> None:
    cost = Cost()
    for _ in range(100):
        cost.learn(1, 0.0)
        cost.learn(3, 2.0)
    assert cost.predict(2) == pytest.approx(1.0, rel=0.05)


def test_nothing_is_predicted_from_too_few_batches() -> None:
    cost = Cost()
    for _ in range(Cost.MINIMUM):
        assert cost.predict(1) is None
        cost.learn(1, 2.0)
    assert cost.predict(1) == pytest.approx(2.0)


def test_a_cost_follows_a_device_that_became_slower() -> None:
    cost = Cost()
    for seconds in [1.0] * 100 + [3.0] * 100:
        cost.learn(4, seconds)
    assert cost.predict(4) == pytest.approx(3.0, rel=0.02)


def costs_of(*lanes: Lane, fixed: float = 1.0, each_pixel: float = 0.01) -> Costs:
    """That have seen five batches of each lane."""
    costs = Costs()
    for lane in lanes:
        for size in range(1, 6):
            costs.learn(lane, size, fixed + each_pixel * size * lane.pixels)
    return costs


def test_a_size_never_seen_costs_what_its_pixels_do() -> None:
    costs = costs_of(SMALL, LARGE)
    assert costs.of_batch(Lane("a", (10, 30)), 2) == pytest.approx(1.0 + 0.01 * 600)
    assert costs.of_batch(Lane("b", (10, 30)), 2) is None


def test_a_lane_that_is_known_is_judged_by_itself() -> None:
    costs = costs_of(SMALL)
    for size in range(1, 6):
        costs.learn(LARGE, size, 7.0)
    assert costs.of_batch(LARGE, 3) == pytest.approx(7.0)
    assert costs.of_batch(SMALL, 3) == pytest.approx(4.0)


def test_an_image_not_decoded_yet_is_taken_for_a_mean_one() -> None:
    costs = costs_of(*[LARGE] * 30)
    typical = costs.typical("a")
    assert typical.model == "a"
    assert typical.pixels == pytest.approx(LARGE.pixels, rel=0.01)
    assert costs.of_batch(typical, 2) == pytest.approx(costs.of_batch(LARGE, 2), rel=0.01)
    assert costs.of_batch(costs.typical("b"), 1) is None


def test_where_all_are_of_one_size_so_will_be_the_next() -> None:
    assert costs_of(SMALL, *[LARGE] * 20).typical("a") == LARGE
    costs = costs_of(*[SMALL, LARGE] * 30)
    assert SMALL.pixels < costs.typical("a").pixels < LARGE.pixels, "the last of several is like none of them"


def test_only_the_lanes_seen_last_are_remembered() -> None:
    costs = costs_of(SMALL)
    for width in range(Costs.LANES):
        costs.learn(Lane("a", (1, 1 + width)), 1, 100.0)
    assert costs.of_batch(SMALL, 1) != pytest.approx(2.0), "by its pixels, among slower ones"
    kept = costs_of(SMALL)
    for width in range(Costs.LANES):
        kept.learn(Lane("a", (1, 1 + width)), 1, 100.0)
        kept.learn(SMALL, 1, 2.0)
    assert kept.of_batch(SMALL, 1) == pytest.approx(2.0)


@pytest.mark.parametrize("bias", [-0.2, 0.0, 0.5])
def test_a_prediction_with_its_margin_holds_nearly_always(bias: float) -> None:
    rng, surprise, late = random.Random(1), Surprise(), 0
    for number in range(5000):
        error = rng.gauss(bias, 0.1)
        late += number > 50 and error > surprise.margin
        surprise.learn(error)
    assert late < 0.02 * 5000


def test_a_margin_is_no_larger_than_it_need_be() -> None:
    surprise = Surprise()
    assert surprise.margin == 0.0
    for _ in range(500):
        surprise.learn(0.3)
    assert surprise.margin == pytest.approx(0.3, rel=0.01)
    for _ in range(500):
        surprise.learn(-1.0)
    assert surprise.margin == 0.0, "done sooner than predicted is no reason to predict less"


def test_what_was_surmised_gives_way_to_what_was_seen() -> None:
    surprise = Surprise(mean=0.5, deviation=0.25)
    assert surprise.margin == pytest.approx(1.25)
    surprise.learn(0.01)
    assert surprise.margin == pytest.approx(0.01)
