"""Callers of an engine, each with an image of one value, which the fake device gives back as its mask."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from itertools import count

import torch

from app.engine.assembly import Assembly
from app.engine.device import Segmentation
from app.engine.engine import Engine
from app.engine.staging import Image
from app.metrics import Metrics
from models.windows import View, Window
from tests.fakes import until

LONG = 60.0
NBYTES = 100  # that each caller holds
names: Iterator[int] = count()

Caller = asyncio.Task[Segmentation]


def windows(values: Sequence[int], size: int = 16) -> list[Image]:
    """One image as windows of these values, which share its mask; that is of the last one's value."""
    view = View(
        (size, size * len(values)), False, tuple(Window(0, size * n, size, size * (n + 1)) for n in range(len(values)))
    )
    assembly = Assembly((view,), view.size)
    return [
        Image(torch.full((size, size, 3), value, dtype=torch.uint8), view.size, False, assembly, part)
        for part, value in enumerate(values)
    ]


def picture(value: int, original: tuple[int, int] = (32, 48)) -> Image:
    return Image(torch.full((32, 48, 3), value, dtype=torch.uint8), original, wants_traces=False)


async def segmented(
    engine: Engine,
    image: Image | Sequence[Image],
    allowed: float = LONG,
    nbytes: int = NBYTES,
    caller: str | None = None,
    decoded: asyncio.Event | None = None,
) -> Segmentation:
    """What a request does with the engine: a place, an image once it is decoded, a mask."""
    name = f"caller {next(names)}" if caller is None else caller
    passes = 1 if isinstance(image, Image) else len(image)
    with engine.admitted("tiny", name, nbytes, time.monotonic() + allowed, passes) as job:
        if decoded is not None:
            await decoded.wait()
        return await engine.segment(job, [image] if isinstance(image, Image) else image)


async def asked(
    engine: Engine, values: Sequence[int], allowed: float = LONG, decoded: asyncio.Event | None = None
) -> list[Caller]:
    """Callers whose jobs were let in, in this order."""
    callers = [asyncio.create_task(segmented(engine, picture(value), allowed, decoded=decoded)) for value in values]
    await asyncio.sleep(0)  # each goes as far as it can at once
    return callers


async def ask(engine: Engine, value: int, allowed: float = LONG) -> Caller:
    (caller,) = await asked(engine, [value], allowed)
    return caller


async def replies(callers: Sequence[Caller]) -> list[int | str]:
    """Each caller's id, or the name of its error."""
    async with asyncio.timeout(60):
        ended = await asyncio.gather(*callers, return_exceptions=True)
    return [int(reply.mask[0, 0]) if isinstance(reply, Segmentation) else type(reply).__name__ for reply in ended]


async def started(engine: Engine) -> list[str]:
    """Ready to serve; the list gets an entry with every call of `on_failure`."""
    failures: list[str] = []
    engine.start(lambda: failures.append("failed"))
    await until(lambda: engine.state != "loading")
    return failures


def sample(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"seglens_{name}", labels)


def images_total(metrics: Metrics, outcome: str) -> float | None:
    return sample(metrics, "images_total", model="tiny", outcome=outcome)
