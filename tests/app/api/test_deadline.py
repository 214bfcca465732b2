from __future__ import annotations

import asyncio
import time

import pytest

from app.api.deadline import until
from app.errors import DeadlineExceeded


async def test_what_is_done_in_time_is_left_alone() -> None:
    async with until(time.monotonic() + 60, "it was done"):
        await asyncio.sleep(0)


@pytest.mark.parametrize("seconds", [-1.0, 0.0, 0.01])
async def test_what_is_late_is_given_up(seconds: float) -> None:
    with pytest.raises(DeadlineExceeded, match="before it was done"):
        async with until(time.monotonic() + seconds, "it was done"):
            await asyncio.Event().wait()


async def test_other_errors_pass() -> None:
    with pytest.raises(KeyError):
        async with until(time.monotonic() + 60, "it was done"):
            raise KeyError


async def test_who_is_cancelled_is_cancelled() -> None:
    async def wait() -> None:
        async with until(time.monotonic() + 60, "it was done"):
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
