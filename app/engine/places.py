"""The room in front of the device, in passes and in bytes: how much is taken, and what a job lacks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from app.engine.jobs import Job


class Room(NamedTuple):
    passes: float = 0.0
    nbytes: float = 0.0


class Lack(NamedTuple):
    """Why there is no room.

    Attributes:
        of: what there would be too much of
        leave: passes that must go first
    """

    of: str
    actual: int
    limit: int
    leave: float


class Places:
    """
    Attributes:
        passes, nbytes: taken
    """

    def __init__(self, max_passes: int, max_bytes: int) -> None:
        self._max_passes = max_passes
        self._max_bytes = max_bytes
        self.passes = 0
        self.nbytes = 0

    def take(self, job: Job[Any]) -> None:
        self.passes += job.passes
        self.nbytes += job.nbytes

    def free(self, job: Job[Any]) -> None:
        self.passes -= job.passes
        self.nbytes -= job.nbytes

    def lacks(self, job: Job[Any], kept: Room, spare: float, few: int) -> Iterator[Lack]:
        """What a job lacks to be let in: places for its passes, or bytes.

        Args:
            kept: room that is kept for others
            spare: share of all room that is left free as well
            few: if no more passes than this are here, the job is let in however many it needs
        """
        if kept.passes or (self.passes > few and job.passes > job.granted):
            yield from _lack("images", self.passes + job.passes + kept.passes, self._max_passes, spare, 1.0)
        # An empty queue takes any one job: refusing it would not help it later either.
        if kept.passes or self.passes:
            held, passes = self.nbytes + kept.nbytes, self.passes + kept.passes
            each = (held or job.nbytes) / passes
            yield from _lack("bytes", held + job.nbytes, self._max_bytes, spare, each)


def _lack(of: str, wanted: float, limit: int, spare: float, each: float) -> Iterator[Lack]:
    actual = math.ceil(wanted + spare * limit)
    if actual > limit:
        yield Lack(of, actual, limit, (actual - limit) / each)
