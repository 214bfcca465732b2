"""Gives up a request's work when its client has left."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

Value = TypeVar("Value")


class ClientLeft(Exception):
    """No one is there to be answered."""


async def while_connected(request: Request, work: Coroutine[Any, Any, Value]) -> Value:
    """Await `work`, and cancel it if the client hangs up first. The request's body must have been read.

    Raises:
        ClientLeft: it hung up
    """
    task = asyncio.ensure_future(work)
    left = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientLeft
        return task.result()
    finally:
        for pending in (task, left):
            pending.cancel()
        await asyncio.gather(task, left, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
