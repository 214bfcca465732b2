"""A caller is told one thing, once, and how long it waited for the device."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from app.engine.device import Partial, Segmentation
from app.engine.loaded import Loaded
from app.engine.waiting import Waiting
from app.errors import InferenceFailed, NotReady
from app.timings import Timings
from models import ModelSpec


@pytest.fixture
async def waiting(spec: ModelSpec) -> Waiting:
    return Waiting(asyncio.get_running_loop().create_future(), Loaded(spec, "tiny#1", "float32"), 100)


def mask(forward: float) -> Segmentation:
    return Segmentation(np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.uint8), (), Timings({"forward": forward}))


async def test_it_has_waited_until_the_first_of_its_passes_began(waiting: Waiting) -> None:
    for queued in (3.0, 2.0):
        waiting.answer(Partial(Timings({"forward": 1.0})), queued)
        assert not waiting.future.done()
    waiting.answer(mask(1.0), 4.0)
    assert (await waiting.future).timings.stages == {"queue": 2.0, "forward": 3.0}


async def test_what_comes_first_holds(waiting: Waiting) -> None:
    waiting.fail(NotReady("the server is shutting down"))
    waiting.answer(mask(1.0), 1.0)
    waiting.answer(InferenceFailed("the model failed on this image"), 1.0)
    with pytest.raises(NotReady):
        await waiting.future


@pytest.mark.parametrize("fate", ["waits", "has left", "has its mask", "has failed"])
async def test_whoever_leaves_takes_back_only_what_is_open(waiting: Waiting, fate: str) -> None:
    match fate:
        case "has left":
            waiting.future.cancel()
        case "has its mask":
            waiting.answer(mask(1.0), 1.0)
        case "has failed":
            waiting.fail(NotReady("the server is shutting down"))
    waiting.leave()
    assert waiting.future.cancelled() == (fate in ("waits", "has left"))
