from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import cycle, islice, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.cost import Cost
from app.engine.jobs import Batch, Job, Lane
from app.engine.promises import Promises
from app.engine.scheduler import Policy, Scheduler
from app.errors import DeadlineUnreachable, Overloaded, QueueFull
from benchmarks.replay import Callers, Device, Outcome, Simulation
from benchmarks.traffic import Request, poisson

SMALL, LARGE, HUGE = Lane("a", (10, 10)), Lane("b", (10, 20)), Lane("b", (50, 50))
LANES = SMALL, LARGE, HUGE
# Four SMALL, two LARGE or one HUGE a batch; a HUGE one alone is over the pixel limit already.
POLICY = Policy(max_batch_size=4, max_batch_pixels=500, max_queue_size=8, max_queue_bytes=1000)
ROOMY = Policy(max_batch_size=4, max_batch_pixels=10_000, max_queue_size=1000, max_queue_bytes=1_000_000)
NEVER = 1e9


def a_job(model: str = "a", deadline: float = NEVER, nbytes: int = 100, caller: str = "", payload: int = 0) -> Job[int]:
    return Job(model, caller or str(payload), nbytes, deadline, payload)


def waiting(
    scheduler: Scheduler[int], *lanes: Lane, now: float = 0.0, deadline: float = NEVER, nbytes: int = 100
) -> list[Job[int]]:
    """Jobs let in and decoded, one of each lane."""
    jobs = []
    for number, lane in enumerate(lanes):
        job = a_job(lane.model, deadline, nbytes, payload=number)
        scheduler.admit(job, now)
        scheduler.submit(job, lane, nbytes, now)
        jobs.append(job)
    return jobs


def started(scheduler: Scheduler[int], now: float = 0.0) -> Batch[int]:
    batch = scheduler.next_batch(now)
    assert batch is not None
    batch.started = now
    return batch


def run_all(scheduler: Scheduler[int], seconds: float | None = None) -> list[Batch[int]]:
    batches = []
    while (batch := scheduler.next_batch(0.0)) is not None:
        scheduler.completed(batch, len(batch.jobs), seconds, 0.0)
        batches.append(batch)
    return batches


def learnt(policy: Policy = ROOMY, lane: Lane = SMALL, fixed: float = 1.0, each: float = 0.5) -> Scheduler[int]:
    """A scheduler that has seen enough batches of 1 to 4 images, each taking fixed + each * n seconds."""
    scheduler: Scheduler[int] = Scheduler(policy)
    for number in range(8):
        waiting(scheduler, *[lane] * (1 + number % 4))
        while (batch := scheduler.next_batch(0.0)) is not None:
            size = len(batch.jobs)
            scheduler.completed(batch, size, fixed + each * size, 0.0)
    return scheduler


def refusal(scheduler: Scheduler[int], job: Job[int], now: float = 0.0) -> Overloaded:
    with pytest.raises(Overloaded) as caught:
        scheduler.check(job, now)
    return caught.value


# --- random traffic, every event of which is checked


@dataclass
class Traffic:
    """Drives a scheduler through random events and notes what became of each job."""

    scheduler: Scheduler[int]
    timeouts: tuple[float, ...]
    now: float = 0.0
    arriving: list[Job[int]] = field(default_factory=list)
    waiting: list[Job[int]] = field(default_factory=list)  # in the order in which they were decoded
    running: list[Batch[int]] = field(default_factory=list)
    fates: Counter[int] = field(default_factory=Counter)
    asked: int = 0
    taught: int = 0
    fits: dict[Lane, int] = field(default_factory=dict)

    @property
    def policy(self) -> Policy:
        return self.scheduler.policy

    @property
    def present(self) -> list[Job[int]]:
        return self.arriving + self.waiting

    def arrive(self, number: int) -> None:
        timeout = self.timeouts[number % len(self.timeouts)]
        # Few names, so that some of those who were refused come again.
        job = a_job("ab"[number % 2], self.now + timeout, 1 + 10 * number, f"caller {number}", self.asked)
        self.asked += 1
        try:
            self.scheduler.check(job, self.now)
        except Overloaded as refused:
            self._check_refusal(refused)
            with pytest.raises(type(refused)):
                self.scheduler.admit(job, self.now)
            self.fates[job.payload] += 1
        else:
            self.scheduler.admit(job, self.now)
            self.arriving.append(job)

    def decode(self, number: int) -> None:
        if not self.arriving:
            return
        job = self.arriving.pop(number % len(self.arriving))
        lane = SMALL if job.model == "a" else (LARGE, HUGE)[number % 2]
        try:
            self.scheduler.submit(job, lane, job.nbytes + lane.pixels // 10, self.now)
            self.waiting.append(job)
        except Overloaded as refused:
            self._check_refusal(refused)
            self.fates[job.payload] += 1

    def take(self, number: int) -> None:
        slots = self.policy.slots
        batch = self.scheduler.next_batch(self.now)
        if batch is None:
            assert not self.waiting or len(self.running) >= slots, "the device idles while jobs wait"
            return
        assert len(self.running) <= slots, "one more than it runs is formed ahead, no more"
        in_lane = [job for job in self.waiting if job.lane == batch.lane]
        size, more = len(batch.jobs), len(in_lane) > len(batch.jobs)
        assert batch.jobs == in_lane[:size], "one lane alone, first in, first out"
        first = min(self.waiting, key=lambda job: (job.deadline, job.submitted))
        heads = {job.lane: job for job in reversed(self.waiting)}
        assert batch.jobs[0].deadline == min(job.deadline for job in heads.values())
        assert len(self.timeouts) > 1 or batch.jobs[0].submitted == first.submitted
        assert size <= self.policy.max_batch_size
        assert size * batch.lane.pixels <= self.policy.max_batch_pixels or size == 1
        assert size <= self.fits.get(batch.lane, size), "the lane has run out of memory"
        assert (batch.reason == "full") == (size == self.policy.max_batch_size)
        assert (batch.reason == "pixels") == (more and size < self.policy.max_batch_size)
        if len(self.running) == slots:
            assert size == min(self.fits.get(batch.lane, 99), 4, max(1, 500 // batch.lane.pixels)), "might yet grow"
        for job in batch.jobs:
            self._ends(job)
        self.running.append(batch)
        for running in self.running[:slots]:
            running.started = self.now if running.started is None else running.started

    def complete(self, number: int) -> None:
        if not self.running:
            return
        batch = self.running.pop(number % min(len(self.running), self.policy.slots))
        size = len(batch.jobs)
        if number % 7 == 0 and size > 1:
            self.fits[batch.lane] = size // 2
            self.scheduler.completed(batch, size, None, self.now, fits=size // 2)
        elif number % 5 == 0:
            self.scheduler.completed(batch, size, None, self.now)
        else:
            self.taught += 1
            self.scheduler.completed(batch, size, 0.1 + 0.05 * number, self.now)
        for job in batch.jobs:
            assert (self.scheduler.answered(job, self.now) or 0.0) >= 0.0

    def cancel(self, number: int) -> None:
        if self.present:
            job = self.present[number % len(self.present)]
            assert self.scheduler.cancel(job)
            assert not self.scheduler.cancel(job)
            self._ends(job)
        for batch in self.running:
            assert not self.scheduler.cancel(batch.jobs[0]), "too late for what runs"

    def expire(self, number: int) -> None:
        late = self.scheduler.expire(self.now)
        assert Counter(map(id, late)) == Counter(id(job) for job in self._all() if job.deadline <= self.now)
        for job in late:
            if job in self.present:
                self._ends(job)

    def pass_time(self, number: int) -> None:
        self.now += 0.1 * number

    def check_books(self) -> None:
        assert len(self.scheduler) == len(self.present) <= self.policy.max_queue_size
        assert sum(job.nbytes for job in self.present) <= self.policy.max_queue_bytes or len(self.present) == 1
        assert Counter(map(id, self.scheduler.unfinished)) == Counter(map(id, self._all()))
        assert list(self.scheduler.running) == self.running
        for model in ("a", "b"):
            assert self.scheduler.depth(model) == sum(job.model == model for job in self.present)
        wait = self.scheduler.predicted_wait(self.now)
        assert wait is None or wait >= 0
        assert all(ratio >= 0 for ratio in self.scheduler.retry_ratios())

    def _all(self) -> list[Job[int]]:
        return self.present + [job for batch in self.running for job in batch.jobs]

    def _ends(self, job: Job[int]) -> None:
        (self.waiting if job in self.waiting else self.arriving).remove(job)
        self.fates[job.payload] += 1

    def _check_refusal(self, refused: Overloaded) -> None:
        assert self.present or self.running, "an idle server never refuses"
        assert self.taught >= Cost.MINIMUM or isinstance(refused, QueueFull), "nothing is known of the wait yet"
        assert refused.limit is not None
        assert refused.actual is not None
        assert refused.actual >= refused.limit
        assert refused.retry_after is not None
        assert 0 <= refused.retry_after < 1000


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["arrive"] * 4 + ["decode"] * 3 + ["take"] * 2 + ["complete", "cancel", "expire", "pass_time"]),
        st.integers(0, 20),
    ),
    max_size=150,
)


@settings(max_examples=300)
@given(EVENTS, st.sampled_from([(3.0,), (0.5, 3.0, 20.0)]), st.integers(1, 3), st.booleans())
def test_under_any_traffic_every_job_ends_exactly_once(
    events: list[tuple[str, int]], timeouts: tuple[float, ...], slots: int, knows_costs: bool
) -> None:
    traffic = Traffic(Scheduler(Policy(4, 500, 8, 1000, slots)), timeouts)
    if knows_costs:
        for number in range(40):
            for name in ("arrive", "decode", "take", "complete"):
                getattr(traffic, name)(1 + number % 4)
    for name, number in events:
        getattr(traffic, name)(number)
        traffic.check_books()
    while traffic.present or traffic.running:
        for name in ("complete", "decode", "take"):
            getattr(traffic, name)(1)
            traffic.check_books()
    assert traffic.fates == Counter(range(traffic.asked))
    assert_holds_no_bytes(traffic.scheduler)


def assert_holds_no_bytes(scheduler: Scheduler[int]) -> None:
    """Its whole limit of bytes can be used again."""
    assert len(scheduler) == 0
    scheduler.admit(a_job(nbytes=999, caller="one"), 1e6)
    scheduler.admit(a_job(nbytes=1, caller="two"), 1e6)
    with pytest.raises(QueueFull, match=r"1001 bytes"):
        scheduler.admit(a_job(nbytes=1, caller="three"), 1e6)


@given(st.lists(st.sampled_from(LANES), min_size=1, max_size=40))
def test_with_equal_timeouts_only_lane_mates_overtake(lanes: list[Lane]) -> None:
    scheduler: Scheduler[int] = Scheduler(ROOMY)
    for number, lane in enumerate(lanes):
        job = a_job(lane.model, number + 30.0, payload=number)
        scheduler.admit(job, float(number))
        scheduler.submit(job, lane, 1, float(number))
    served: list[int] = []
    for batch in run_all(scheduler):
        assert batch.jobs[0].payload == min(set(range(len(lanes))) - set(served))
        served += [job.payload for job in batch.jobs]
    assert sorted(served) == list(range(len(lanes)))


# --- simulated traffic

DEVICE = Device(0.020, 0.0025, noise=0.1)  # 200 images a second, by eight
SERVER = Policy(8, 1 << 30, 64, 1 << 30)


def simulated(
    requests: list[Request], policy: Policy = SERVER, device: Device = DEVICE, until: float = math.inf
) -> tuple[Simulation, Outcome]:
    """Of those refused, a third come back when told, by whole seconds."""
    simulation = Simulation(policy, device, Callers(returning=0.3, whole_seconds=True))
    return simulation, simulation.run(requests, until)


def deadline_kept(outcome: Outcome, before: float = math.inf) -> float:
    """The share of those let in by then who were answered in time; nobody waited beyond it."""
    admitted = [visitor for visitor in outcome.visitors if visitor.taken is not None and visitor.taken < before]
    admitted = [visitor for visitor in admitted if visitor.ended or before == math.inf]
    assert all(visitor.ended for visitor in admitted)
    for visitor in admitted:
        end = visitor.done if visitor.expired is None else visitor.expired
        assert (end or 0.0) <= (visitor.taken or 0.0) + visitor.request.deadline + 1e-9
    return sum(visitor.done is not None for visitor in admitted) / len(admitted)


@pytest.mark.parametrize(
    ("slots", "deadline", "decode"),
    [(1, 0.25, 0.0), (1, 0.25, 0.03), (1, 0.5, 0.0), (1, 5.0, 0.03), (2, 0.25, 0.03), (2, 5.0, 0.0), (3, 0.5, 0.03)],
)
def test_hardly_anyone_let_in_under_overload_is_late(slots: int, deadline: float, decode: float) -> None:
    rng = random.Random(2)
    requests = [replace(one, deadline=deadline, decode=decode * rng.uniform(0, 2)) for one in poisson(600 * slots, 8.0)]
    simulation, outcome = simulated(requests, Policy(8, 1 << 30, 64, 1 << 30, slots), until=8.0)
    assert deadline_kept(outcome, before=7.0) > 0.97
    assert outcome.busy > 0.95 * slots * 8
    assert len(simulation.scheduler) <= 64


def test_images_that_wait_long_for_a_decoder_do_not_push_each_other_out() -> None:
    """With a deadline of which the decoding takes a fifth, hundreds are being decoded at any time."""
    requests = [replace(one, decode=0.03) for one in poisson(1200, 8.0, deadline=0.15)]
    _, outcome = simulated(requests, Policy(8, 1 << 30, 64, 1 << 30, 2), until=8.0)
    assert sum(visitor.done is not None for visitor in outcome.visitors) > 0.9 * 400 * 8


@pytest.mark.parametrize("count", [1, 2, 4])
def test_alternating_sizes_fill_batches_at_saturation(count: int) -> None:
    sizes = [(512, 512 + 16 * number) for number in range(count)]
    _, outcome = simulated(poisson(400, 10, sizes, deadline=5.0), until=10.0)
    assert sum(outcome.sizes) / len(outcome.sizes) >= 0.95 * 8


def test_a_rare_size_among_a_flood_is_served_before_its_deadline() -> None:
    flood = poisson(180, 20, deadline=0.5)
    rare = [Request(0.5 + second, "model", 256, 1024, 0.5, 1) for second in range(19)]
    _, outcome = simulated([*flood, *rare])
    assert all(visitor.done for visitor in outcome.visitors if visitor.request in rare)
    assert deadline_kept(outcome) > 0.99


def test_a_rare_size_that_is_let_in_under_overload_is_served() -> None:
    flood = poisson(600, 10, deadline=0.5)
    rare = [Request(0.1 + 0.1 * number, "model", 256, 1024, 0.5, 1) for number in range(99)]
    _, outcome = simulated([*flood, *rare], until=11.0)
    admitted = [visitor for visitor in outcome.visitors if visitor.request in rare and visitor.taken is not None]
    assert len(admitted) > 20
    assert sum(visitor.done is not None for visitor in admitted) >= 0.95 * len(admitted)


def test_a_device_that_hung_for_long_is_used_again_at_once() -> None:
    device = replace(DEVICE, stalls=((4.0, 3.0),))
    _, outcome = simulated(poisson(600, 13, deadline=0.5), device=device, until=13.0)
    later = [visitor.done for visitor in outcome.visitors if visitor.done is not None and visitor.done > 8.0]
    assert len(later) > 0.95 * 200 * 5


# --- batches


def test_alternating_sizes_wait_for_batches_of_their_own() -> None:
    scheduler: Scheduler[int] = Scheduler(ROOMY)
    waiting(scheduler, *islice(cycle([SMALL, LARGE]), 16))
    assert [len(batch.jobs) for batch in run_all(scheduler)] == [4, 4, 4, 4]


def test_the_nearest_deadline_goes_first_then_age() -> None:
    scheduler: Scheduler[int] = Scheduler(ROOMY)
    waiting(scheduler, SMALL, now=0.0, deadline=9.0)
    waiting(scheduler, LARGE, now=1.0, deadline=5.0)
    waiting(scheduler, HUGE, now=2.0, deadline=5.0)
    assert [batch.lane for batch in run_all(scheduler)] == [LARGE, HUGE, SMALL]


def test_a_batch_goes_at_once_to_a_free_device_and_waits_for_a_busy_one_if_full() -> None:
    scheduler: Scheduler[int] = Scheduler(ROOMY)
    assert scheduler.next_batch(0.0) is None
    waiting(scheduler, SMALL)
    first = started(scheduler, 3.0)
    assert (len(first.jobs), first.reason) == (1, "idle")
    waiting(scheduler, *[SMALL] * 3)
    assert scheduler.next_batch(3.0) is None, "it may yet grow"
    waiting(scheduler, *[SMALL] * 6)
    second = scheduler.next_batch(3.0)
    assert second is not None
    assert (len(second.jobs), second.reason, second.started) == (4, "full", None)
    assert scheduler.next_batch(3.0) is None
    scheduler.completed(first, 1, 1.0, 4.0)
    third = scheduler.next_batch(4.0)
    assert third is not None
    assert list(scheduler.running) == [second, third]


def test_a_device_with_two_slots_runs_two_batches() -> None:
    scheduler: Scheduler[int] = Scheduler(Policy(4, 10_000, 1000, 1_000_000, slots=2))
    for size in (1, 1, 4):
        waiting(scheduler, *[SMALL] * size)
        assert len(started(scheduler).jobs) == size
    waiting(scheduler, *[SMALL] * 4)
    assert scheduler.next_batch(0.0) is None


def test_a_lane_that_ran_out_of_memory_gets_smaller_batches() -> None:
    scheduler: Scheduler[int] = Scheduler(ROOMY)
    waiting(scheduler, *[SMALL] * 8, *[LARGE] * 4)
    scheduler.completed(started(scheduler), 4, None, 0.0, fits=2)
    assert [len(batch.jobs) for batch in run_all(scheduler)] == [2, 2, 4]


def test_the_expiry_of_running_jobs_is_reported() -> None:
    scheduler: Scheduler[int] = Scheduler(POLICY)
    running = waiting(scheduler, SMALL, deadline=1.0)
    started(scheduler)
    left = waiting(scheduler, LARGE, SMALL, deadline=2.0)
    arriving = a_job(deadline=2.5)
    scheduler.admit(arriving, 0.0)
    assert scheduler.expire(0.9) == []
    assert scheduler.expire(1.0) == running
    assert scheduler.expire(2.0) == [*left, *running]
    assert scheduler.expire(2.5) == [arriving, *running]
    assert len(scheduler) == 0
    assert scheduler.unfinished == running


# --- predicted wait


def test_the_predicted_wait_is_what_runs_and_what_waits() -> None:
    scheduler = learnt()  # a batch of n takes 1 + n / 2 seconds
    assert scheduler.predicted_wait(0.0) == 0.0
    waiting(scheduler, *[SMALL] * 4)
    assert scheduler.predicted_wait(0.0) == pytest.approx(3.0)
    batch = started(scheduler)
    (*_, last) = waiting(scheduler, *[SMALL] * 5, now=1.0)
    remaining, full, rest = 2.0, 3.0, 1.5
    assert last.predicted == pytest.approx(remaining + full + rest, rel=0.05)
    assert scheduler.predicted_wait(1.0) == pytest.approx(remaining + full + rest)
    assert scheduler.predicted_wait(60.0) == pytest.approx(full + rest), "an overdue batch is about to end"
    scheduler.completed(batch, 4, 3.0, 3.0)
    assert scheduler.predicted_wait(3.0) == pytest.approx(full + rest)


def learnt_on_two_slots() -> Scheduler[int]:
    """A scheduler that has seen images of 1 s of the whole device each."""
    return learnt(Policy(1, 10_000, 1000, 1_000_000, slots=2), fixed=1.0, each=0.0)


def test_what_waits_takes_as_long_on_two_slots_as_on_one() -> None:
    scheduler = learnt_on_two_slots()
    waiting(scheduler, *[SMALL] * 16)
    assert scheduler.predicted_wait(0.0) == pytest.approx(16.0)


def test_a_job_takes_longer_as_long_as_others_run_beside_it() -> None:
    scheduler = learnt_on_two_slots()
    first, second, third = waiting(scheduler, *[SMALL] * 3)
    assert [first.predicted, second.predicted, third.predicted] == pytest.approx([1, 1 + 2, 2 + 2])
    batch = started(scheduler)
    for job in (second, third):
        scheduler.cancel(job)
    (late,) = waiting(scheduler, SMALL, now=0.9)
    assert batch.jobs == [first]
    assert late.predicted == pytest.approx(0.1 + 1.1), "its neighbour is about to end"


def test_who_was_let_in_alone_stays_in_though_another_begins() -> None:
    scheduler = learnt_on_two_slots()
    job = a_job(deadline=2.3)
    scheduler.admit(job, 0.0)
    waiting(scheduler, SMALL)
    started(scheduler)
    scheduler.submit(job, SMALL, 100, 0.8)  # 0.2 s of the other, and 1.2 of its own: no hope, if it were twice as long
    assert len(scheduler) == 1


def test_images_not_decoded_yet_count_as_those_before_them() -> None:
    scheduler = learnt()
    for number in range(4):
        scheduler.admit(a_job(payload=number), 0.0)
    assert scheduler.predicted_wait(0.0) == pytest.approx(3.0)
    scheduler.admit(job := a_job(payload=4), 0.0)
    assert job.predicted == pytest.approx(3.0 + 1.5)


def test_who_has_been_decoded_does_not_wait_for_those_who_have_not() -> None:
    scheduler = learnt()
    job = a_job(deadline=2.0, payload=9)
    scheduler.admit(job, 0.0)
    for number in range(4):
        scheduler.admit(a_job(payload=number), 0.0)
    scheduler.submit(job, SMALL, 100, 0.0)
    assert len(scheduler) == 5


def test_a_decoded_image_is_judged_by_its_own_size_not_by_that_of_most() -> None:
    scheduler = learnt_on_two_slots()
    job = a_job(deadline=3.5, payload=9)
    scheduler.admit(job, 0.0)
    waiting(scheduler, SMALL)
    started(scheduler)
    # Of twice the pixels it takes 2 s of the whole device, and the other 1 s, before it or beside it.
    with pytest.raises(DeadlineUnreachable) as late:
        scheduler.submit(job, Lane("a", (10, 20)), 100, 0.0)
    assert late.value.actual == pytest.approx(1 + 2 + 1, rel=0.01)


def test_the_predicted_wait_knows_of_the_pixel_limit() -> None:
    scheduler = learnt(POLICY, LARGE)  # two a batch
    waiting(scheduler, *[LARGE] * 4)
    assert scheduler.predicted_wait(0.0) == pytest.approx(2 * (1.0 + 0.5 * 2))


def test_a_model_that_never_ran_makes_the_wait_unknown() -> None:
    scheduler = learnt()
    waiting(scheduler, LARGE)
    assert scheduler.predicted_wait(0.0) is None
    batch = started(scheduler)
    assert scheduler.predicted_wait(0.0) is None
    scheduler.completed(batch, 1, None, 0.0)
    assert scheduler.predicted_wait(0.0) == 0.0


def test_failed_batches_teach_nothing() -> None:
    scheduler: Scheduler[int] = Scheduler(ROOMY)
    for _ in range(20):
        waiting(scheduler, SMALL)
        scheduler.completed(started(scheduler), 1, None, 0.0)
    waiting(scheduler, SMALL)
    assert scheduler.predicted_wait(0.0) is None


def test_an_answer_is_compared_with_its_prediction_once() -> None:
    scheduler = learnt()
    (job,) = waiting(scheduler, SMALL, now=10.0)
    assert job.predicted == pytest.approx(1.5)
    scheduler.completed(started(scheduler, 10.0), 1, 1.5, 13.0)
    assert scheduler.answered(job, 13.0) == pytest.approx(2.0)
    assert scheduler.answered(job, 13.0) is None


def test_an_answer_can_take_longer_than_no_time_at_all() -> None:
    scheduler = learnt(fixed=0.0, each=0.0)
    (job,) = waiting(scheduler, SMALL)
    assert job.predicted == 0.0
    assert (scheduler.answered(job, 1.0) or 0.0) > 100


def test_a_batch_whose_callers_have_all_left_teaches_nothing() -> None:
    scheduler: Scheduler[int] = Scheduler(ROOMY)
    for size in (0, 1, 1, 1, 1, 0, 1):
        waiting(scheduler, SMALL)
        scheduler.completed(started(scheduler), size, 1.5 * size, 0.0)
    waiting(scheduler, SMALL)
    assert scheduler.predicted_wait(0.0) == pytest.approx(1.5)


# --- admission


def test_a_deadline_out_of_reach_is_refused_with_the_time_to_come_back() -> None:
    scheduler = learnt()
    waiting(scheduler, *[SMALL] * 3)
    with pytest.raises(DeadlineUnreachable) as caught:
        scheduler.admit(a_job(deadline=12.0, caller="x"), 10.0)
    assert caught.value.limit == pytest.approx(2.0)
    assert caught.value.actual == pytest.approx(3.0)
    assert caught.value.retry_after == pytest.approx(1.0, rel=0.05)
    assert len(scheduler) == 3
    scheduler.admit(a_job(deadline=13.001, caller="y"), 10.0)


def test_what_runs_counts_at_the_door_and_an_eighth_of_the_time_to_wait_is_left() -> None:
    scheduler = learnt()
    waiting(scheduler, *[SMALL] * 4)
    started(scheduler)
    # 3 s of the batch that runs, 1.5 of its own, and an eighth of what 4.929 leave beside these.
    with pytest.raises(DeadlineUnreachable):
        scheduler.admit(a_job(deadline=4.92, caller="x"), 0.0)
    scheduler.admit(a_job(deadline=4.94, caller="y"), 0.0)


def test_nothing_is_left_of_what_its_own_batch_takes() -> None:
    scheduler = learnt()
    waiting(scheduler, SMALL)
    started(scheduler)
    # 0.1 s of the batch that runs and 1.5 of its own: an eighth of all that is allowed would be 0.2.
    with pytest.raises(DeadlineUnreachable):
        scheduler.admit(a_job(deadline=1.4 + 1.61, caller="x"), 1.4)
    scheduler.admit(a_job(deadline=1.4 + 1.62, caller="y"), 1.4)


def test_jobs_that_were_late_make_the_door_narrower() -> None:
    scheduler = learnt()
    for _ in range(20):
        jobs = waiting(scheduler, SMALL, deadline=10.0)
        batch = started(scheduler)
        assert scheduler.expire(10.0) == jobs
        scheduler.completed(batch, 1, 1.5, 0.0)
    waiting(scheduler, *[SMALL] * 3)
    # 3 s, and a margin of what they were late by, but of no more than half of what is allowed.
    with pytest.raises(DeadlineUnreachable):
        scheduler.admit(a_job(deadline=5.9), 0.0)
    scheduler.admit(a_job(deadline=6.1), 0.0)


def test_jobs_that_took_as_long_as_was_thought_make_it_no_narrower() -> None:
    scheduler = learnt()
    for _ in range(20):
        (job,) = waiting(scheduler, SMALL, now=100.0)
        scheduler.completed(started(scheduler, 100.0), 1, 1.5, 101.5)
        scheduler.answered(job, 101.5)
    waiting(scheduler, *[SMALL] * 4, now=101.5)
    started(scheduler, 101.5)
    scheduler.admit(a_job(deadline=101.5 + 4.94, caller="x"), 101.5)


def test_an_idle_server_takes_a_job_however_short_its_deadline() -> None:
    scheduler = learnt()
    waiting(scheduler, SMALL, deadline=0.001)
    assert len(started(scheduler).jobs) == 1


def test_nothing_is_refused_for_its_deadline_before_its_cost_is_known() -> None:
    scheduler: Scheduler[int] = Scheduler(ROOMY)
    waiting(scheduler, *[SMALL] * 20, deadline=0.001)
    assert len(scheduler) == 20


@pytest.mark.parametrize(
    ("nbytes", "count", "limit", "actual"), [(1, POLICY.max_queue_size, 8, 9), (400, 2, 1000, 1200)]
)
def test_a_full_queue_refuses(nbytes: int, count: int, limit: int, actual: int) -> None:
    scheduler: Scheduler[int] = Scheduler(POLICY)
    waiting(scheduler, *[SMALL] * count, nbytes=nbytes)
    refused = refusal(scheduler, a_job(nbytes=nbytes, caller="x"))
    assert isinstance(refused, QueueFull)
    assert (refused.limit, refused.actual) == (limit, actual)
    assert refused.retry_after is not None
    assert len(scheduler) == count


def test_a_full_queue_says_when_the_next_batch_makes_room() -> None:
    scheduler = learnt(Policy(4, 10_000, 4, 1_000_000))
    waiting(scheduler, *[SMALL] * 4)
    started(scheduler)
    waiting(scheduler, *[SMALL] * 4, now=1.0)
    assert refusal(scheduler, a_job(caller="x"), 1.0).retry_after == pytest.approx(2.0, rel=0.05)


def test_a_job_of_several_passes_waits_until_all_have_room() -> None:
    scheduler = learnt(Policy(4, 10_000, 4, 1_000_000))
    waiting(scheduler, *[SMALL] * 4)
    started(scheduler)
    waiting(scheduler, *[SMALL] * 4)
    # 3 s until the first place, and a quarter of that for each of the two after it.
    assert refusal(scheduler, Job("a", "x", 100, NEVER, 0, 3)).retry_after == pytest.approx(3.0 + 1.5, rel=0.05)


def test_a_queue_short_of_a_few_bytes_makes_room_no_sooner_than_the_next_batch_does() -> None:
    scheduler = learnt(Policy(4, 10_000, 1000, 800))
    waiting(scheduler, *[SMALL] * 4)
    started(scheduler)
    waiting(scheduler, *[SMALL] * 4)
    assert refusal(scheduler, a_job(caller="x", nbytes=401)).retry_after == pytest.approx(3.0, rel=0.05)


def test_of_two_reasons_the_one_that_lasts_longer_is_told() -> None:
    scheduler = learnt(Policy(4, 10_000, 4, 1_000_000))
    waiting(scheduler, *[SMALL] * 4)
    started(scheduler)
    waiting(scheduler, *[SMALL] * 4)
    assert isinstance(refusal(scheduler, a_job(deadline=7.0, caller="x")), QueueFull)
    assert isinstance(refusal(scheduler, a_job(deadline=1.0, caller="y")), DeadlineUnreachable)


def test_an_empty_queue_takes_one_job_of_any_size() -> None:
    scheduler: Scheduler[int] = Scheduler(POLICY)
    waiting(scheduler, SMALL, nbytes=POLICY.max_queue_bytes + 1)
    assert isinstance(refusal(scheduler, a_job(nbytes=1)), QueueFull)


def test_to_try_the_door_takes_no_place() -> None:
    scheduler: Scheduler[int] = Scheduler(POLICY)
    for _ in range(20):
        scheduler.check(a_job(), 0.0)
    assert len(scheduler) == 0


def test_a_decoded_image_larger_than_thought_can_lose_its_place() -> None:
    scheduler: Scheduler[int] = Scheduler(POLICY)
    waiting(scheduler, *[SMALL] * 4)
    job = a_job(nbytes=100, payload=9)
    scheduler.admit(job, 0.0)
    with pytest.raises(QueueFull, match="1001 bytes"):
        scheduler.submit(job, SMALL, 601, 0.0)
    assert len(scheduler) == 4
    assert not scheduler.cancel(job)


# --- promises


def crowded(policy: Policy = ROOMY) -> Scheduler[int]:
    """A scheduler that does one image in 0.625 s, full of jobs that take ten seconds, with one batch on the device."""
    scheduler = learnt(policy, fixed=1.0, each=0.375)
    waiting(scheduler, *[SMALL] * 4, deadline=NEVER)
    started(scheduler)
    waiting(scheduler, *[SMALL] * 12, deadline=NEVER)
    return scheduler


def test_each_of_a_crowd_is_told_a_time_of_its_own() -> None:
    scheduler = crowded()
    told = [refusal(scheduler, a_job(deadline=8.0, caller=str(number))).retry_after for number in range(20)]
    assert told == sorted(told, key=lambda seconds: seconds or 0.0)
    steps = [(later or 0.0) - (earlier or 0.0) for earlier, later in pairwise(told)]
    assert steps[0] == pytest.approx(0.625 + 8.0 / 8, rel=0.05), "an eighth of the time is left to those in the line"
    assert steps[1:] == [pytest.approx(0.625, rel=0.05)] * 18


def test_so_is_each_of_a_crowd_that_few_keep_out() -> None:
    scheduler = learnt()
    waiting(scheduler, *[SMALL] * 4)
    started(scheduler)
    told = [refusal(scheduler, a_job(deadline=1.0, caller=str(number))).retry_after for number in range(20)]
    steps = [(later or 0.0) - (earlier or 0.0) for earlier, later in pairwise(told)]
    assert steps[1:] == [pytest.approx(0.75, rel=0.05)] * 18


def test_an_eighth_of_the_room_is_left_to_those_in_the_line() -> None:
    scheduler: Scheduler[int] = Scheduler(Policy(4, 10_000, 16, 1_000_000))
    waiting(scheduler, *[SMALL] * 16)
    first, second = (refusal(scheduler, a_job(caller=caller)) for caller in ("first", "second"))
    assert (first.actual, first.detail) == (17, "17 images would be waiting; the limit is 16")
    assert second.actual == 16 + 1 + 1 + 2
    assert "or are promised a place" in second.detail


def test_who_was_promised_a_place_is_let_in_before_others() -> None:
    scheduler = crowded()
    wait = refusal(scheduler, a_job(deadline=8.0, caller="early")).retry_after or 0.0
    scheduler.completed(scheduler.running[0], 4, 2.5, 2.5)
    batch = started(scheduler, 2.5)
    assert batch.jobs
    # A batch on the device, three waiting and its own of one image, and an eighth of what 8 s leave beside
    # its own, less these 8 s: 4.2 s.
    assert wait == pytest.approx(4.2, rel=0.05)
    for caller in ("late", "later"):
        refusal(scheduler, a_job(deadline=wait + 8.0, caller=caller), wait)
    scheduler.admit(a_job(deadline=wait + 8.0, caller="early"), wait)
    assert scheduler.retry_ratios() == [pytest.approx(1.0, abs=0.1)]


def test_a_turn_is_noted_as_soon_as_a_batch_makes_room() -> None:
    scheduler = crowded(Policy(4, 10_000, 12, 1_000_000))
    refusal(scheduler, a_job(caller="x"))
    scheduler.completed(scheduler.running[0], 4, 2.5, 2.5)
    assert scheduler.retry_ratios() == [], "all places are taken still"
    started(scheduler, 2.5)
    assert scheduler.retry_ratios() == [pytest.approx(1.0, abs=0.05)]


def test_a_turn_is_noted_as_soon_as_a_batch_has_ended_though_none_follows() -> None:
    scheduler = learnt()
    waiting(scheduler, *[SMALL] * 4, now=100.0)
    started(scheduler, 100.0)
    refusal(scheduler, a_job(deadline=102.0, caller="x"), 100.0)  # 3 s of that, and 1.5 of its own
    scheduler.completed(scheduler.running[0], 4, 3.0, 110.0)
    assert scheduler.retry_ratios() == [pytest.approx(1.0, abs=0.05)], "nobody looked when it was due"
    waiting(scheduler, *[SMALL] * 4, now=110.0)
    started(scheduler, 110.0)
    told = refusal(scheduler, a_job(deadline=112.0, caller="y"), 110.0).retry_after or 0.0
    waiting(scheduler, *[SMALL] * 8, now=110.0)
    scheduler.completed(scheduler.running[0], 4, 3.0, 115.0)
    started(scheduler, 115.0)
    assert scheduler.retry_ratios() == [], "what has come since would not let it in"
    for batch in list(scheduler.running):
        scheduler.completed(batch, 4, 3.0, 130.0)
    started(scheduler, 130.0)
    scheduler.completed(scheduler.running[0], 4, 3.0, 130.0)
    assert scheduler.retry_ratios() == [pytest.approx(20.0 / told, rel=0.01)]


def test_a_device_that_hangs_makes_what_was_told_untrue() -> None:
    scheduler = crowded(Policy(4, 10_000, 12, 1_000_000))
    told = refusal(scheduler, a_job(caller="x")).retry_after or 0.0
    scheduler.completed(scheduler.running[0], 4, 20.0, 20.0)
    started(scheduler, 20.0)
    assert scheduler.retry_ratios() == [pytest.approx(20.0 / told)]


def test_a_crowd_that_never_comes_back_keeps_nobody_out() -> None:
    scheduler = crowded()
    for number in range(200):
        refusal(scheduler, a_job(deadline=8.0, caller=str(number)))
    while scheduler.running:
        scheduler.completed(scheduler.running[0], 4, 2.5, 10.0)
        scheduler.next_batch(10.0)
    assert len(scheduler) == 0
    for number in range(4):
        scheduler.admit(a_job(deadline=18.0, caller=f"new {number}"), 10.0)
    assert len(scheduler) == 4


def test_whoever_comes_when_told_is_let_in_however_long_its_body_takes() -> None:
    scheduler = crowded(Policy(4, 10_000, 12, 1_000_000))
    wait = refusal(scheduler, a_job(caller="early")).retry_after or 0.0
    for number in range(9):
        refusal(scheduler, a_job(caller=f"later {number}"))
    scheduler.completed(scheduler.running[0], 4, 2.5, wait)
    started(scheduler, wait)
    scheduler.check(job := a_job(caller="early"), wait)
    assert isinstance(refusal(scheduler, a_job(caller="new"), wait + 2.1), QueueFull)
    scheduler.admit(job, wait + 2.1)


def test_the_promised_places_never_make_the_queue_longer() -> None:
    scheduler = crowded(Policy(4, 10_000, 12, 1_000_000))
    wait = refusal(scheduler, a_job(caller="early")).retry_after or 0.0
    assert len(scheduler) == 12
    refused = refusal(scheduler, a_job(caller="early"), wait)
    assert isinstance(refused, QueueFull)
    assert refused.actual == 13


def test_who_was_let_in_keeps_its_place_beside_those_who_were_promised_one() -> None:
    scheduler: Scheduler[int] = Scheduler(Policy(4, 10_000, 12, 1_000_000))
    job = a_job(caller="first")
    scheduler.admit(job, 0.0)
    waiting(scheduler, *[SMALL] * 11)
    for number in range(3):
        refusal(scheduler, a_job(caller=f"later {number}"))
    scheduler.submit(job, SMALL, 100, 0.0)
    assert len(scheduler) == 12


def test_whoever_comes_next_sees_that_others_did_not_come_when_told() -> None:
    scheduler = crowded(Policy(4, 10_000, 12, 1_000_000))
    wait = refusal(scheduler, a_job(caller="never comes")).retry_after or 0.0
    assert scheduler.retry_ratios() == []
    refusal(scheduler, a_job(caller="next"), wait + Promises.GRACE + 0.1)
    assert len(scheduler.retry_ratios()) == 1


@pytest.mark.parametrize(
    ("lanes", "slots", "lets_in"), [([SMALL], 1, False), ([SMALL, LARGE], 1, True), ([SMALL], 2, True)]
)
def test_promised_places_are_kept_free_only_beside_enough_for_batches_of_each_size_on_each_slot(
    lanes: list[Lane], slots: int, lets_in: bool
) -> None:
    scheduler: Scheduler[int] = Scheduler(Policy(4, 10_000, 32, 1_000_000, slots))
    for number, lane in enumerate(islice(cycle(lanes), 32)):
        waiting(scheduler, lane, now=0.01 * number)
    for number in range(20):
        refusal(scheduler, a_job(caller=f"promised {number}"), 0.5)
    while len(scheduler) > 12:
        batch = started(scheduler, 0.5)
        scheduler.completed(batch, len(batch.jobs), None, 0.5)
    if lets_in:
        scheduler.check(a_job(caller="new"), 0.5)
    else:
        assert isinstance(refusal(scheduler, a_job(caller="new"), 0.5), QueueFull)


def test_of_a_short_queue_half_is_enough_to_keep_promised_places_free() -> None:
    scheduler: Scheduler[int] = Scheduler(Policy(4, 10_000, 8, 1_000_000))
    waiting(scheduler, *[SMALL] * 8)
    for number in range(4):
        refusal(scheduler, a_job(caller=f"promised {number}"))
    started(scheduler)
    assert isinstance(refusal(scheduler, a_job(caller="new")), QueueFull)


def test_of_a_queue_of_one_place_none_is_kept_free_on_an_idle_server() -> None:
    scheduler: Scheduler[int] = Scheduler(Policy(1, 10_000, 1, 1_000_000))
    waiting(scheduler, SMALL)
    refusal(scheduler, a_job(caller="promised"))
    run_all(scheduler)
    scheduler.admit(a_job(caller="new"), 0.0)
