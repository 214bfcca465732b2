"""The threads that drive a device."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import ParamSpec, TypeVar

from app.engine.device import Device, Outcome, Ran
from app.engine.jobs import Batch, Job
from app.engine.staging import Staged
from app.engine.waiting import Waiting
from app.errors import InferenceFailed

Arguments = ParamSpec("Arguments")
Value = TypeVar("Value")


@dataclass(frozen=True)
class Finished:
    """What became of a batch.

    Attributes:
        jobs: those whose callers were still there when it started
        seconds: that it ran
    """

    jobs: list[Job[Waiting]]
    ran: Ran
    seconds: float

    @property
    def device_seconds(self) -> float:
        """Of the whole device, of which it may have had a share."""
        return self.seconds * self.ran.share

    @property
    def outcomes(self) -> list[Outcome]:
        """One for each of the jobs, whatever the device gave."""
        given = self.ran.outcomes
        if len(given) == len(self.jobs):
            return given
        return [InferenceFailed(f"the model gave {len(given)} results for {len(self.jobs)} images")] * len(self.jobs)


def has_stalled(running: Sequence[Batch[Waiting]], now: float, timeout: float) -> bool:
    """Whether one of the batches has taken so many seconds that the device can't be alive."""
    for batch in running:
        # One that has not started is being staged, or waits for the one before, which may take as long.
        latest = batch.formed + timeout if batch.started is None else batch.started
        if now - latest > timeout:
            return True
    return False


class DeviceThreads:
    """One thread for each batch that may run, two for all else, and one that stages the next ones if that pays.

    A batch that is ready waits in the runners' queue: the thread that has ended a pass begins the next without waking
    another. In between several threads would have to, one after the other, each with its turn at Python's lock.
    """

    def __init__(self, device: Device, slots: int) -> None:
        self._device = device
        self._stager = ThreadPoolExecutor(1, "stage", initializer=device.enter) if device.stages_ahead else None
        self._runners = ThreadPoolExecutor(slots, "run", initializer=device.enter)
        self._others = ThreadPoolExecutor(2, "load", initializer=device.enter)  # no unload waits for a load

    def call(
        self, function: Callable[Arguments, Value], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Future[Value]:
        """Anything else that is to be done on such a thread."""
        return self._others.submit(function, *args, **kwargs)

    def run(self, batch: Batch[Waiting]) -> Future[Finished]:
        """Run a batch after those that came before it.

        Raises:
            RuntimeError: a thread could not enter, since when its pool takes nothing more
        """
        stage = partial(self._stage, batch)
        return self._runners.submit(
            self._run, batch, stage if self._stager is None else self._stager.submit(stage).result
        )

    def shutdown(self) -> None:
        """Take nothing more; what runs ends by itself."""
        if self._stager is not None:
            self._stager.shutdown(wait=False)  # a runner may wait for what it is about
        for pool in (self._runners, self._others):
            pool.shutdown(wait=False, cancel_futures=True)

    def _stage(self, batch: Batch[Waiting]) -> Staged:
        return self._device.stage([job.payload.images[job.part] for job in batch.jobs])

    def _run(self, batch: Batch[Waiting], stage: Callable[[], Staged]) -> Finished:
        staged = stage()
        batch.started = started = time.monotonic()
        present = [index for index, job in enumerate(batch.jobs) if not job.payload.future.done()]
        ran = self._device.run(batch.lane.loaded, staged.take(present)) if present else Ran([])
        return Finished([batch.jobs[index] for index in present], ran, time.monotonic() - started)
