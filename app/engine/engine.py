"""Models behind one queue: what the API talks to."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Literal

from app.engine.accounts import Accounts, trace
from app.engine.changes import Changes
from app.engine.device import Device, Segmentation
from app.engine.jobs import Batch, Job, Lane
from app.engine.loaded import Loaded
from app.engine.residents import Residents
from app.engine.scheduler import Policy, Scheduler
from app.engine.staging import Image
from app.engine.threads import DeviceThreads, Finished, has_stalled
from app.engine.waiting import Waiting
from app.errors import (
    DeadlineExceeded,
    DeviceError,
    InferenceFailed,
    ModelNotLoaded,
    NotReady,
    Overloaded,
    ServiceError,
)
from app.metrics import Metrics
from models import ModelSpec

log = logging.getLogger(__name__)

State = Literal["loading", "ready", "draining", "failed"]
WATCH_INTERVAL = 1.0  # seconds between two looks at whether the device still moves


class Engine:
    """Owns the scheduler, on the event loop, and the device, on threads of its own. Deadlines: by `time.monotonic`."""

    def __init__(
        self, worker: Device, specs: Sequence[ModelSpec], policy: Policy, metrics: Metrics, stall_timeout: float
    ) -> None:
        """
        Args:
            specs: what is loaded at the start; without the first there is nothing to start for
            stall_timeout: seconds of one batch after which the device is taken for dead
        """
        self.state: State = "loading"
        self._worker = worker
        self._metrics = metrics
        self._accounts = Accounts(metrics, self.device)
        self._stall_timeout = stall_timeout
        self._scheduler: Scheduler[Waiting] = Scheduler(policy)
        self._threads = DeviceThreads(worker, policy.slots)
        self.models = Residents(worker, self._threads, metrics)
        self.models.plan(specs)
        self._changes = Changes(self._fail)
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
        ends = time.monotonic() + drain_timeout
        self._changes.end()
        accepted = {job.payload.future for job in self._scheduler.unfinished}
        if accepted:
            _, pending = await asyncio.wait(accepted, timeout=drain_timeout)
            log.info("drained: %d images finished, %d refused", len(accepted) - len(pending), len(pending))
        self._answer(self._scheduler.unfinished, NotReady("the server is shutting down"))
        if self._task is not None:
            while self.state == "draining" and self._scheduler.running and time.monotonic() < ends:  # noqa: ASYNC110
                await asyncio.sleep(0.01)  # its callers were answered at their deadlines; that it runs is no fault
            self._task.cancel()
            await asyncio.wait([self._task])
        self._threads.shutdown()

    def check_ready(self) -> None:
        """
        Raises:
            NotReady: still loading, or going down
        """
        if self.state != "ready":
            raise NotReady(f"the server is {self.state}")

    def check_room(self, model: str, caller: str, nbytes: int, deadline: float, passes: int = 1) -> None:
        """Refuse before an image has even been read what would be refused after it.

        Args:
            caller: the request's id; who comes back with the same one finds the place that it was promised
            nbytes: that the image is announced to have
            passes: that it is expected to need

        Raises:
            UnknownModel, NotReady, ModelNotLoaded: it is not served, or not now
            QueueFull, DeadlineUnreachable: no place in the queue, or too long a wait
        """
        self._serving(model)
        job, now = Job(model, caller, nbytes, deadline, None, passes), time.monotonic()
        try:
            self._scheduler.check(job, now)
        except Overloaded as exc:
            self._accounts.failed(model, exc)
            trace(job, nbytes, now)
            raise

    @contextmanager
    def admitted(
        self, model: str, caller: str, nbytes: int, deadline: float, passes: int = 1
    ) -> Iterator[Job[Waiting]]:
        """A place in the queue, from before an image is decoded until its answer is ready to be sent.

        Args:
            nbytes: that the caller holds in memory all the while; the rest as for `check_room`

        Raises:
            UnknownModel, NotReady, ModelNotLoaded, QueueFull, DeadlineUnreachable
        """
        loaded = self._serving(model)
        loop, now = asyncio.get_running_loop(), time.monotonic()
        job = Job(model, caller, nbytes, deadline, Waiting(loop.create_future(), loaded, nbytes), passes)
        timer = loop.call_later(deadline - now, self._expire, deadline)
        loaded.hold()
        try:
            self._scheduler.admit(job, now)
            yield job
        except BaseException as exc:
            self._accounts.failed(model, exc)
            if isinstance(exc, DeadlineExceeded):
                self._scheduler.answered(job, time.monotonic())  # it took that long at least
            raise
        else:
            self._accounts.answered(model, self._scheduler.answered(job, time.monotonic()))
        finally:
            timer.cancel()
            loaded.release()
            self._scheduler.cancel(job)
            job.payload.leave()
            trace(job, nbytes, now)

    async def segment(self, job: Job[Waiting], images: Sequence[Image]) -> Segmentation:
        """Segment the image of a job that was let in.

        Args:
            images: one for each of the passes that it needs

        Raises:
            NotReady, QueueFull, DeadlineUnreachable, DeadlineExceeded, InferenceFailed, OutOfMemory
        """
        if not job.payload.future.done():
            job.payload.images = tuple(images)
            lane, *further = (Lane(job.model, image.input_size, job.payload.loaded.key) for image in images)
            nbytes = job.payload.nbytes + sum(image.pixels.nbytes for image in images)
            self._scheduler.submit(job, lane, nbytes, time.monotonic(), further)
            self._dispatch()
        return await job.payload.future

    async def load(self, spec: ModelSpec) -> None:
        """Load a model, or replace it by what its file now holds; whoever came before is still answered by the old one.

        Raises:
            NotReady: loading at the start still, or going down
            LoadFailed: what has served before still does
        """
        self.check_ready()
        await self._changes.finish(self.models.load(spec))

    async def unload(self, name: str) -> None:
        """Take a model from the device. What runs is finished; who waits for it is told that it is gone.

        Raises:
            NotReady, UnknownModel
        """
        self.check_ready()
        await self._changes.finish(self._unload(name))

    def observe(self) -> None:
        """Bring the gauges that are read off the queue and the device up to date."""
        wait = self._scheduler.predicted_wait(time.monotonic())
        for model in self.models.models:
            self._metrics.queue(model.spec.name, self._scheduler.depth(model.spec.name), wait)
        self._metrics.memory(self.device, self._worker.memory())

    def _expire(self, now: float) -> None:
        for job in self._scheduler.expire(now):
            job.payload.fail(DeadlineExceeded("the deadline passed before the mask was ready"))

    def _answer(self, jobs: Sequence[Job[Waiting]], error: ServiceError) -> None:
        for job in jobs:
            job.payload.fail(error)
            self._scheduler.cancel(job)

    def _serving(self, model: str) -> Loaded:
        self.models.model(model)
        try:
            self.check_ready()
            return self.models.serving(model)
        except NotReady as exc:
            self._accounts.failed(model, exc)
            raise

    async def _load_and_watch(self) -> None:
        await self.models.load_planned()
        self.state = "ready"
        ready = [model.spec.name for model in self.models.models if model.state == "ready"]
        log.info("ready: %s on %s", ", ".join(ready), self.device)
        while True:
            await asyncio.sleep(WATCH_INTERVAL)
            if has_stalled(self._scheduler.running, time.monotonic(), self._stall_timeout):
                raise DeviceError(f"{self.device} has not finished a batch in {self._stall_timeout:g} s")

    async def _unload(self, name: str) -> None:
        withdrawn = await self.models.withdraw(name)
        if withdrawn is None:
            return
        running = {job for batch in self._scheduler.running for job in batch.jobs}
        waiting = [job for job in self._scheduler.unfinished if job not in running]
        self._answer(
            [job for job in waiting if job.payload.loaded is withdrawn], ModelNotLoaded(f"{name} was unloaded")
        )
        await self.models.free(withdrawn)

    def _dispatch(self) -> None:
        """Give the device what it can take."""
        while (batch := self._scheduler.next_batch(time.monotonic())) is not None:
            try:
                finished = asyncio.wrap_future(self._threads.run(batch))
            except RuntimeError as exc:
                self._lost(batch, exc)
                return
            batch.jobs[0].payload.loaded.hold()
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
        self._changes.end()
        self._answer(self._scheduler.unfinished, InferenceFailed("the engine failed; the server is going down"))
        if self._on_failure is not None:
            self._on_failure()

    def _lost(self, batch: Batch[Waiting], error: BaseException) -> None:
        self._fail(error)  # as long as the batch is known to run, its callers are answered too
        self._scheduler.completed(batch, 0, None, time.monotonic())

    def _finish(self, batch: Batch[Waiting], finished: asyncio.Future[Finished]) -> None:
        """On the event loop: the device first, then the callers."""
        batch.jobs[0].payload.loaded.release()
        if finished.cancelled():  # at shutdown, before it began
            self._scheduler.completed(batch, 0, None, time.monotonic())
            return
        error = finished.exception()
        if error is not None:
            self._lost(batch, error)
            return
        done = finished.result()
        outcomes = done.outcomes
        clean = not any(isinstance(outcome, ServiceError) for outcome in outcomes)
        self._scheduler.completed(
            batch, len(done.jobs), done.device_seconds if clean else None, time.monotonic(), done.ran.fits
        )
        self._dispatch()
        self._accounts.retries(self._scheduler.retry_ratios())
        self._accounts.ran(batch, done)
        for job, outcome in zip(done.jobs, outcomes, strict=True):
            job.payload.answer(outcome, (batch.started or 0.0) - job.submitted)
