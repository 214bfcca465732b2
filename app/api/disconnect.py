"""Gives up a request's work when its client has left."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

Value = TypeVar("Value")

CLIENT_CLOSED_REQUEST = 499  # nginx's number for it; seen in logs and metrics only


class ClientLeft(Exception):
    """No one is there to be answered."""


async def while_connected(request: Request, work: Coroutine[Any, Any, Value]) -> Value:
    """Await `work`, and cancel it if the client hangs up first. The request's body must have been read.

    Raises:
        ClientLeft: it hung up
    """
    # In this task, cut off as by a timeout: a task of its own for the work would be one more for every request.
    left = asyncio.ensure_future(_disconnected(request))
    patience = asyncio.timeout(None)

    def end(_: asyncio.Future[None]) -> None:
        with contextlib.suppress(RuntimeError):  # the work has ended, perhaps in this very turn
            patience.reschedule(0.0)

    try:
        async with patience:
            left.add_done_callback(end)
            return await work
    except TimeoutError:
        if patience.expired():
            raise ClientLeft from None
        raise
    finally:
        left.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
