"""What the engine does, as metrics and as lines of the log."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

from app.engine.jobs import Batch, Job
from app.engine.threads import Finished
from app.engine.waiting import Waiting
from app.errors import DeadlineExceeded, NotReady, Overloaded, ServiceError
from app.metrics import Ending, Metrics

log = logging.getLogger(__name__)


class Accounts:
    """Keeps the metrics of one device."""

    def __init__(self, metrics: Metrics, device: str) -> None:
        self._metrics = metrics
        self._device = device

    def answered(self, model: str, wait_ratio: float | None) -> None:
        self._metrics.image(model, "ok")
        self._metrics.wait_ratio(model, wait_ratio)

    def failed(self, model: str, error: BaseException) -> None:
        self._metrics.image(model, _ending(error))
        if isinstance(error, Overloaded):
            self._metrics.rejected(model, error.code)

    def retries(self, ratios: list[float]) -> None:
        for ratio in ratios:
            self._metrics.retry_after_ratio(ratio)

    def ran(self, batch: Batch[Waiting], done: Finished) -> None:
        """A batch has left the device, its callers still to be answered."""
        model, size = batch.lane.model, len(done.jobs)
        if not size:
            return
        lost = sum(job.payload.future.done() for job in done.jobs)
        self._metrics.batch(model, batch.reason, size)
        self._metrics.device(self._device, done.device_seconds)
        self._metrics.wasted(model, done.device_seconds * lost / size)
        if done.ran.fits is not None:
            self._metrics.out_of_memory(model, "split" if done.ran.fits else "failed")
        passes = {id(one.timings): one.timings for one in done.ran.outcomes if not isinstance(one, ServiceError)}
        for timings in passes.values():
            self._metrics.modules(model, self._device, timings.modules)


def trace(job: Job[Any], nbytes: int, came: float) -> None:
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
