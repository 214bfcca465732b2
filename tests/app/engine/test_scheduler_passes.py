"""Jobs of several passes: they count for what they are, share batches, and come and go as one."""

from __future__ import annotations

import pytest

from app.engine.jobs import Job, Lane
from app.engine.scheduler import Policy, Scheduler
from app.errors import DeadlineUnreachable, QueueFull

SMALL, LARGE = Lane("a", (10, 10)), Lane("a", (10, 20))
POLICY = Policy(max_batch_size=4, max_batch_pixels=500, max_queue_size=8, max_queue_bytes=1000)


def a_job(passes: int = 1, deadline: float = 1e9, nbytes: int = 80) -> Job[None]:
    return Job("a", f"caller of {passes}", nbytes, deadline, None, passes)


@pytest.fixture
def scheduler() -> Scheduler[None]:
    return Scheduler(POLICY)


def queued(scheduler: Scheduler[None], *lanes: Lane, nbytes: int = 80, deadline: float = 1e9) -> Job[None]:
    job = a_job(len(lanes), deadline, nbytes)
    scheduler.admit(job, 0.0)
    scheduler.submit(job, lanes[0], nbytes, 0.0, lanes[1:])
    return job


def test_each_pass_takes_a_place_before_and_after_decoding(scheduler: Scheduler[None]) -> None:
    job = a_job(3)
    scheduler.admit(job, 0.0)
    assert (len(scheduler), scheduler.depth("a")) == (3, 3)
    scheduler.submit(job, SMALL, 100, 0.0, [SMALL, LARGE, LARGE, LARGE])  # more than was thought
    assert (len(scheduler), scheduler.depth("a")) == (5, 5)
    scheduler.check(a_job(3), 0.0)
    with pytest.raises(QueueFull) as full:
        scheduler.check(a_job(4), 0.0)
    assert (full.value.limit, full.value.actual) == (8, 9)


def test_passes_of_one_size_share_batches_whosever_they_are(scheduler: Scheduler[None]) -> None:
    first, second = queued(scheduler, SMALL, LARGE, SMALL), queued(scheduler, SMALL, SMALL)
    batches = []
    while (batch := scheduler.next_batch(0.0)) is not None:
        scheduler.completed(batch, len(batch.jobs), 1.0, 0.0)
        batches.append((batch.lane, [(job.caller, job.part) for job in batch.jobs]))
    assert batches == [
        (SMALL, [(first.caller, 0), (first.caller, 2), (second.caller, 0), (second.caller, 1)]),
        (LARGE, [(first.caller, 1)]),
    ]
    assert len(scheduler) == 0


def test_a_cancelled_job_takes_its_waiting_parts_along(scheduler: Scheduler[None]) -> None:
    job, other = queued(scheduler, *[SMALL] * 6), queued(scheduler, SMALL)
    batch = scheduler.next_batch(0.0)
    assert batch is not None
    assert scheduler.cancel(job)
    assert not scheduler.cancel(job)
    assert scheduler.unfinished == [other, *batch.jobs]
    scheduler.completed(batch, 4, 1.0, 0.0)
    assert len(scheduler) == 1
    scheduler.check(a_job(7, nbytes=900), 0.0)  # its bytes are given up too


def test_expired_parts_are_reported_and_gone(scheduler: Scheduler[None]) -> None:
    job = queued(scheduler, SMALL, SMALL, LARGE, deadline=5.0)
    assert scheduler.expire(4.9) == []
    assert set(scheduler.expire(5.0)) == set(job.parts)
    assert len(scheduler) == 0


def test_a_refused_job_has_lost_its_place(scheduler: Scheduler[None]) -> None:
    queued(scheduler, SMALL, SMALL)
    job = a_job()
    scheduler.admit(job, 0.0)
    with pytest.raises(QueueFull):
        scheduler.submit(job, SMALL, 10, 0.0, [SMALL] * 6)
    assert len(scheduler) == 2


def test_what_is_held_is_shared_among_the_parts(scheduler: Scheduler[None]) -> None:
    queued(scheduler, *[SMALL] * 5, nbytes=600)
    batch = scheduler.next_batch(0.0)
    assert batch is not None
    scheduler.check(a_job(nbytes=880), 0.0)
    with pytest.raises(QueueFull, match="bytes"):
        scheduler.check(a_job(nbytes=881), 0.0)


def test_the_predicted_wait_is_that_of_all_its_passes() -> None:
    scheduler: Scheduler[None] = Scheduler(Policy(4, 10_000, 1000, 1 << 20))
    for size in (1, 2, 3, 4) * 2:  # a batch takes 1 + n seconds
        queued(scheduler, *[SMALL] * size)
        batch = scheduler.next_batch(0.0)
        assert batch is not None
        scheduler.completed(batch, size, 1.0 + size, 0.0)
    queued(scheduler, *[SMALL] * 8)
    assert scheduler.predicted_wait(0.0) == pytest.approx(10)
    scheduler.admit(arriving := a_job(4), 0.0)
    assert scheduler.predicted_wait(0.0) == pytest.approx(15), "those not yet decoded count as thought"
    scheduler.cancel(arriving)
    assert scheduler.predicted_wait(0.0) == pytest.approx(10)
    scheduler.check(a_job(4, deadline=19.0), 0.0)
    with pytest.raises(DeadlineUnreachable) as late:
        scheduler.check(a_job(8, deadline=19.0), 0.0)
    assert late.value.actual == pytest.approx(20, abs=0.1)
