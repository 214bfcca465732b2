"""Whole attention matrices, kept for the next question about the same result."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field

from models import Trace
from models.attention_matrices import Matrix, matrix_of

Key = tuple[str, str, int]


@dataclass
class _Place:
    """Of one matrix, which whoever comes first makes while the others wait."""

    matrix: Matrix | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def nbytes(self) -> int:
        return 0 if self.matrix is None else self.matrix.nbytes


class Matrices:
    """The most recently used, bounded by bytes. Used from any thread.

    Those being made count only once they are there: of different ones, as many as there are threads that ask.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._kept: OrderedDict[Key, _Place] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        with self._lock:
            return self._nbytes()

    def get(self, result_id: str, trace: Trace) -> Matrix:
        """The matrix of one of a result's traces, made now if it is not there."""
        key = result_id, trace.block, trace.step
        with self._lock:
            place = self._kept.setdefault(key, _Place())
            self._kept.move_to_end(key)
        # One at a time makes it: two would take twice the memory. Other matrices do not wait for it.
        with place.lock:
            matrix = place.matrix = place.matrix or matrix_of(trace)
        with self._lock:
            while self._nbytes() > self.max_bytes and len(self._kept) > 1:
                self._kept.popitem(last=False)
        return matrix

    def forget(self, result_id: str) -> None:
        """Let go of all of a result's."""
        with self._lock:
            for key in [key for key in self._kept if key[0] == result_id]:
                del self._kept[key]

    def _nbytes(self) -> int:
        return sum(place.nbytes for place in self._kept.values())
