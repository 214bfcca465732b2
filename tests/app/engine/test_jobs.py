from __future__ import annotations

from app.engine.jobs import Batch, Job, Lane


def test_lanes_are_alike_by_model_and_size() -> None:
    lane = Lane("a", (20, 30))
    assert lane == Lane("a", (20, 30))
    assert lane not in {Lane("b", (20, 30)), Lane("a", (30, 20))}
    assert lane.pixels == 600


def test_jobs_and_batches_are_no_other_however_alike() -> None:
    jobs = [Job("a", "caller", 1, 2.0, None) for _ in range(2)]
    assert len({*jobs}) == 2
    assert jobs[0] != jobs[1]
    batches = [Batch(Lane("a", (2, 3)), jobs, "idle", 0.0) for _ in range(2)]
    assert batches[0] != batches[1]


def batch(started: float | None) -> Batch[None]:
    return Batch(Lane("a", (2, 3)), [], "idle", 0.0, started)


def test_a_batch_that_ran_alone_had_the_whole_device() -> None:
    assert batch(1.0).ended([batch(None), batch(3.5)], 2.0) == 2.0, "others wait, or began later"


def test_batches_that_ran_side_by_side_had_half_of_it_each() -> None:
    first, second, third = batch(0.0), batch(1.0), batch(2.0)
    assert first.ended([second], 2.0) == 2.0 * 2.0 / 3.0  # half its time beside the second
    assert second.ended([third], 2.0) == 1.0  # half of it beside the first, half beside the third
    assert third.ended([], 2.0) == 2.0 * 2.0 / 3.0


def test_a_batch_that_never_ran_had_nothing() -> None:
    other = batch(0.0)
    assert batch(None).ended([other], 0.0) == 0.0
    assert other.beside == 0.0
