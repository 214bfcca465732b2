"""Keeps results until they are fetched: bounded by bytes and by age, oldest out first."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from app.errors import ResultExpired


class Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


Item = TypeVar("Item", bound=Sized)


def new_id(group: str = "") -> str:
    """An id that cannot be guessed: whoever has it may see the picture behind it.

    Args:
        group: what it has before a dot, by which a proxy knows where all of a group are
    """
    own = secrets.token_urlsafe(16)  # without a dot
    return f"{group}.{own}" if group else own


class ResultStore(Generic[Item]):
    """Used from the event loop alone, so it needs no lock."""

    def __init__(
        self,
        max_bytes: int,
        ttl: float,
        clock: Callable[[], float] = time.monotonic,
        on_removed: Callable[[str], object] = lambda result_id: None,
    ) -> None:
        """
        Args:
            on_removed: called with the id of each item that goes, for whatever reason
        """
        self.max_bytes = max_bytes
        self.ttl = ttl
        self._clock = clock
        self._on_removed = on_removed
        self._items: OrderedDict[str, tuple[float, Item]] = OrderedDict()
        self._bytes = 0

    @property
    def nbytes(self) -> int:
        self.drop_old()
        return self._bytes

    def __len__(self) -> int:
        self.drop_old()
        return len(self._items)

    def __contains__(self, result_id: str) -> bool:
        self.drop_old()
        return result_id in self._items

    def put(self, result_id: str, item: Item) -> bool:
        """Keep an item; false if it is larger than the whole store, which then stays as it is."""
        self.drop_old()
        if item.nbytes > self.max_bytes:
            return False
        if result_id in self._items:
            self._remove(result_id)
        self._items[result_id] = self._clock(), item
        self._bytes += item.nbytes
        while self._bytes > self.max_bytes:
            self._remove(next(iter(self._items)))
        return True

    def get(self, result_id: str) -> Item:
        """
        Raises:
            ResultExpired: no such id, whether it never was, was deleted, or is too old
        """
        self.drop_old()
        try:
            return self._items[result_id][1]
        except KeyError:
            raise ResultExpired(
                f"no result {result_id!r}: results are kept for {self.ttl:g} s, or until newer ones need their place"
            ) from None

    def delete(self, result_id: str) -> None:
        """
        Raises:
            ResultExpired: no such id
        """
        self.get(result_id)
        self._remove(result_id)

    def _remove(self, result_id: str) -> None:
        _, item = self._items.pop(result_id)
        self._bytes -= item.nbytes
        self._on_removed(result_id)

    def drop_old(self) -> None:
        """Let go of what is too old; whoever holds a store calls this now and then."""
        oldest = self._clock() - self.ttl
        while self._items and next(iter(self._items.values()))[0] <= oldest:
            self._remove(next(iter(self._items)))
