"""How many images a batch of each lane may have."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from app.engine.jobs import Lane


@dataclass
class Limit:
    """Of a lane that has run out of memory."""

    images: int
    clean: int = 0  # batches of that size since


class Limits:
    """Set by count and by pixels; lowered for a lane that ran out of memory, from which it recovers slowly."""

    CLEAN = 50  # full batches without trouble before one more image is tried
    LANES = 256  # in trouble that are remembered

    def __init__(self, max_images: int, max_pixels: int) -> None:
        self._max_images = max_images
        self._max_pixels = max_pixels
        self._lowered: OrderedDict[Lane, Limit] = OrderedDict()

    def of(self, lane: Lane) -> int:
        """Most images in a batch of a lane: one is always let through, however large."""
        limit = min(self._max_images, self._max_pixels // lane.pixels)
        if lane in self._lowered:
            limit = min(limit, self._lowered[lane].images)
        return max(1, limit)

    def lower(self, lane: Lane, fits: int) -> None:
        """A batch ran out of memory; so many images fitted."""
        self._lowered[lane] = Limit(max(1, fits))
        self._lowered.move_to_end(lane)
        if len(self._lowered) > self.LANES:
            self._lowered.popitem(last=False)

    def passed(self, lane: Lane, size: int) -> None:
        """A batch of so many images ran without trouble."""
        limit = self._lowered.get(lane)
        if limit is None or size < limit.images:
            return
        limit.clean += 1
        if limit.clean == self.CLEAN:
            limit.images, limit.clean = limit.images + 1, 0
        if limit.images >= self._max_images:
            del self._lowered[lane]
