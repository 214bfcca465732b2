"""Jobs of several passes: they count for what they are, share batches, and come and go as one."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import count

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from app.engine.jobs import Batch, Job, Lane
from app.engine.scheduler import Policy, Scheduler
from app.errors import DeadlineUnreachable, Overloaded, QueueFull

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


def test_who_comes_back_has_the_place_that_its_image_was_found_to_need(scheduler: Scheduler[None]) -> None:
    queued(scheduler, SMALL, SMALL)
    job = a_job()
    scheduler.admit(job, 0.0)
    with pytest.raises(QueueFull) as refused:
        scheduler.submit(job, SMALL, 900, 0.0, [SMALL] * 6)
    while (batch := scheduler.next_batch(0.0)) is not None:
        scheduler.completed(batch, len(batch.jobs), 1.0, 0.0)
    now = refused.value.retry_after or 0.0
    scheduler.admit(job := a_job(), now)
    assert len(scheduler) == 7
    with pytest.raises(QueueFull, match="1001 bytes"):  # while it is decoded once more
        scheduler.check(Job("a", "another", 101, 1e9, None), now)
    scheduler.submit(job, SMALL, 900, now, [SMALL] * 6)
    assert len(scheduler) == 7


def test_who_comes_back_is_not_let_past_the_door_by_the_guess_that_was_wrong(scheduler: Scheduler[None]) -> None:
    job = a_job()
    scheduler.admit(job, 0.0)
    queued(scheduler, *[SMALL] * 5)
    with pytest.raises(QueueFull) as refused:
        scheduler.submit(job, SMALL, 10, 0.0, [SMALL] * 6)
    with pytest.raises(QueueFull) as again:
        scheduler.check(a_job(), refused.value.retry_after or 0.0)
    assert again.value.actual == 5 + 7


def test_what_is_held_is_shared_among_the_parts(scheduler: Scheduler[None]) -> None:
    queued(scheduler, *[SMALL] * 5, nbytes=600)
    scheduler.check(a_job(nbytes=400), 0.0)
    with pytest.raises(QueueFull, match="bytes"):
        scheduler.check(a_job(nbytes=401), 0.0)
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
    assert late.value.actual == pytest.approx(20 + (19 - 5) / 8, abs=0.1), "5 s are those of its own last batch"


# --- a job of many passes, among many of one

SECONDS = 0.05  # of a pass


@dataclass
class Stream:
    """Jobs of one pass that come faster than they are done, and one of many, which comes back when told.

    Attributes:
        returning: how many in a hundred of the others come back too
        load: jobs that come while one is done
    """

    slots: int
    returning: int
    load: float
    scheduler: Scheduler[None] = field(init=False)
    events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    number: Iterator[int] = field(default_factory=count)
    now: float = 0.0
    refused: int = 0
    taken: bool = False

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(Policy(8 // self.slots, 10_000, 128, 1 << 20, self.slots))

    def run(self, passes: int, until: float) -> None:
        self.at(0.0, self.one_comes)
        self.at(5.0, partial(self.comes, a_job(passes), [SMALL] * passes))
        while self.events and self.now < until and not self.taken:
            self.now, _, event = heapq.heappop(self.events)
            event()
            while self.scheduler.next_batch(self.now) is not None:
                pass
            for batch in self.scheduler.running[: self.slots]:
                if batch.started is None:
                    batch.started = self.now
                    self.at(self.now + SECONDS * len(batch.jobs), partial(self.ends, batch))

    def at(self, moment: float, event: Callable[[], None]) -> None:
        heapq.heappush(self.events, (moment, next(self.number), event))

    def one_comes(self) -> None:
        job = Job("a", str(next(self.number)), 10, 0.0, None)
        self.comes(job, [SMALL])
        self.at(self.now + SECONDS / self.slots / self.load, self.one_comes)

    def comes(self, job: Job[None], lanes: list[Lane]) -> None:
        job.deadline = self.now + 30.0
        try:
            self.scheduler.admit(job, self.now)
        except Overloaded as exc:
            self.refused += len(lanes) > 1
            if len(lanes) > 1 or next(self.number) % 100 < self.returning:
                self.at(self.now + (exc.retry_after or 0.0) + 0.001, partial(self.comes, job, lanes))
            return
        self.taken |= len(lanes) > 1
        self.scheduler.submit(job, lanes[0], job.nbytes, self.now, lanes[1:])

    def ends(self, batch: Batch[None]) -> None:
        self.scheduler.completed(batch, len(batch.jobs), SECONDS * len(batch.jobs), self.now)


@settings(max_examples=15, phases=[Phase.generate])
@given(st.integers(2, 128), st.sampled_from([1, 2]), st.sampled_from([0, 30, 100]), st.sampled_from([0.9, 1.5, 3.0]))
def test_a_job_of_many_passes_gets_its_turn_among_many_of_one(
    passes: int, slots: int, returning: int, load: float
) -> None:
    stream = Stream(slots, returning, load)
    stream.run(passes, until=90.0)
    assert stream.taken
    assert stream.refused <= 3
    assert len(stream.scheduler) <= 128 + 64
