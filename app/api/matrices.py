"""Whole attention matrices, kept for the next question about the same result."""

from __future__ import annotations

import threading
from collections import OrderedDict

from models import Trace
from models.attention_matrices import Matrix, matrix_of

Key = tuple[str, str, int]


class Matrices:
    """The most recently used, bounded by bytes. Used from any thread."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._kept: OrderedDict[Key, Matrix] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        return sum(matrix.nbytes for matrix in self._kept.values())

    def get(self, result_id: str, trace: Trace) -> Matrix:
        """The matrix of one of a result's traces, made now if it is not there."""
        key = result_id, trace.block, trace.step
        # Made under the lock: two at once would take twice the memory, and often be the same.
        with self._lock:
            matrix = self._kept.pop(key, None) or matrix_of(trace)
            self._kept[key] = matrix
            while self.nbytes > self.max_bytes and len(self._kept) > 1:
                self._kept.popitem(last=False)
        return matrix
