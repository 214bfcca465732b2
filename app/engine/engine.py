"""Models behind one queue: what the API talks to."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

from app.engine.scheduler import Batch, Job, Lane, Policy, Scheduler
from app.engine.worker import Image, Segmentation, Worker
from app.errors import DeadlineExceeded, InferenceFailed, NotReady, Overloaded, ServiceError, UnknownModel
from app.metrics import Ending, Metrics
from app.timings import Timings
from models import ModelSpec

log = logging.getLogger(__name__)

State = Literal["loading", "ready", "draining", "failed"]


@dataclass(eq=False)
class Waiting:
    image: Image
    future: asyncio.Future[Segmentation]

    # A caller that hung up has cancelled its future, and one that timed out has been answered; to set
    # a future twice raises. Both replies look first, so that a lost caller can't break its batch mates.
    def succeed(self, result: Segmentation) -> None:
        if not self.future.done():
            self.future.set_result(result)

    def fail(self, error: ServiceError) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class Engine:
    """Owns the scheduler, on the event loop, and the worker, on its own thread."""

    def __init__(self, worker: Worker, specs: Sequence[ModelSpec], policy: Policy, metrics: Metrics) -> None:
        self.specs = {spec.name: spec for spec in specs}
        self.state: State = "loading"
        self._worker = worker
        self._metrics = metrics
        self._scheduler: Scheduler[Waiting] = Scheduler(policy)
        self._device_thread = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._wakeup = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def device(self) -> str:
        return str(self._worker.device)

    @property
    def is_stuck(self) -> bool:
        """Whether a batch runs still, though everyone has been answered."""
        return self.state != "ready" and bool(self._scheduler.unfinished)

    @property
    def queue_size(self) -> int:
        return len(self._scheduler)

    def start(self, on_failure: Callable[[], None]) -> None:
        """Load the models in the background, then serve; `on_failure` is called should that ever break."""
        self._task = asyncio.create_task(self._run())

        def ended(task: asyncio.Task[None]) -> None:
            if task.cancelled() or task.exception() is None:
                return
            log.critical("the engine failed", exc_info=task.exception())
            self.state = "failed"
            self._answer_all(InferenceFailed("the engine failed; the server is going down"))
            on_failure()

        self._task.add_done_callback(ended)

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
        self._device_thread.shutdown(wait=False, cancel_futures=True)

    def spec(self, model: str) -> ModelSpec:
        """
        Raises:
            UnknownModel: the message lists the names there are
        """
        try:
            return self.specs[model]
        except KeyError:
            raise UnknownModel(f"no model {model!r} is served; there are {', '.join(self.specs)}") from None

    async def segment(self, model: str, image: Image, deadline: float, nbytes: int) -> Segmentation:
        """Segment one image.

        Args:
            deadline: on the event loop's clock
            nbytes: what the caller holds in memory while it waits

        Raises:
            UnknownModel, NotReady, Overloaded, DeadlineExceeded, InferenceFailed, OutOfMemory
        """
        self.spec(model)
        try:
            result = await self._wait_for(model, image, deadline, nbytes)
        except BaseException as exc:
            self._metrics.image(model, _ending(exc))
            raise
        self._metrics.image(model, "ok")
        return result

    def check_ready(self) -> None:
        """
        Raises:
            NotReady: still loading, or going down
        """
        if self.state != "ready":
            raise NotReady(f"the server is {self.state}", retry_after=1.0)

    def check_room(self, model: str) -> None:
        """Refuse before any work is done on an image what would be refused after it.

        Raises:
            NotReady: still loading, or going down
            QueueFull: no place in the queue
        """
        self.check_ready()
        try:
            self._scheduler.check_room(0, asyncio.get_running_loop().time())
        except Overloaded as exc:
            self._metrics.image(model, "rejected")
            self._metrics.rejected(model, exc.code)
            raise

    def observe(self) -> None:
        """Bring the gauges that are read off the queue and the device up to date."""
        wait = self._scheduler.predicted_wait(asyncio.get_running_loop().time())
        for model in self.specs:
            self._metrics.queue(model, self._scheduler.depth(model), wait)
        self._metrics.memory(self.device, self._worker.memory())

    async def _wait_for(self, model: str, image: Image, deadline: float, nbytes: int) -> Segmentation:
        self.check_ready()
        loop = asyncio.get_running_loop()
        waiting = Waiting(image, loop.create_future())
        lane = Lane(model, (image.pixels.shape[0], image.pixels.shape[1]))
        job = Job(lane, image.pixels.nbytes + nbytes, deadline, waiting)
        try:
            self._scheduler.submit(job, loop.time())
        except Overloaded as exc:
            self._metrics.rejected(model, exc.code)
            raise
        timer = loop.call_at(deadline, self._expire, deadline)
        self._wakeup.set()
        try:
            return await waiting.future
        finally:
            timer.cancel()
            self._scheduler.cancel(job)

    def _expire(self, now: float) -> None:
        for job in self._scheduler.expire(now):
            job.payload.fail(DeadlineExceeded("the deadline passed before the mask was ready"))

    def _answer_all(self, error: ServiceError) -> None:
        for job in self._scheduler.unfinished:
            job.payload.fail(error)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        for spec in self.specs.values():
            await loop.run_in_executor(self._device_thread, self._worker.load, spec)
            self._metrics.model(spec.name, spec.dataset, len(spec.classes.names), self.device)
        self.state = "ready"
        log.info("ready: %s on %s", ", ".join(self.specs), self.device)
        while True:
            batch = self._scheduler.next_batch(loop.time())
            if batch is None:
                self._wakeup.clear()
                await self._wakeup.wait()
            else:
                await self._run_batch(batch)

    async def _run_batch(self, batch: Batch[Waiting]) -> None:
        loop = asyncio.get_running_loop()
        model = batch.lane.model
        images = [job.payload.image for job in batch.jobs]
        outcomes = await loop.run_in_executor(self._device_thread, self._worker.run, model, images)
        seconds = loop.time() - batch.started
        if len(outcomes) != len(images):
            raise RuntimeError(f"{len(outcomes)} outcomes for {len(images)} images")
        failed = False
        for job, outcome in zip(batch.jobs, outcomes, strict=True):
            if isinstance(outcome, ServiceError):
                failed = True
                job.payload.fail(outcome)
            else:
                timings = Timings({"queue": batch.started - job.submitted, **outcome.timings.stages})
                timings.modules = outcome.timings.modules
                job.payload.succeed(replace(outcome, timings=timings))
        self._scheduler.completed(batch, None if failed else seconds, loop.time())
        self._metrics.batch(model, self.device, batch.reason, len(images), seconds)
        for timings in {id(o.timings): o.timings for o in outcomes if isinstance(o, Segmentation)}.values():
            self._metrics.modules(model, self.device, timings.modules)


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
