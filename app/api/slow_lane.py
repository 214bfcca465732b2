"""Work of seconds, one at a time, apart from the threads that answer in milliseconds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

from app.errors import QueueFull

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
        self._there = 0
        self._seconds = 1.0  # that the last one took

    async def run(self, function: Callable[[], Value]) -> Value:
        """Call a function when its turn comes; whoever is cancelled before gives its turn up.

        Raises:
            QueueFull: too many are there
        """
        if self._there >= self.most:
            raise QueueFull(
                f"{self._there} {self._goods} that take seconds are being made or wait; the limit is {self.most}",
                limit=self.most,
                actual=self._there,
                retry_after=self._seconds,
            )

        def timed() -> Value:
            started = time.monotonic()
            try:
                return function()
            finally:
                self._seconds = time.monotonic() - started

        self._there += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, timed)
        finally:
            self._there -= 1

    def close(self) -> None:
        """Nobody gets a turn any more; the one at work ends by itself."""
        self._thread.shutdown(wait=False, cancel_futures=True)
