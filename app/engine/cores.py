"""How many of a CPU's cores a pass computes on: all if it runs alone, its share if others run beside it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Value = TypeVar("Value")

LULL = 0.02  # seconds since two passes last ran at once, after which a single one counts as alone


class Cores:
    """Shares cores among the passes that run at once.

    Passes side by side get one share of the cores each and never wait for one another; on all cores each, they would
    wait at every operator. They run on the calling threads, as many as there may be passes. Each such thread has a heap
    of its own, and what the pass before left there is still in the cache.

    A pass that is alone gets all cores, and always runs on the same thread, kept for this. Every thread that computes
    on several cores has OpenMP helpers of its own; as soon as all these threads and helpers are more than the cores,
    OpenMP sends them to sleep between any two operators.

    Under load two passes may end in the same moment, and the next is not alone for long. So a pass counts as side by
    side until `LULL` has gone by since two last ran at once.
    """

    def __init__(self, threads: int, slots: int, enter: Callable[[], None]) -> None:
        """
        Args:
            threads: of a pass that is alone; 0 leaves the choice to torch
            slots: passes that may run at once
            enter: called on the thread for passes that are alone, before the first
        """
        self.all = threads or torch.get_num_threads()
        self.share = max(1, self.all // slots)
        self._part = 1 / slots
        # With fewer cores than slots a pass that is alone has the whole CPU, though no more threads than beside others.
        self._whole = 1.0 if self.all > self.share or available() < slots else self._part
        self._alone = ThreadPoolExecutor(1, "alone", initializer=enter)
        self._running = 0
        self._several = -LULL  # when there were last several, by the monotonic clock
        self._lock = threading.Lock()

    def run(self, function: Callable[[], Value], *, beside: bool = False) -> tuple[Value, float]:
        """Call a function, on the thread kept for lone passes if no other runs; what it raises is raised.

        Args:
            beside: run it as if others ran beside it

        Returns:
            what the function returns, and the share of the CPU that it had
        """
        with self._lock:
            self._running += 1
            alone = not beside and self._running == 1 and time.monotonic() - self._several >= LULL
        try:
            if alone:
                value = self._alone.submit(_on, self.all, function).result()
                return value, self._whole
            return _on(self.share, function), self._part
        finally:
            with self._lock:
                self._running -= 1
                if self._running:
                    self._several = time.monotonic()


def available() -> int:
    """Cores that this process may compute on."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def compute_on(cores: int) -> None:
    """Let torch compute on so many cores, on the calling thread."""
    # When a thread first computes, torch sets it to what was last asked for on any thread: let that be over.
    torch.get_num_threads()
    torch.set_num_threads(cores)


def _on(cores: int, function: Callable[[], Value]) -> Value:
    # For every pass: matrix products go by what was last asked for on any thread.
    compute_on(cores)
    return function()
