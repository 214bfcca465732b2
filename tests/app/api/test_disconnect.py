"""Work for a client that may hang up."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fastapi import Request

from app.api.disconnect import ClientLeft, while_connected


def request_of(*messages: str, leave: asyncio.Event | None = None) -> Request:
    """A request that has these messages left, and then none, or a disconnect once `leave` is set."""
    waiting = list(messages)

    async def receive() -> dict[str, Any]:
        if not waiting:
            await (leave or asyncio.Event()).wait()
        return {"type": waiting.pop(0) if waiting else "http.disconnect"}

    return Request({"type": "http", "headers": []}, receive)


async def test_work_that_is_done() -> None:
    async def work() -> int:
        await asyncio.sleep(0.01)
        return 3

    assert await while_connected(request_of("http.request"), work()) == 3


async def test_work_that_is_done_when_the_client_leaves_counts() -> None:
    async def work() -> int:
        return 3

    assert await while_connected(request_of("http.disconnect"), work()) == 3


async def test_work_that_fails() -> None:
    async def work() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await while_connected(request_of(), work())


@pytest.mark.parametrize("how", ["the client leaves", "the caller is cancelled"])
async def test_work_is_cancelled(how: str) -> None:
    started, ended, leave = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    task = asyncio.create_task(while_connected(request_of("http.request", leave=leave), work()))
    await started.wait()
    if how == "the client leaves":
        leave.set()
        with pytest.raises(ClientLeft):
            await task
    else:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert ended.is_set()


async def test_a_client_that_leaves_as_the_work_ends_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    leave, ready = asyncio.Event(), asyncio.Event()

    async def work() -> int:
        await ready.wait()
        return 3

    for turns in range(4):
        leave.clear()
        ready.clear()
        task = asyncio.create_task(while_connected(request_of(leave=leave), work()))
        await asyncio.sleep(0.001)
        leave.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        ready.set()
        (ended,) = await asyncio.gather(task, return_exceptions=True)
        assert ended == 3 or isinstance(ended, ClientLeft)
        await asyncio.sleep(0.001)
    assert caplog.text == ""


async def test_timeouts_of_the_work_are_its_own() -> None:
    async def work() -> None:
        async with asyncio.timeout(0):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await while_connected(request_of(), work())


async def test_no_task_is_left_behind() -> None:
    async def work() -> None: ...

    before = asyncio.all_tasks()
    await while_connected(request_of(), work())
    await asyncio.sleep(0)  # the one that watched the client was told to end, and does so in its next turn
    assert asyncio.all_tasks() == before
