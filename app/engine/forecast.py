"""How long what is here will keep the device busy, as far as costs are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from app.engine.cost import Costs
from app.engine.jobs import Batch, Lane
from app.engine.limits import Limits


class Forecast:
    """Costs are seconds of the whole device, of which the batches that run have equal parts."""

    def __init__(self, costs: Costs, limits: Limits) -> None:
        self._costs = costs
        self._limits = limits

    def work(
        self, counts: Mapping[Lane, int], running: Sequence[Batch[Any]], own: Lane | None, now: float
    ) -> tuple[float, float] | None:
        """Device seconds of so many images in each lane and of what runs; None as long as too little is known.

        Returns:
            all of them, and those of the last batch of the lane `own`
        """
        total, last, together = 0.0, 0.0, _together(running)
        for batch in running:
            seconds = self._costs.of_batch(batch.lane, len(batch.jobs))
            if seconds is None:
                return None
            total += max(0.0, seconds - (0.0 if batch.started is None else (now - batch.started) / together))
        for lane, count in counts.items():
            limit = self._limits.of(lane)
            full, rest = divmod(count - 1, limit)
            most, remaining = self._costs.of_batch(lane, limit), self._costs.of_batch(lane, rest + 1)
            if most is None or remaining is None:
                return None
            total += full * most + remaining
            if lane == own:
                last = remaining
        return total, last

    def seconds_each(self, lane: Lane) -> float:
        """From one image's end to the next, with full batches."""
        return (self._costs.of_batch(lane, limit := self._limits.of(lane)) or 0.0) / limit

    def seconds_to_next_place(self, running: Sequence[Batch[Any]], now: float) -> float:
        """Places come free when the next batch is taken, which is when a running one ends."""
        left, together = [], _together(running)
        for batch in running:
            seconds = self._costs.of_batch(batch.lane, len(batch.jobs))
            if seconds is not None and batch.started is not None:
                left.append(max(0.0, batch.started + seconds * together - now))
        return min(left, default=1.0)


def _together(running: Sequence[Batch[Any]]) -> int:
    return max(1, sum(batch.started is not None for batch in running))
