from __future__ import annotations

import pytest

from app.engine.cost import Costs
from app.engine.forecast import Forecast
from app.engine.jobs import Batch, Job, Lane
from app.engine.limits import Limits

LANE, OTHER, UNKNOWN = Lane("a", (10, 10)), Lane("b", (10, 10)), Lane("c", (10, 10))


@pytest.fixture
def forecast() -> Forecast:
    """Batches of at most four images; lane a takes 1 + n seconds of the whole device, lane b ten times that."""
    costs = Costs()
    for lane, each in ((LANE, 1.0), (OTHER, 10.0)):
        for size in (1, 2, 3, 4) * 3:
            costs.learn(lane, size, each * (1 + size))
    return Forecast(costs, Limits(4, 1000))


def running(lane: Lane, size: int, started: float | None) -> Batch[None]:
    return Batch(lane, [Job(lane.model, "caller", 1, 100.0, None)] * size, "idle", 0.0, started)


def test_what_waits_is_counted_in_full_batches_and_a_rest(forecast: Forecast) -> None:
    total, last = forecast.work({LANE: 9, OTHER: 1}, [], LANE, now=0.0) or (0.0, 0.0)
    assert (total, last) == pytest.approx((5 + 5 + 2 + 20, 2))


def test_of_what_runs_the_rest_is_counted(forecast: Forecast) -> None:
    batches = [running(LANE, 3, started=8.0), running(LANE, 2, started=None)]
    assert forecast.work({}, batches, None, now=10.0) == pytest.approx((2 + 3, 0))
    assert forecast.work({}, batches, None, now=20.0) == pytest.approx((0 + 3, 0)), "an overdue one is about to end"
    assert forecast.seconds_to_next_place(batches, now=10.0) == pytest.approx(2)
    assert forecast.seconds_to_next_place(batches, now=20.0) == 0
    assert forecast.seconds_to_next_place([], now=10.0) == 1


def test_of_two_that_run_each_has_half_the_device(forecast: Forecast) -> None:
    batches = [running(LANE, 3, started=8.0), running(LANE, 1, started=9.0)]
    assert forecast.work({}, batches, None, now=10.0) == pytest.approx(((4 - 1) + (2 - 0.5), 0))
    assert forecast.seconds_to_next_place(batches, now=10.0) == pytest.approx(9 + 2 * 2 - 10)


def test_where_costs_are_unknown_there_is_none(forecast: Forecast) -> None:
    assert forecast.work({LANE: 1, UNKNOWN: 1}, [], LANE, now=0.0) is None
    assert forecast.work({LANE: 1}, [running(UNKNOWN, 1, 0.0)], LANE, now=0.0) is None
    assert forecast.seconds_each(UNKNOWN) == 0
    assert forecast.seconds_to_next_place([running(UNKNOWN, 1, 0.0)], now=0.0) == 1


def test_from_one_image_to_the_next_batches_are_full(forecast: Forecast) -> None:
    assert forecast.seconds_each(LANE) == pytest.approx(5 / 4)
