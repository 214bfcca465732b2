"""A stand-in for the device, at the one seam between the engine and the hardware."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from app.engine.device import Outcome, Partial, Ran, Segmentation
from app.engine.staging import Image, Staged
from app.errors import InferenceFailed
from app.timings import Timings
from models import ModelSpec
from models.precision import Precision

BAD = 13  # an image of this value fails
PATIENCE = 100.0  # seconds until a gate that a test has forgotten opens by itself


class FakeDevice:
    """Answers with the image's first value, as id of every pixel; holds loads, warm-ups, passes while its gate is shut.

    Attributes:
        resident, warmed: keys of the models on it, and of those warmed up
        ran: each value with the key of what it was run by
        staged, batches: values of the images of each batch, as it was staged and as it was run
        entered: set whenever one of them meets the gate
        error: raised in place of results
        enters: threads that may enter before one fails
        room: images that fit in its memory at once
        missing: how many results too few it gives
        seconds_each: of a pass for each pixel of its input, by the clock
    """

    def __init__(self, slots: int = 1, best_batch_size: int = 4, *, stages_ahead: bool = True) -> None:
        self.device = torch.device("cpu")
        self.slots = slots
        self.best_batch_size = best_batch_size
        self.stages_ahead = stages_ahead
        self.resident: set[str] = set()
        self.warmed: list[str] = []
        self.ran: set[tuple[int, str]] = set()
        self.staged: list[list[int]] = []
        self.batches: list[list[int]] = []
        self.entered = threading.Event()
        self.gate = threading.Event()
        self.gate.set()
        self.error: BaseException | None = None
        self.enters = 100
        self.room = 100
        self.missing = 0
        self.seconds_each = 0.0

    def enter(self) -> None:
        self.enters -= 1
        if self.enters < 0:
            raise RuntimeError("this thread cannot reach the device")

    def load(self, spec: ModelSpec, key: str) -> Precision:
        self._meet_the_gate()
        self.resident.add(key)
        return "float32"

    def warm_up(self, key: str) -> None:
        self._meet_the_gate()
        if key not in self.resident:
            raise KeyError(key)
        self.warmed.append(key)

    def unload(self, key: str) -> None:
        self.resident.remove(key)

    def stage(self, images: Sequence[Image]) -> Staged:
        self.staged.append(_values(images))
        return Staged(tuple(images))

    def run(self, key: str, staged: Staged) -> Ran:
        self.batches.append(_values(staged.images))
        self.ran |= {(value, key) for value in _values(staged.images)}
        self._meet_the_gate()
        time.sleep(self.seconds_each * sum(image.pixels[..., 0].numel() for image in staged.images))
        timings = Timings({"forward": 0.01}, {"stem": 0.01})
        outcomes = [_outcome(image, timings) for image in staged.images]
        fits = self.room if len(outcomes) > self.room else None
        return Ran(outcomes[self.missing :], fits, 1 / self.slots)

    def memory(self) -> dict[str, int]:
        return {"allocated": 5}

    def shut(self) -> None:
        """Hold the next batch; one that is held already waits for the gate it met."""
        self.entered.clear()
        self.gate = threading.Event()

    async def goes_on_to_the_next(self) -> None:
        """Let the held batch end, and hold the one after it."""
        gate = self.gate
        self.shut()
        gate.set()
        await self.is_entered()

    async def is_entered(self) -> None:
        assert await asyncio.to_thread(self.entered.wait, 60)

    def _meet_the_gate(self) -> None:
        gate = self.gate
        self.entered.set()
        gate.wait(PATIENCE)
        if self.error is not None:
            raise self.error


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Waits for what no event tells of."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def _values(images: Sequence[Image]) -> list[int]:
    return [int(image.pixels[0, 0, 0]) for image in images]


def _outcome(image: Image, timings: Timings) -> Outcome:
    (value,) = _values([image])
    if value == BAD:
        return InferenceFailed("the model failed on this image")
    if image.assembly is not None and not image.assembly.add(image.part, torch.zeros(1, 1, 1), ()):
        return Partial(timings)
    mask = np.full(image.original, value, dtype=np.uint8)
    return Segmentation(mask, mask, (), timings)
