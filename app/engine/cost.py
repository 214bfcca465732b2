"""What batches cost, learnt from those that have run."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from app.engine.jobs import Lane


@dataclass
class Cost:
    """Seconds of the whole device as a + b * x, by least squares over recent batches; x is their images or pixels."""

    MEMORY = 0.95  # weight of the past at each new batch: about the last twenty count
    MINIMUM = 5  # batches before a prediction is made

    _count: int = 0
    _sums: list[float] = field(default_factory=lambda: [0.0] * 5)  # of 1, x, x^2, t, x*t
    _constant: float = 0.0
    _slope: float = 0.0

    def learn(self, x: float, seconds: float) -> None:
        self._count += 1
        new = (1.0, x, x * x, seconds, x * seconds)
        self._sums = [self.MEMORY * old + value for old, value in zip(self._sums, new, strict=True)]
        ones, xs, xx, t, xt = self._sums
        spread = ones * xx - xs * xs
        slope = (ones * xt - xs * t) / spread if spread > 1e-6 * ones * xx else t / xs
        # Neither part of a cost is negative; noise may say otherwise.
        self._slope = min(max(slope, 0.0), t / xs)
        self._constant = max(0.0, t - self._slope * xs) / ones

    def predict(self, x: float) -> float | None:
        """Seconds of a batch of this size, or None as long as too little is known."""
        return None if self._count < self.MINIMUM else self._constant + self._slope * x


class Costs:
    """The cost of each lane by its images and, for sizes seldom seen, of each model by its pixels."""

    LANES = 256  # that are remembered: clients choose the sizes, and there are many

    def __init__(self) -> None:
        self._lanes: OrderedDict[Lane, Cost] = OrderedDict()
        self._models: dict[str, Cost] = {}
        self._image_pixels: dict[str, float] = {}  # of a model's recent images, the mean
        self._typical: dict[str, Lane] = {}  # of a model

    def learn(self, lane: Lane, size: int, seconds: float) -> None:
        self._lanes.setdefault(lane, Cost()).learn(size, seconds)
        self._lanes.move_to_end(lane)
        if len(self._lanes) > self.LANES:
            self._lanes.popitem(last=False)
        self._models.setdefault(lane.model, Cost()).learn(size * lane.pixels, seconds)
        mean = self._image_pixels.get(lane.model, lane.pixels)
        mean = self._image_pixels[lane.model] = Cost.MEMORY * mean + (1 - Cost.MEMORY) * lane.pixels
        alike = abs(lane.pixels - mean) < 0.01 * mean
        self._typical[lane.model] = lane if alike else Lane(lane.model, (1, max(1, round(mean))))

    def typical(self, model: str) -> Lane:
        """A lane for images whose size is not known yet: the last one, if all have that size, else one of mean size."""
        return self._typical.get(model) or Lane(model, (1, 1))

    def of_batch(self, lane: Lane, size: int) -> float | None:
        """Seconds of the whole device for so many images at once, or None as long as too little is known."""
        cost = self._lanes.get(lane)
        if cost is not None and (own := cost.predict(size)) is not None:
            return own
        cost = self._models.get(lane.model)
        return None if cost is None else cost.predict(size * lane.pixels)


class Surprise:
    """How far predicted times were out, as TCP keeps it of round trips (RFC 6298)."""

    MEMORY = 64  # errors that count

    def __init__(self, mean: float = 0.0, deviation: float = 0.0) -> None:
        self.mean = mean
        self.deviation = deviation
        self._count = 0

    def learn(self, error: float) -> None:
        self._count = min(self._count + 1, self.MEMORY)
        self.mean += (error - self.mean) / self._count
        self.deviation += (abs(error - self.mean) - self.deviation) / self._count

    @property
    def margin(self) -> float:
        """Seconds to add to a prediction for it to hold nearly always."""
        return max(0.0, self.mean + 3 * self.deviation)
