from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engine.scheduler import Batch, Cost, Job, Lane, Policy, Scheduler
from app.errors import DeadlineUnreachable, Overloaded, QueueFull

SMALL, LARGE, HUGE = Lane("a", (10, 10)), Lane("b", (10, 20)), Lane("b", (50, 50))
LANES = SMALL, LARGE, HUGE
# Four SMALL, two LARGE or one HUGE a batch; a HUGE one alone is over the pixel limit already.
POLICY = Policy(max_batch_size=4, max_batch_pixels=500, max_queue_size=8, max_queue_bytes=1000)
ROOMY = Policy(max_batch_size=4, max_batch_pixels=10_000, max_queue_size=1000, max_queue_bytes=1_000_000)


def a_job(lane: Lane = SMALL, deadline: float = 1e9, nbytes: int = 100, payload: int = 0) -> Job[int]:
    return Job(lane, nbytes, deadline, payload)


def submitted(scheduler: Scheduler[int], *lanes: Lane, now: float = 0.0, deadline: float = 1e9) -> list[Job[int]]:
    jobs = [a_job(lane, deadline, payload=number) for number, lane in enumerate(lanes)]
    for job in jobs:
        scheduler.submit(job, now)
    return jobs


def next_batch(scheduler: Scheduler[int], now: float = 0.0) -> Batch[int]:
    batch = scheduler.next_batch(now)
    assert batch is not None
    return batch


def learnt(policy: Policy = ROOMY, lane: Lane = SMALL, fixed: float = 1.0, each: float = 0.5) -> Scheduler[int]:
    """A scheduler that has seen enough batches of 1 to 4 images, each taking fixed + each * n seconds."""
    scheduler: Scheduler[int] = Scheduler(policy)
    for number in range(8):
        count = 1 + number % 4
        submitted(scheduler, *[lane] * count)
        batch = next_batch(scheduler)
        scheduler.completed(batch, fixed + each * len(batch.jobs), 0.0)
        while (rest := scheduler.next_batch(0.0)) is not None:
            scheduler.completed(rest, fixed + each * len(rest.jobs), 0.0)
    return scheduler


# --- random traffic in simulated time


@dataclass
class Traffic:
    """Drives a scheduler through random events and notes what became of each job."""

    scheduler: Scheduler[int]
    timeouts: tuple[float, ...]
    now: float = 0.0
    waiting: list[Job[int]] = field(default_factory=list)  # in the order of submission
    running: Batch[int] | None = None
    fates: Counter[int] = field(default_factory=Counter)
    submitted: int = 0

    def submit(self, number: int) -> None:
        lane, timeout = LANES[number % 3], self.timeouts[number % len(self.timeouts)]
        job = a_job(lane, self.now + timeout, nbytes=1 + number, payload=self.submitted)
        self.submitted += 1
        refusal: Overloaded | None = None
        try:
            self.scheduler.submit(job, self.now)
            self.waiting.append(job)
        except Overloaded as exc:
            refusal = exc
        if refusal is not None:
            self.fates[job.payload] += 1
            assert self.waiting or self.running, "an idle server never refuses"
            assert refusal.limit is not None
            assert refusal.actual is not None
            assert refusal.actual > refusal.limit
            assert refusal.retry_after is not None
            assert refusal.retry_after >= 0

    def take(self, number: int) -> None:
        batch = self.scheduler.next_batch(self.now)
        if self.running is not None or not self.waiting:
            assert batch is None
            return
        assert batch is not None
        in_lane = [job for job in self.waiting if job.lane == batch.lane]
        assert {job.lane for job in batch.jobs} == {batch.lane}
        assert batch.jobs == in_lane[: len(batch.jobs)], "first in, first out"
        pixels = batch.lane.pixels * len(batch.jobs)
        assert len(batch.jobs) <= POLICY.max_batch_size
        assert pixels <= POLICY.max_batch_pixels or len(batch.jobs) == 1
        more = len(in_lane) > len(batch.jobs)
        full = len(batch.jobs) == POLICY.max_batch_size
        assert batch.reason == ("idle" if not more else "full" if full else "pixels")
        assert full or not more or pixels + batch.lane.pixels > POLICY.max_batch_pixels, "room was left"
        if len(self.timeouts) == 1:
            assert batch.jobs[0].submitted == self.waiting[0].submitted, "with equal timeouts the oldest goes next"
        for job in batch.jobs:
            self._ends(job)
        self.running = batch

    def complete(self, number: int) -> None:
        if self.running is not None:
            self.scheduler.completed(self.running, None if number % 5 == 0 else 0.1 + 0.05 * number, self.now)
            self.running = None

    def cancel(self, number: int) -> None:
        if self.waiting:
            job = self.waiting[number % len(self.waiting)]
            assert self.scheduler.cancel(job)
            assert not self.scheduler.cancel(job)
            self._ends(job)
        if self.running is not None:
            assert not self.scheduler.cancel(self.running.jobs[0]), "too late for what runs"

    def expire(self, number: int) -> None:
        late = self.scheduler.expire(self.now)
        on_the_device = [] if self.running is None else self.running.jobs
        expected = [job for job in self.waiting + on_the_device if job.deadline <= self.now]
        assert Counter(map(id, late)) == Counter(map(id, expected))
        for job in late:
            if job in self.waiting:
                self._ends(job)

    def pass_time(self, number: int) -> None:
        self.now += 0.1 * number

    def _ends(self, job: Job[int]) -> None:
        self.waiting.remove(job)
        self.fates[job.payload] += 1

    def check_books(self) -> None:
        on_the_device = [] if self.running is None else self.running.jobs
        assert len(self.scheduler) == len(self.waiting) <= POLICY.max_queue_size
        assert Counter(map(id, self.scheduler.unfinished)) == Counter(map(id, self.waiting + on_the_device))
        for model in ("a", "b"):
            assert self.scheduler.depth(model) == sum(job.lane.model == model for job in self.waiting)
        wait = self.scheduler.predicted_wait(self.now)
        assert wait is None or wait >= 0


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["submit", "submit", "submit", "take", "complete", "cancel", "expire", "pass_time"]),
        st.integers(0, 20),
    ),
    max_size=80,
)


@given(EVENTS, st.sampled_from([(3.0,), (0.5, 3.0, 20.0)]))
def test_under_any_traffic_every_job_ends_exactly_once(
    events: list[tuple[str, int]], timeouts: tuple[float, ...]
) -> None:
    traffic = Traffic(Scheduler(POLICY), timeouts)
    for name, number in events:
        getattr(traffic, name)(number)
        traffic.check_books()
    while traffic.waiting or traffic.running:
        traffic.complete(1)
        traffic.take(0)
        traffic.check_books()
    assert traffic.fates == Counter(range(traffic.submitted))
    assert_holds_no_bytes(traffic.scheduler)


def assert_holds_no_bytes(scheduler: Scheduler[int]) -> None:
    """Its whole limit of bytes can be used again."""
    assert len(scheduler) == 0
    one_byte, rest = POLICY.max_queue_bytes - 1, 1
    scheduler.submit(a_job(nbytes=one_byte), 0.0)
    scheduler.submit(a_job(nbytes=rest), 0.0)
    with pytest.raises(QueueFull, match=r"1001 bytes"):
        scheduler.submit(a_job(nbytes=1), 0.0)


@given(st.lists(st.sampled_from(LANES), min_size=1, max_size=40))
def test_with_equal_timeouts_only_lane_mates_overtake(lanes: list[Lane]) -> None:
    scheduler: Scheduler[int] = Scheduler(ROOMY)
    for number, lane in enumerate(lanes):
        scheduler.submit(a_job(lane, number + 30.0, payload=number), float(number))
    served: list[int] = []
    while (batch := scheduler.next_batch(100.0)) is not None:
        oldest = min(set(range(len(lanes))) - set(served))
        assert batch.jobs[0].payload == oldest
        served += [job.payload for job in batch.jobs]
        scheduler.completed(batch, None, 100.0)
    assert sorted(served) == list(range(len(lanes)))


# --- batches


def test_alternating_sizes_still_fill_batches() -> None:
    scheduler: Scheduler[int] = Scheduler(ROOMY)
    submitted(scheduler, *[SMALL, LARGE] * 8)
    sizes = []
    while (batch := scheduler.next_batch(0.0)) is not None:
        sizes.append(len(batch.jobs))
        scheduler.completed(batch, None, 0.0)
    assert sizes == [4, 4, 4, 4]


def test_the_nearest_deadline_goes_first_then_age() -> None:
    scheduler: Scheduler[int] = Scheduler(ROOMY)
    scheduler.submit(a_job(SMALL, deadline=9.0), 0.0)
    scheduler.submit(a_job(HUGE, deadline=5.0), 2.0)
    scheduler.submit(a_job(LARGE, deadline=5.0), 1.0)
    order = []
    while (batch := scheduler.next_batch(2.0)) is not None:
        order.append(batch.lane)
        scheduler.completed(batch, None, 2.0)
    assert order == [LARGE, HUGE, SMALL]


def test_one_batch_runs_at_a_time() -> None:
    scheduler: Scheduler[int] = Scheduler(ROOMY)
    assert scheduler.next_batch(0.0) is None
    submitted(scheduler, *[SMALL] * 5)
    batch = next_batch(scheduler, 3.0)
    assert (len(batch.jobs), batch.reason, batch.started) == (4, "full", 3.0)
    assert scheduler.next_batch(3.0) is None
    scheduler.completed(batch, 1.0, 4.0)
    assert next_batch(scheduler, 4.0).reason == "idle"


def test_the_expiry_of_running_jobs_is_reported() -> None:
    scheduler: Scheduler[int] = Scheduler(POLICY)
    running = submitted(scheduler, SMALL, deadline=1.0)
    next_batch(scheduler)
    waiting = submitted(scheduler, LARGE, SMALL, deadline=2.0)
    assert scheduler.expire(0.9) == []
    assert scheduler.expire(1.0) == running
    assert scheduler.expire(2.0) == [*waiting, *running]
    assert len(scheduler) == 0
    assert scheduler.unfinished == running


# --- cost


@given(fixed=st.floats(0.001, 10), each=st.floats(0, 10), sizes=st.lists(st.integers(1, 32), min_size=5, max_size=60))
def test_cost_finds_the_line_through_exact_data(fixed: float, each: float, sizes: list[int]) -> None:
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


# --- predicted wait


def test_the_predicted_wait_is_what_runs_and_what_waits() -> None:
    scheduler = learnt()  # a batch of n takes 1 + n / 2 seconds
    assert scheduler.predicted_wait(0.0) == 0.0
    assert scheduler.predicted_wait(0.0, SMALL) == pytest.approx(1.5)
    submitted(scheduler, *[SMALL] * 4, deadline=1e9)
    assert scheduler.predicted_wait(0.0) == pytest.approx(3.0)
    batch = next_batch(scheduler, 0.0)
    submitted(scheduler, *[SMALL] * 5, now=1.0)
    remaining, full, rest = 2.0, 3.0, 1.5
    assert scheduler.predicted_wait(1.0) == pytest.approx(remaining + full + rest)
    assert scheduler.predicted_wait(1.0, SMALL) == pytest.approx(remaining + full + rest + 0.5)
    assert scheduler.predicted_wait(60.0) == pytest.approx(full + rest), "an overdue batch is about to end"
    scheduler.completed(batch, 3.0, 3.0)
    assert scheduler.predicted_wait(3.0) == pytest.approx(full + rest)


def test_the_predicted_wait_knows_of_the_pixel_limit() -> None:
    scheduler = learnt(POLICY, LARGE)  # two a batch
    submitted(scheduler, *[LARGE] * 4)
    assert scheduler.predicted_wait(0.0) == pytest.approx(2 * (1.0 + 0.5 * 2))


def test_an_unknown_lane_makes_the_wait_unknown() -> None:
    scheduler = learnt()
    assert scheduler.predicted_wait(0.0, LARGE) is None
    submitted(scheduler, LARGE)
    assert scheduler.predicted_wait(0.0, SMALL) is None
    batch = next_batch(scheduler)
    assert scheduler.predicted_wait(0.0, SMALL) is None
    scheduler.completed(batch, None, 0.0)
    assert scheduler.predicted_wait(0.0, SMALL) == pytest.approx(1.5)


def test_failed_batches_teach_nothing() -> None:
    scheduler: Scheduler[int] = Scheduler(ROOMY)
    for _ in range(20):
        submitted(scheduler, SMALL)
        scheduler.completed(next_batch(scheduler), None, 0.0)
    assert scheduler.predicted_wait(0.0, SMALL) is None


# --- admission


def test_a_deadline_out_of_reach_is_refused_with_the_time_to_come_back() -> None:
    scheduler = learnt()
    submitted(scheduler, *[SMALL] * 3)
    with pytest.raises(DeadlineUnreachable) as caught:
        scheduler.submit(a_job(deadline=12.0), 10.0)
    assert caught.value.limit == pytest.approx(2.0)
    assert caught.value.actual == pytest.approx(3.0)
    assert caught.value.retry_after == pytest.approx(1.0)
    assert len(scheduler) == 3
    scheduler.submit(a_job(deadline=13.001), 10.0)


def test_what_runs_counts_at_the_door() -> None:
    scheduler = learnt()
    submitted(scheduler, *[SMALL] * 4)
    next_batch(scheduler, 0.0)
    with pytest.raises(DeadlineUnreachable):
        scheduler.submit(a_job(deadline=4.4), 0.0)
    scheduler.submit(a_job(deadline=4.6), 0.0)


def test_an_idle_server_takes_a_job_however_short_its_deadline() -> None:
    scheduler = learnt()
    scheduler.submit(a_job(deadline=0.001), 0.0)
    assert len(next_batch(scheduler).jobs) == 1


def test_nothing_is_refused_for_its_deadline_before_its_cost_is_known() -> None:
    scheduler: Scheduler[int] = Scheduler(ROOMY)
    submitted(scheduler, *[SMALL] * 20, deadline=0.001)
    assert len(scheduler) == 20


@pytest.mark.parametrize(
    ("nbytes", "count", "limit", "actual"), [(1, POLICY.max_queue_size, 8, 9), (400, 2, 1000, 1200)]
)
def test_a_full_queue_refuses(nbytes: int, count: int, limit: int, actual: int) -> None:
    scheduler: Scheduler[int] = Scheduler(POLICY)
    for _ in range(count):
        scheduler.submit(a_job(nbytes=nbytes), 0.0)
    with pytest.raises(QueueFull) as caught:
        scheduler.submit(a_job(nbytes=nbytes), 0.0)
    assert (caught.value.limit, caught.value.actual) == (limit, actual)
    assert caught.value.retry_after is not None
    assert len(scheduler) == count


def test_a_full_queue_says_when_the_next_batch_makes_room() -> None:
    scheduler = learnt(Policy(4, 10_000, 4, 1_000_000))
    submitted(scheduler, *[SMALL] * 4)
    next_batch(scheduler, 0.0)
    submitted(scheduler, *[SMALL] * 4, now=1.0)
    with pytest.raises(QueueFull) as caught:
        scheduler.submit(a_job(), 1.0)
    assert caught.value.retry_after == pytest.approx(2.0)


def test_an_empty_queue_takes_one_job_of_any_size() -> None:
    scheduler: Scheduler[int] = Scheduler(POLICY)
    scheduler.submit(a_job(nbytes=POLICY.max_queue_bytes + 1), 0.0)
    with pytest.raises(QueueFull):
        scheduler.submit(a_job(nbytes=1), 0.0)


def test_the_door_can_be_tried_before_there_is_a_job() -> None:
    scheduler: Scheduler[int] = Scheduler(POLICY)
    scheduler.check_room(POLICY.max_queue_bytes + 1, 0.0)
    scheduler.submit(a_job(nbytes=400), 0.0)
    scheduler.check_room(600, 0.0)
    with pytest.raises(QueueFull) as caught:
        scheduler.check_room(601, 0.0)
    assert (caught.value.limit, caught.value.actual) == (1000, 1001)
    submitted(scheduler, *[SMALL] * 6)
    assert len(scheduler) == 7, "to try the door takes no place"
    scheduler.submit(a_job(nbytes=0), 0.0)
    with pytest.raises(QueueFull) as caught:
        scheduler.check_room(0, 0.0)
    assert (caught.value.limit, caught.value.actual) == (8, 9)


def test_a_job_remembers_when_it_came() -> None:
    scheduler = learnt()
    job: Job[Any] = a_job()
    scheduler.submit(job, 7.0)
    assert job.submitted == 7.0
