"""Lets batches onto the device in the order in which they were formed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """So many at once, by number. A semaphore would let whoever comes last go before those who wait for it."""

    def __init__(self, at_once: int) -> None:
        self._admitted = at_once  # numbers below it may go
        self._changed = threading.Condition()

    @contextmanager
    def turn(self, number: int) -> Iterator[None]:
        """Wait for one's turn. Numbers count from 0; each takes its turn once."""
        with self._changed:
            self._changed.wait_for(lambda: number < self._admitted)
        try:
            yield
        finally:
            with self._changed:
                self._admitted += 1
                self._changed.notify_all()
