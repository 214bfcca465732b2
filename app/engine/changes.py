"""Models being loaded and unloaded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from app.errors import InferenceFailed, NotReady, ServiceError


class Changes:
    """Each goes on should its caller leave, and ends with the engine."""

    def __init__(self, on_failure: Callable[[BaseException], None]) -> None:
        """
        Args:
            on_failure: told of what is more than a load that failed
        """
        self._on_failure = on_failure
        self._tasks: set[asyncio.Task[None]] = set()

    async def finish(self, change: Coroutine[Any, Any, None]) -> None:
        """Begin a change and wait until it is done.

        Raises:
            ServiceError: the change's own; InferenceFailed if it is more than that; NotReady if it was ended
        """
        task = asyncio.create_task(change)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        await asyncio.wait([task])
        if task.cancelled():
            raise NotReady("the server is shutting down")
        if (error := task.exception()) is not None:
            raise error if isinstance(error, ServiceError) else InferenceFailed("the engine failed") from error

    def end(self) -> None:
        """Wait for none of them any more."""
        for task in self._tasks:
            task.cancel()

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, ServiceError):
            self._on_failure(error)
