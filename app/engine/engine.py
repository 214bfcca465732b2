"""Models behind one queue: what the API talks to."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

from app.engine.device import Device, Segmentation
from app.engine.jobs import Batch, Job, Lane
from app.engine.scheduler import Policy, Scheduler
from app.engine.staging import Image
from app.engine.threads import DeviceThreads, Finished
from app.engine.waiting import Waiting
from app.errors import DeadlineExceeded, DeviceError, InferenceFailed, NotReady, Overloaded, ServiceError, UnknownModel
from app.metrics import Ending, Metrics
from models import ModelSpec

log = logging.getLogger(__name__)

State = Literal["loading", "ready", "draining", "failed"]
WATCH_INTERVAL = 1.0  # seconds between two looks at whether the device still moves


class Engine:
    """Owns the scheduler, on the event loop, and the device, on threads of its own.

    All deadlines are by `time.monotonic`.
    """

    def __init__(
        self, worker: Device, specs: Sequence[ModelSpec], policy: Policy, metrics: Metrics, stall_timeout: float
    ) -> None:
        """
        Args:
            stall_timeout: seconds of one batch after which the device is taken for dead
        """
        self.specs = {spec.name: spec for spec in specs}
        self.state: State = "loading"
        self._worker = worker
        self._metrics = metrics
        self._slots = policy.slots
        self._stall_timeout = stall_timeout
        self._scheduler: Scheduler[Waiting] = Scheduler(policy)
        self._threads = DeviceThreads(worker, policy.slots)
        self._task: asyncio.Task[None] | None = None
        self._on_failure: Callable[[], None] | None = None

    @property
    def device(self) -> str:
        return str(self._worker.device)

    @property
    def is_stuck(self) -> bool:
        """Whether a batch runs still, though everyone has been answered."""
        return self.state != "ready" and bool(self._scheduler.running)

    @property
    def queue_size(self) -> int:
        return len(self._scheduler)

    def start(self, on_failure: Callable[[], None]) -> None:
        """Load the models in the background, then serve; `on_failure` is called should that ever break."""
        self._on_failure = on_failure
        self._task = asyncio.create_task(self._load_and_watch())
        self._task.add_done_callback(self._ended)

    async def stop(self, drain_timeout: float) -> None:
        """Refuse new work, finish within so many seconds what was accepted, refuse what is left."""
        if self.state != "failed":
            self.state = "draining"
        accepted = [job.payload.future for job in self._scheduler.unfinished]
        if accepted:
            _, pending = await asyncio.wait(accepted, timeout=drain_timeout)
            log.info("drained: %d images finished, %d refused", len(accepted) - len(pending), len(pending))
        self._answer_all(NotReady("the server is shutting down"))
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._threads.shutdown()

    def spec(self, model: str) -> ModelSpec:
        """
        Raises:
            UnknownModel: the message lists the names there are
        """
        try:
            return self.specs[model]
        except KeyError:
            raise UnknownModel(f"no model {model!r} is served; there are {', '.join(self.specs)}") from None

    def check_ready(self) -> None:
        """
        Raises:
            NotReady: still loading, or going down
        """
        if self.state != "ready":
            raise NotReady(f"the server is {self.state}", retry_after=1.0)

    def check_room(self, model: str, caller: str, nbytes: int, deadline: float) -> None:
        """Refuse before an image has even been read what would be refused after it.

        Args:
            caller: the request's id; who comes back with the same one finds the place that it was promised
            nbytes: that the image is announced to have

        Raises:
            NotReady: still loading, or going down
            QueueFull, DeadlineUnreachable: no place in the queue, or too long a wait
        """
        self.check_ready()
        job, now = Job(model, caller, nbytes, deadline, None), time.monotonic()
        try:
            self._scheduler.check(job, now)
        except Overloaded as exc:
            self._count(model, exc)
            _trace(job, nbytes, now)
            raise

    @contextmanager
    def admitted(self, model: str, caller: str, nbytes: int, deadline: float) -> Iterator[Job[Waiting]]:
        """A place in the queue, from before an image is decoded until its answer is ready to be sent.

        Args:
            nbytes: that the caller holds in memory all the while; the rest as for `check_room`

        Raises:
            UnknownModel, NotReady, QueueFull, DeadlineUnreachable
        """
        self.spec(model)
        loop, now = asyncio.get_running_loop(), time.monotonic()
        job = Job(model, caller, nbytes, deadline, Waiting(loop.create_future()))
        timer = loop.call_later(deadline - now, self._expire, deadline)
        try:
            self.check_ready()
            self._scheduler.admit(job, now)
            yield job
        except BaseException as exc:
            self._count(model, exc)
            raise
        else:
            self._metrics.image(model, "ok")
            self._metrics.wait_ratio(model, self._scheduler.answered(job, time.monotonic()))
        finally:
            timer.cancel()
            self._scheduler.cancel(job)
            job.payload.leave()
            _trace(job, nbytes, now)

    async def segment(self, job: Job[Waiting], image: Image) -> Segmentation:
        """Segment the image of a job that was let in.

        Raises:
            NotReady, QueueFull, DeadlineUnreachable, DeadlineExceeded, InferenceFailed, OutOfMemory
        """
        if not job.payload.future.done():
            job.payload.image = image
            lane = Lane(job.model, (image.pixels.shape[0], image.pixels.shape[1]))
            self._scheduler.submit(job, lane, job.nbytes + image.pixels.nbytes, time.monotonic())
            self._dispatch()
        return await job.payload.future

    def observe(self) -> None:
        """Bring the gauges that are read off the queue and the device up to date."""
        wait = self._scheduler.predicted_wait(time.monotonic())
        for model in self.specs:
            self._metrics.queue(model, self._scheduler.depth(model), wait)
        self._metrics.memory(self.device, self._worker.memory())

    def _expire(self, now: float) -> None:
        for job in self._scheduler.expire(now):
            job.payload.fail(DeadlineExceeded("the deadline passed before the mask was ready"))

    def _answer_all(self, error: ServiceError) -> None:
        for job in self._scheduler.unfinished:
            job.payload.fail(error)
            self._scheduler.cancel(job)

    async def _load_and_watch(self) -> None:
        call = self._threads.call
        for spec in self.specs.values():
            await asyncio.wrap_future(call(self._worker.load, spec))
            # All at once, so that each is done by a thread of its own.
            passes = [call(self._worker.warm_up, spec.name) for _ in range(self._slots)]
            await asyncio.gather(*map(asyncio.wrap_future, passes))
            self._metrics.model(spec.name, spec.dataset, len(spec.classes.names), self.device)
        # What has been made so far is here to stay; frozen, it no longer holds up each collection of garbage.
        await asyncio.wrap_future(call(gc.collect))
        gc.freeze()
        self.state = "ready"
        log.info("ready: %s on %s", ", ".join(self.specs), self.device)
        while True:
            await asyncio.sleep(WATCH_INTERVAL)
            self._check_progress(time.monotonic())

    def _check_progress(self, now: float) -> None:
        for batch in self._scheduler.running:
            # One that has not started is being staged, or waits for the one before, which may take as long.
            latest = batch.formed + self._stall_timeout if batch.started is None else batch.started
            if now - latest > self._stall_timeout:
                raise DeviceError(f"{self.device} has not finished a batch in {self._stall_timeout:g} s")

    def _dispatch(self) -> None:
        """Give the device what it can take."""
        while (batch := self._scheduler.next_batch(time.monotonic())) is not None:
            try:
                finished = asyncio.wrap_future(self._threads.run(batch))
            except RuntimeError as exc:
                self._lost(batch, exc)
                return
            finished.add_done_callback(partial(self._finish, batch))

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Nothing can be served any more: answer everyone, once."""
        if self.state == "failed":
            return
        self.state = "failed"
        log.critical("the engine failed", exc_info=error)
        self._answer_all(InferenceFailed("the engine failed; the server is going down"))
        if self._on_failure is not None:
            self._on_failure()

    def _lost(self, batch: Batch[Waiting], error: BaseException) -> None:
        self._fail(error)  # as long as the batch is known to run, its callers are answered too
        self._scheduler.completed(batch, 0, None, time.monotonic())

    def _finish(self, batch: Batch[Waiting], finished: asyncio.Future[Finished]) -> None:
        """On the event loop: the device first, then the callers."""
        if finished.cancelled():  # at shutdown, before it began
            self._scheduler.completed(batch, 0, None, time.monotonic())
            return
        error = finished.exception()
        if error is not None:
            self._lost(batch, error)
            return
        done = finished.result()
        outcomes = done.ran.outcomes
        clean = all(isinstance(outcome, Segmentation) for outcome in outcomes)
        self._scheduler.completed(
            batch, len(done.jobs), done.seconds if clean else None, time.monotonic(), done.ran.fits
        )
        self._dispatch()
        if len(outcomes) != len(done.jobs):
            problem = InferenceFailed(f"the model gave {len(outcomes)} results for {len(done.jobs)} images")
            outcomes = [problem] * len(done.jobs)
        self._note(batch, done)
        for job, outcome in zip(done.jobs, outcomes, strict=True):
            job.payload.answer(outcome, (batch.started or 0.0) - job.submitted)

    def _note(self, batch: Batch[Waiting], done: Finished) -> None:
        model, size = batch.lane.model, len(done.jobs)
        for ratio in self._scheduler.retry_ratios():
            self._metrics.retry_after_ratio(ratio)
        if not size:
            return
        lost = sum(job.payload.future.done() for job in done.jobs)
        self._metrics.batch(model, batch.reason, size)
        self._metrics.device(self.device, done.seconds / self._slots)
        self._metrics.wasted(model, done.seconds * lost / size)
        if done.ran.fits is not None:
            self._metrics.out_of_memory(model, "split" if done.ran.fits else "failed")
        passes = {id(one.timings): one.timings for one in done.ran.outcomes if isinstance(one, Segmentation)}
        for timings in passes.values():
            self._metrics.modules(model, self.device, timings.modules)

    def _count(self, model: str, error: BaseException) -> None:
        self._metrics.image(model, _ending(error))
        if isinstance(error, Overloaded):
            self._metrics.rejected(model, error.code)


def _trace(job: Job[Any], nbytes: int, came: float) -> None:
    """A line for `benchmarks.replay`; one that was refused before it was decoded has no size."""
    if log.isEnabledFor(logging.DEBUG):
        height, width = (None, None) if job.lane is None else job.lane.input_size
        line = {"at": came, "model": job.model, "height": height, "width": width, "deadline": job.deadline - came}
        line |= {"nbytes": nbytes, "decode": max(0.0, job.submitted - came)}
        log.debug("trace %s", json.dumps(line))


def _ending(error: BaseException) -> Ending:
    match error:
        case asyncio.CancelledError():
            return "cancelled"
        case DeadlineExceeded():
            return "expired"
        case Overloaded() | NotReady():
            return "rejected"
        case _:
            return "error"
