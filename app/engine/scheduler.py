"""Decides which waiting jobs form the next batch, and whom to refuse at the door.

A pure object: time is passed in; it knows nothing of asyncio, torch or images.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from app.errors import DeadlineUnreachable, QueueFull

Payload = TypeVar("Payload")
Reason = Literal["full", "pixels", "idle"]


@dataclass(frozen=True)
class Policy:
    max_batch_size: int
    max_batch_pixels: int
    max_queue_size: int
    max_queue_bytes: int


@dataclass(frozen=True)
class Lane:
    """What jobs must have in common to share a forward pass."""

    model: str
    input_size: tuple[int, int]  # height, width

    @property
    def pixels(self) -> int:
        return self.input_size[0] * self.input_size[1]


@dataclass(eq=False)
class Job(Generic[Payload]):
    """One image waiting.

    Attributes:
        nbytes: it holds while waiting
        deadline: when its answer is no longer wanted, on the clock that the scheduler is given
    """

    lane: Lane
    nbytes: int
    deadline: float
    payload: Payload
    submitted: float = 0.0


@dataclass(eq=False)
class Batch(Generic[Payload]):
    lane: Lane
    jobs: list[Job[Payload]]
    reason: Reason  # why it is no larger: by count, by pixels, or no more were waiting
    started: float


@dataclass
class Cost:
    """Seconds of a batch of n as a + b * n, by least squares over recent batches."""

    MEMORY = 0.95  # weight of the past at each new batch: about the last twenty count
    MINIMUM = 5  # batches before a prediction is made

    count: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0] * 5)  # of 1, n, n^2, t, n*t

    def learn(self, size: int, seconds: float) -> None:
        self.count += 1
        new = (1.0, size, size * size, seconds, size * seconds)
        self.sums = [self.MEMORY * old + value for old, value in zip(self.sums, new, strict=True)]

    def predict(self, size: int) -> float | None:
        """Seconds of a batch of this size, or None as long as too little is known."""
        if self.count < self.MINIMUM:
            return None
        ones, n, nn, t, nt = self.sums
        spread = ones * nn - n * n
        slope = (ones * nt - n * t) / spread if spread > 1e-6 * ones * nn else t / n
        # Neither part of a cost is negative; noise may say otherwise.
        slope = min(max(slope, 0.0), t / n)
        return max(0.0, t - slope * n) / ones + slope * size


class Scheduler(Generic[Payload]):
    """Lanes of jobs, each first in, first out; one batch runs at a time."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._lanes: dict[Lane, deque[Job[Payload]]] = {}
        self._costs: dict[Lane, Cost] = {}
        self._running: Batch[Payload] | None = None
        self._size = 0
        self._bytes = 0

    def __len__(self) -> int:
        """Jobs waiting, the running ones not among them."""
        return self._size

    def depth(self, model: str) -> int:
        """Jobs waiting for one model."""
        return sum(len(jobs) for lane, jobs in self._lanes.items() if lane.model == model)

    @property
    def unfinished(self) -> list[Job[Payload]]:
        """All jobs waiting or running."""
        running = [] if self._running is None else self._running.jobs
        return [job for jobs in self._lanes.values() for job in jobs] + running

    def submit(self, job: Job[Payload], now: float) -> None:
        """Queue a job.

        Raises:
            QueueFull: no place
            DeadlineUnreachable: it would wait beyond its deadline
        """
        self.check_room(job.nbytes, now)
        wait = self.predicted_wait(now, job.lane)
        if wait is not None and now + wait > job.deadline and (self._size or self._running):
            raise DeadlineUnreachable(
                f"the predicted wait is {wait:.1f} s, the deadline in {job.deadline - now:.1f} s",
                limit=round(job.deadline - now, 3),
                actual=round(wait, 3),
                retry_after=now + wait - job.deadline,
            )
        job.submitted = now
        self._lanes.setdefault(job.lane, deque()).append(job)
        self._size += 1
        self._bytes += job.nbytes

    def check_room(self, nbytes: int, now: float) -> None:
        """
        Raises:
            QueueFull: no place for one more job of so many bytes
        """
        size, nbytes = self._size + 1, self._bytes + nbytes
        for name, actual, limit in (
            ("images", size, self.policy.max_queue_size),
            ("bytes", nbytes, self.policy.max_queue_bytes),
        ):
            # An empty queue takes any one job: refusing it would not help it later either.
            if actual > limit and self._size:
                raise QueueFull(
                    f"{actual} {name} would be waiting; the limit is {limit}",
                    limit=limit,
                    actual=actual,
                    retry_after=self._time_to_next_place(now),
                )

    def next_batch(self, now: float) -> Batch[Payload] | None:
        """The batch to run now, or None: the device is busy, or no one waits."""
        if self._running is not None or not self._size:
            return None
        # Deadlines grow with arrival, so a rare lane's turn comes, however busy the others are.
        lane = min(self._lanes, key=lambda lane: (self._lanes[lane][0].deadline, self._lanes[lane][0].submitted))
        waiting = self._lanes[lane]
        size = min(len(waiting), self._limit(lane))
        reason: Reason = "idle" if size == len(waiting) else "full" if size == self.policy.max_batch_size else "pixels"
        jobs = [waiting.popleft() for _ in range(size)]
        self._forget(lane, jobs)
        self._running = Batch(lane, jobs, reason, now)
        return self._running

    def completed(self, batch: Batch[Payload], seconds: float | None, now: float) -> None:
        """The device is free again. A failed batch took no time worth learning: pass None."""
        self._running = None
        if seconds is not None:
            self._costs.setdefault(batch.lane, Cost()).learn(len(batch.jobs), seconds)

    def cancel(self, job: Job[Payload]) -> bool:
        """Give up a job's place; false if it is no longer waiting."""
        waiting = self._lanes.get(job.lane, deque())
        if job not in waiting:
            return False
        waiting.remove(job)
        self._forget(job.lane, [job])
        return True

    def expire(self, now: float) -> list[Job[Payload]]:
        """The jobs whose deadline has passed: those waiting, which are removed, and those running."""
        late = [job for jobs in self._lanes.values() for job in jobs if job.deadline <= now]
        for job in late:
            self.cancel(job)
        return late + [job for job in self.unfinished if job.deadline <= now]

    def predicted_wait(self, now: float, lane: Lane | None = None) -> float | None:
        """Seconds until one more job of a lane would be done (without a lane: until all are).

        None as long as a lane that matters has not been learnt.
        """
        counts = {name: len(jobs) for name, jobs in self._lanes.items()}
        if lane is not None:
            counts[lane] = counts.get(lane, 0) + 1
        parts = [self._remaining(now), *(self._cost(name, count) for name, count in counts.items())]
        known = [part for part in parts if part is not None]
        return sum(known) if len(known) == len(parts) else None

    def _cost(self, lane: Lane, count: int) -> float | None:
        cost = self._costs.get(lane, Cost())
        limit = self._limit(lane)
        full, rest = divmod(count, limit)
        parts = [cost.predict(limit)] * full + [cost.predict(rest)] * bool(rest)
        known = [part for part in parts if part is not None]
        return sum(known) if len(known) == len(parts) else None

    def _limit(self, lane: Lane) -> int:
        """Most jobs in a batch of this lane; one job is always let through, however large."""
        return max(1, min(self.policy.max_batch_size, self.policy.max_batch_pixels // lane.pixels))

    def _remaining(self, now: float) -> float | None:
        if self._running is None:
            return 0.0
        predicted = self._cost(self._running.lane, len(self._running.jobs))
        return None if predicted is None else max(0.0, predicted - (now - self._running.started))

    def _time_to_next_place(self, now: float) -> float:
        # Places come free when the next batch is taken, which is when the running one ends.
        remaining = self._remaining(now)
        return 1.0 if remaining is None else remaining

    def _forget(self, lane: Lane, jobs: list[Job[Payload]]) -> None:
        self._size -= len(jobs)
        self._bytes -= sum(job.nbytes for job in jobs)
        if not self._lanes[lane]:
            del self._lanes[lane]
