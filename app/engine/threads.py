"""The threads that drive a device."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from typing import ParamSpec, TypeVar

from app.engine.device import Device, Outcome, Ran
from app.engine.jobs import Batch, Job
from app.engine.turns import Turns
from app.engine.waiting import Waiting
from app.errors import InferenceFailed

Arguments = ParamSpec("Arguments")
Value = TypeVar("Value")


@dataclass(frozen=True)
class Finished:
    """What became of a batch.

    Attributes:
        jobs: those whose callers were still there when it started
        seconds: on the device
    """

    jobs: list[Job[Waiting]]
    ran: Ran
    seconds: float

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
    """One thread for each batch that may run, one that stages the next and waits for its turn, one to load models."""

    def __init__(self, device: Device, slots: int) -> None:
        self._device = device
        self._pool = ThreadPoolExecutor(slots + 2, "device", initializer=device.enter)
        self._turns = Turns(slots)
        self._numbers = count()

    def call(
        self, function: Callable[Arguments, Value], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Future[Value]:
        """Anything else that is to be done on such a thread."""
        return self._pool.submit(function, *args, **kwargs)

    def run(self, batch: Batch[Waiting]) -> Future[Finished]:
        """Run a batch after those that came before it.

        Raises:
            RuntimeError: a thread could not enter, since when the pool takes nothing more
        """
        return self._pool.submit(self._run, batch, next(self._numbers))

    def shutdown(self) -> None:
        """Take nothing more; what runs ends by itself."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _run(self, batch: Batch[Waiting], number: int) -> Finished:
        staged = self._device.stage([job.payload.images[job.part] for job in batch.jobs])
        with self._turns.turn(number):
            batch.started = started = time.monotonic()
            present = [index for index, job in enumerate(batch.jobs) if not job.payload.future.done()]
            ran = self._device.run(batch.lane.loaded, staged.take(present)) if present else Ran([])
            return Finished([batch.jobs[index] for index in present], ran, time.monotonic() - started)
