"""Work of seconds, one at a time, apart from the threads that answer in milliseconds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, TypeVar

from app.errors import NotReady, QueueFull

Value = TypeVar("Value")


class SlowLane:
    """Who comes waits for those before, and is refused when they are too many. Used from the event loop alone."""

    def __init__(self, thread: Executor, goods: str, most: int) -> None:
        """
        Args:
            thread: a single one: however many ask, one core is all that they take
            goods: what the lane brings, in plural
            most: that may be in the lane, the one at work among them
        """
        self.most = most
        self._thread = thread
        self._goods = goods
        self._calls: set[asyncio.Future[Any]] = set()
        self._is_stopping = False
        self._seconds = 1.0  # that the last one took

    async def run(self, function: Callable[[], Value]) -> Value:
        """Call a function when its turn comes; whoever is cancelled before gives its turn up.

        Raises:
            QueueFull: too many are there
            NotReady: the server is going down
        """
        if self._is_stopping:
            raise NotReady("the server is shutting down")
        if (there := len(self._calls)) >= self.most:
            raise QueueFull(
                f"{there} {self._goods} that take seconds are being made or wait; the limit is {self.most}",
                limit=self.most,
                actual=there,
                retry_after=self._seconds,
            )

        def timed() -> Value:
            started = time.monotonic()
            try:
                return function()
            finally:
                self._seconds = time.monotonic() - started

        call = asyncio.get_running_loop().run_in_executor(self._thread, timed)
        self._calls.add(call)
        try:
            return await call
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._is_stopping and task is not None and not task.cancelling():
                raise NotReady("the server is shutting down") from None
            raise
        finally:
            self._calls.remove(call)

    async def stop(self, drain_timeout: float) -> None:
        """Refuse whoever comes, let those who are there finish within so many seconds, and refuse the rest."""
        self._is_stopping = True
        if self._calls:
            _, late = await asyncio.wait(self._calls, timeout=drain_timeout)
            for call in late:
                call.cancel()

    def close(self) -> None:
        """Nobody gets a turn any more; the one at work ends by itself."""
        self._thread.shutdown(wait=False, cancel_futures=True)
