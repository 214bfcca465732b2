"""Callers that were let in, each waiting for its answer."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field, replace

from app.engine.device import Outcome, Segmentation
from app.engine.loaded import Loaded
from app.engine.staging import Image
from app.errors import ServiceError
from app.timings import Timings, total


@dataclass(eq=False)
class Waiting:
    """A caller; its image comes once it has been decoded.

    Attributes:
        loaded: what served the model when it came, and segments its image
        nbytes: that it holds beside its image
        images: its image, one for each of the passes that it needs
    """

    future: asyncio.Future[Segmentation]
    loaded: Loaded
    nbytes: int
    images: tuple[Image, ...] = ()
    _passes: dict[int, Timings] = field(default_factory=dict)
    _queued: float = math.inf

    # A caller that hung up has cancelled its future, and one that timed out has been answered; to set
    # a future twice raises. Replies look first, so that a lost caller can't break its batch mates.
    def answer(self, outcome: Outcome, queued: float) -> None:
        """
        Args:
            queued: seconds that it waited for the device
        """
        if isinstance(outcome, ServiceError):
            self.fail(outcome)
        elif not self.future.done():
            # Passes that shared a batch share its record.
            self._passes.setdefault(id(outcome.timings), outcome.timings)
            self._queued = min(queued, self._queued)
            if isinstance(outcome, Segmentation):
                timings = total(self._passes.values())
                timings.stages = {"queue": self._queued, **timings.stages}
                self.future.set_result(replace(outcome, timings=timings))

    def fail(self, error: ServiceError) -> None:
        if not self.future.done():
            self.future.set_exception(error)

    def leave(self) -> None:
        """No one waits any more, whatever becomes of the image."""
        self.future.cancel()  # nor does asyncio then report an error that nobody has looked at
