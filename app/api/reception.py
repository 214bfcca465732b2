"""Bodies on their way in: they hold memory before their images have a place in the queue."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from fastapi import Request
from starlette.types import Message

from app.errors import NotReady, QueueFull
from app.metrics import Metrics

RETRY_AFTER = 1.0  # seconds: how fast the others' lines are, nobody knows


class Reception:
    """Only the event loop touches it.

    Attributes:
        nbytes: of all bodies that are being received, as far as they have come
    """

    def __init__(self, max_bytes: int, metrics: Metrics) -> None:
        self.nbytes = 0
        self._max_bytes = max_bytes
        self._metrics = metrics
        self._tasks: set[asyncio.Task[object]] = set()  # that wait for bodies
        self._is_stopping = False

    @contextmanager
    def receiving(self, request: Request, announced: int, models: Sequence[str]) -> Iterator[Request]:
        """The request, its body counted until it is there or given up.

        What is announced finds no room beside what has come, but takes none before it comes itself: a few who announce
        much and send it slowly would keep out everyone else.

        Args:
            models: that it asks for

        Raises:
            QueueFull: too many bytes have come at once; at the door, or as the body comes
            NotReady: the server is going down
        """
        held, task = 0, asyncio.current_task()
        assert task is not None

        def check(nbytes: int) -> None:
            others = self.nbytes - held
            # Alone it may have any size: no later time would be better.
            if others and others + nbytes > self._max_bytes:
                raise self._refusal(others + nbytes, models)

        async def receive() -> Message:
            nonlocal held
            message = await request.receive()
            arrived = len(message.get("body", b""))
            check(held + arrived)
            held += arrived
            self.nbytes += arrived
            return message

        check(announced)
        self._tasks.add(task)
        try:
            yield Request(request.scope, receive)
        except asyncio.CancelledError:
            if not self._is_stopping or task.uncancel():
                raise
            self._refused(models)
            raise NotReady("the server is shutting down") from None
        finally:
            self._tasks.discard(task)
            self.nbytes -= held

    def stop(self) -> None:
        """Refuse those whose bodies have not come: once they had, they would be refused all the same."""
        self._is_stopping = True
        for task in self._tasks:
            task.cancel()

    def _refusal(self, actual: int, models: Sequence[str]) -> QueueFull:
        error = QueueFull(
            f"{actual} bytes would be being received; the limit is {self._max_bytes}",
            limit=self._max_bytes,
            actual=actual,
            retry_after=RETRY_AFTER,
        )
        self._refused(models)
        for model in models:
            self._metrics.rejected(model, error.code)
        return error

    def _refused(self, models: Sequence[str]) -> None:
        for model in models:
            self._metrics.image(model, "rejected")
