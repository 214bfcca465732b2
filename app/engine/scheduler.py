"""Decides whom to refuse at the door, and which waiting jobs form the next batch.

A pure object: time is passed in; it knows nothing of asyncio, torch or images.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic

from app.engine.cost import Costs, Surprise
from app.engine.forecast import Forecast
from app.engine.jobs import Batch, Job, Lane, Payload, Reason
from app.engine.limits import Limits
from app.engine.places import Places, Room
from app.engine.promises import Promise, Promises
from app.errors import DeadlineUnreachable, Overloaded, QueueFull


@dataclass(frozen=True)
class Policy:
    """
    Attributes:
        slots: batches that the device runs at once
    """

    max_batch_size: int
    max_batch_pixels: int
    max_queue_size: int
    max_queue_bytes: int
    slots: int = 1


class Scheduler(Generic[Payload]):
    """Lanes of jobs, each first in, first out, in front of a device."""

    SPARE = 1 / 8  # share of all room kept free beyond the promised places, as callers come back unevenly
    CAUTION = 1 / 8  # share of the time to wait kept as a margin, for other work that no prediction knows of

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._arriving: dict[Job[Payload], None] = {}  # let in, not yet decoded
        self._expected: dict[str, int] = {}  # passes of those, by model
        self._lanes: dict[Lane, deque[Job[Payload]]] = {}
        self._running: list[Batch[Payload]] = []
        self._limits = Limits(policy.max_batch_size, policy.max_batch_pixels)
        self._costs = Costs()
        self._forecast = Forecast(self._costs, self._limits)
        self._surprise = Surprise()
        self._promises = Promises()
        self._places = Places(policy.max_queue_size, policy.max_queue_bytes)

    def __len__(self) -> int:
        """As `depth`, of all models; the running ones are not among them."""
        return self._places.passes

    def depth(self, model: str) -> int:
        """Jobs of one model arriving or waiting, each with as many passes as it needs."""
        waiting = sum(len(jobs) for lane, jobs in self._lanes.items() if lane.model == model)
        return waiting + self._expected.get(model, 0)

    @property
    def unfinished(self) -> list[Job[Payload]]:
        """All jobs arriving, waiting or running."""
        waiting = [job for jobs in self._lanes.values() for job in jobs]
        return [*self._arriving, *waiting, *(job for batch in self._running for job in batch.jobs)]

    @property
    def running(self) -> Sequence[Batch[Payload]]:
        """Batches on the device, the one that waits for it among them."""
        return self._running

    def check(self, job: Job[Any], now: float) -> None:
        """Refuse a job that `admit` would refuse; else do nothing.

        Raises:
            QueueFull: no place
            DeadlineUnreachable: it would be done beyond its deadline
        """
        self._promises.lapse(now)
        self._promises.recall(job)
        refusal = self._refusal(job, self._kept_free(job, now), now)
        # The device is not kept waiting for those who may come.
        if refusal and self._places.passes < self._enough:
            refusal = self._refusal(job, (Room(), 0.0), now) and refusal
        if refusal is not None:
            promise = Promise(job.caller, job.model, job.nbytes, job.deadline - now, made=now, passes=job.passes)
            each = self._seconds_each(job.model)
            refusal.retry_after = self._promises.make(promise, refusal.retry_after or 0.0, each)
            raise refusal
        self._promises.expect(job.caller, job.deadline, now)

    def admit(self, job: Job[Payload], now: float) -> None:
        """Let a job in, whose image is to be decoded yet.

        Raises:
            QueueFull, DeadlineUnreachable: as `check`
        """
        self.check(job, now)
        self._promises.keep(job.caller, now)
        job.admitted, job.granted = now, job.passes
        until_done = self._until_done(job, now)
        job.predicted = until_done and until_done[0]
        self._arriving[job] = None
        self._expected[job.model] = self._expected.get(job.model, 0) + job.passes
        self._places.take(job)

    def submit(self, job: Job[Payload], lane: Lane, nbytes: int, now: float, further: Sequence[Lane] = ()) -> None:
        """Queue a job that was let in, now that its size is known; if that is refused, it has lost its place.

        Args:
            nbytes: that it holds from now on
            further: lanes of its other passes, if it needs more than one

        Raises:
            QueueFull, DeadlineUnreachable: as `check`
        """
        self.cancel(job)
        job.divide((lane, *further), nbytes, now)
        self.check(job, now)
        job.passes, job.nbytes = 1, job.nbytes // len(job.parts)
        for part, own in zip(job.parts, (lane, *further), strict=True):
            self._lanes.setdefault(own, deque()).append(part)
            self._places.take(part)

    def next_batch(self, now: float) -> Batch[Payload] | None:
        """The batch to run next, or None.

        One more than the device has room for is formed ahead, so that the device never waits, but only if it is
        full: any other might yet grow.
        """
        if not self._lanes or len(self._running) > self.policy.slots:
            return None
        # Deadlines grow with arrival, so a rare lane's turn comes, however busy the others are.
        lane = min(self._lanes, key=lambda lane: (self._lanes[lane][0].deadline, self._lanes[lane][0].submitted))
        waiting, limit = self._lanes[lane], self._limits.of(lane)
        if len(self._running) == self.policy.slots and len(waiting) < limit:
            return None
        size = min(len(waiting), limit)
        reason: Reason = "full" if size == self.policy.max_batch_size else "idle" if size == len(waiting) else "pixels"
        batch = Batch(lane, [waiting[index] for index in range(size)], reason, now)
        for job in batch.jobs:
            self._remove(job)
        self._running.append(batch)
        self._call(now)
        return batch

    def completed(
        self, batch: Batch[Payload], size: int, seconds: float | None, now: float, fits: int | None = None
    ) -> None:
        """A batch has left the device.

        Args:
            size: images that were run, without those whose callers had left
            seconds: of the whole device that it took; None if that is not worth learning from
            fits: if it ran out of memory, the most images that were run at once
        """
        self._running.remove(batch)
        if seconds is not None and size:
            self._costs.learn(batch.lane, size, seconds)
        if fits is None:
            self._limits.passed(batch.lane, size)
        else:
            self._limits.lower(batch.lane, fits)
        self._call(now)

    def cancel(self, job: Job[Payload]) -> bool:
        """Give up a job's place, those of its other parts too; false if it no longer has one."""
        return sum(map(self._remove, job.parts)) > 0

    def _remove(self, job: Job[Payload]) -> bool:
        if job in self._arriving:
            del self._arriving[job]
            self._expected[job.model] -= job.passes
            if not self._expected[job.model]:
                del self._expected[job.model]
        elif job.lane in self._lanes and job in self._lanes[job.lane]:
            self._lanes[job.lane].remove(job)
            if not self._lanes[job.lane]:
                del self._lanes[job.lane]
        else:
            return False
        self._places.free(job)
        return True

    def expire(self, now: float) -> list[Job[Payload]]:
        """The jobs whose deadline has passed: those not yet running, which lose their places, and those running."""
        late = [job for job in self.unfinished if job.deadline <= now]
        for job in late:
            self.answered(job, now)
            self.cancel(job)
        return late

    def answered(self, job: Job[Payload], now: float) -> float | None:
        """Learn from a job that was answered, or that nobody waits for any more.

        Returns:
            the seconds it took divided by those predicted, or None if none were
        """
        if (predicted := job.predicted) is None:
            return None
        job.predicted = None
        self._surprise.learn(now - job.admitted - predicted)
        return (now - job.admitted) / max(predicted, 1e-3)

    def retry_ratios(self) -> list[float]:
        """Time until a refused caller would have been let in, divided by the time it was told; since last asked."""
        return self._promises.ratios()

    def predicted_wait(self, now: float) -> float | None:
        """Seconds until all that are here now are done; None as long as too little is known."""
        return None if (work := self._work(None, now)) is None else work[0]

    @property
    def _enough(self) -> int:
        """Passes that keep the device busy for now."""
        batches = 2 * self.policy.slots * max(1, len(self._lanes))
        return min(batches * self.policy.max_batch_size, (self.policy.max_queue_size + 1) // 2)

    def _kept_free(self, job: Job[Any], now: float) -> tuple[Room, float]:
        """What is kept for others who were promised a place, and the share of all room that is left spare."""
        if job.lane is not None or self._promises.is_due(job.caller, now):
            return Room(), 0.0  # its own place is among them
        ahead = self._promises.ahead(job.caller, now)
        return ahead, self.SPARE if ahead.passes else 0.0

    def _refusal(self, job: Job[Any], kept_free: tuple[Room, float], now: float) -> Overloaded | None:
        """Why a job can't be let in, with the seconds until it could; None if it can."""
        return max(self._refusals(job, kept_free, now), key=lambda one: one.retry_after or 0.0, default=None)

    def _refusals(self, job: Job[Any], kept_free: tuple[Room, float], now: float) -> Iterator[Overloaded]:
        ahead, spare = kept_free
        each = self._seconds_each(job.model)
        # A job that needs nearly all places would never find them free. It is let in beside few, which are enough work.
        few = self._enough if self._promises.is_due(job.caller, now) else 0
        for lack in self._places.lacks(job, ahead, spare, few):
            others = " or are promised a place" if ahead.passes else ""
            detail = f"{lack.actual} {lack.of} would be waiting{others}; the limit is {lack.limit}"
            wait = self._forecast.seconds_to_next_place(self._running, now) + max(0.0, lack.leave - 1) * each
            yield QueueFull(detail, limit=lack.limit, actual=lack.actual, retry_after=wait)
        if not (self._places.passes or self._running):
            return
        if (until_done := self._until_done(job, now)) is None:
            return
        predicted, last = until_done
        allowed = job.deadline - now
        # A job that was let in is given up only if there is no hope.
        caution = max(self._surprise.margin, self.CAUTION * (allowed - last))
        margin = 0.0 if job.lane is not None else min(caution, allowed / 2)
        wait = predicted + margin + ahead.passes * each + spare * allowed
        if wait > allowed:
            detail = f"the predicted wait is {wait:.1f} s with its margin, the deadline in {allowed:.1f} s"
            late = wait - allowed
            yield DeadlineUnreachable(detail, limit=round(allowed, 3), actual=round(wait, 3), retry_after=late)

    def _until_done(self, job: Job[Any], now: float) -> tuple[float, float] | None:
        """Seconds until a job would be done, and of these its own last batch's; None if too little is known."""
        if (work := self._work(job, now)) is None:
            return None
        total, last = work
        # Its own batch has a part of the device, as long as others run beside it.
        own = last + min(total - last, last * (self.policy.slots - 1))
        return total - last + own, own

    def _work(self, extra: Job[Any] | None, now: float) -> tuple[float, float] | None:
        """Device seconds of all that is here and of one more job, and those of that job's last batch."""
        counts = {lane: len(jobs) for lane, jobs in self._lanes.items()}

        def count(lane: Lane, passes: int) -> None:
            counts[lane] = counts.get(lane, 0) + passes

        if extra is None or extra.lane is None:  # who has been decoded goes before those who have not
            for model, passes in self._expected.items():
                count(self._costs.typical(model), passes)
        own = None
        if extra is not None:
            own = extra.parts[-1].lane or self._costs.typical(extra.model)
            if extra.lane is None:
                count(own, extra.passes)
            for part in extra.parts:
                if part.lane is not None:
                    count(part.lane, 1)
        return self._forecast.work(counts, self._running, own, now)

    def _seconds_each(self, model: str) -> float:
        """From one pass of a model to the next."""
        return self._forecast.seconds_each(self._costs.typical(model))

    def _call(self, now: float) -> None:
        """Note which of those who were refused would be let in now."""
        while (promise := self._promises.next_in_line()) is not None:
            moment = self._promises.turn(promise, now)
            job = Job(promise.model, promise.caller, promise.nbytes, moment + promise.allowed, None, promise.passes)
            if self._refusal(job, self._kept_free(job, moment), moment) is not None:
                break
            self._promises.call(promise, moment)
        self._promises.looked = now
