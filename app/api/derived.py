"""What is made of a result to answer a question about it, kept for the next: matrices, totals, the maps of classes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TypeVar, cast

from app.results import Sized

Value = TypeVar("Value", bound=Sized)


@dataclass
class _Place:
    """Where one value will be: the first thread that asks makes it while the others wait."""

    value: Sized | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def nbytes(self) -> int:
        return 0 if self.value is None else self.value.nbytes


class Derived:
    """The most recently used values, bounded by bytes. Used from any thread.

    A value counts only once it is made, so the bound can be exceeded by one value for each thread that makes one.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._kept: OrderedDict[tuple[str, Hashable], _Place] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        with self._lock:
            return self._nbytes()

    def __len__(self) -> int:
        return len(self._kept)

    def has(self, result_id: str, name: Hashable) -> bool:
        """Whether it need not be made."""
        with self._lock:
            place = self._kept.get((result_id, name))
            return place is not None and place.value is not None

    def get(self, result_id: str, name: Hashable, make: Callable[[], Value]) -> Value:
        """What a result has under a name, made now if it is not there. One name always has the same type."""
        key = result_id, name
        with self._lock:
            place = self._kept.setdefault(key, _Place())
            self._kept.move_to_end(key)
        # One at a time makes it: two would take twice the memory. Other values do not wait for it.
        with place.lock:
            try:
                value = place.value = make() if place.value is None else place.value
            except BaseException:
                self._drop(key, place)
                raise
        with self._lock:
            while self._nbytes() > self.max_bytes and len(self._kept) > 1:
                self._kept.popitem(last=False)
        return cast(Value, value)

    def forget(self, result_id: str) -> None:
        """Let go of all of a result's."""
        with self._lock:
            for key in [key for key in self._kept if key[0] == result_id]:
                del self._kept[key]

    def _drop(self, key: tuple[str, Hashable], place: _Place) -> None:
        """Names of what can't be made would pile up."""
        with self._lock:
            if self._kept.get(key) is place:
                del self._kept[key]

    def _nbytes(self) -> int:
        return sum(place.nbytes for place in self._kept.values())
