"""Memory for what outlives a forward pass, and how its lack is told."""

from __future__ import annotations

import ctypes
import gc
import mmap
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.engine.device import Segmentation

Scalar = TypeVar("Scalar", bound=np.generic)

# Parameters of mallopt(3), from malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
LARGER_THAN_ANY_BLOCK, MOST_OF_OLD = 1 << 30, 1 << 25  # bytes; the second is all that glibc before 2.35 takes
ALIGNMENT = 64  # bytes, of a cache line: where kept arrays begin
MOST_TENSORS = 3  # of a trace
# Of `gc`: when there are 2000 new objects it looks at these, for some milliseconds; every 200th time at all there are.
YOUNG_AND_OLD = 2000, 1, 100
LARGER_THAN_A_HEAP = 1 << 28  # a thread's heap has up to 64 MiB; when it is full, the thread gets another
# Words that tell a full memory in errors without a type of their own: torch's on a CPU, all of TorchScript's, and on
# CUDA those from outside torch's allocator (a library's handle, code that is loaded, a graph that is made, registers
# that spill).
MEMORY_IS_FULL = "DefaultCPUAllocator", "std::bad_alloc", "out of memory", "STATUS_ALLOC_FAILED"


def ran_out(error: Exception) -> bool:
    """Whether an error is that memory, a device's or the host's, did not suffice."""
    is_told = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return is_told or any(name in str(error) for name in MEMORY_IS_FULL)


def outlive(result: Segmentation) -> Segmentation:
    """A copy to keep; made on any thread but the device's.

    On the heap a result would settle in the gap that one of the pass's large temporaries has left, which
    is then too small for the next pass: the process grew by 8 MB for each result of half a megabyte.
    """
    arrays = 2 + MOST_TENSORS * len(result.traces)
    pages = _Pages(result.nbytes + arrays * ALIGNMENT)
    return replace(
        result,
        mask=pages.copy(result.mask),
        confidence=pages.copy(result.confidence),
        traces=tuple(trace.mapped(pages.copy_tensor) for trace in result.traces),
    )


def reuse_heap() -> None:
    """Let each thread's heap keep what is freed for what comes next; without glibc, do nothing.

    Otherwise the largest blocks of a pass would be mapped anew every time, and their pages zeroed by the system at the
    first touch, which takes a third of a pass. Blocks beyond 64 MiB still are, outside the main thread. One heap for
    all would hold those too, but passes side by side would wait for its lock, and for each other's caches.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        if not mallopt(M_MMAP_THRESHOLD, LARGER_THAN_ANY_BLOCK):
            mallopt(M_MMAP_THRESHOLD, MOST_OF_OLD)
        mallopt(M_TRIM_THRESHOLD, LARGER_THAN_ANY_BLOCK)
        mallopt(M_TOP_PAD, LARGER_THAN_A_HEAP)  # so that a heap that is empty stays mapped


def give_back() -> None:
    """Return free pages to the system, but for those at the end of a thread's heap; without glibc, do nothing."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def settle() -> None:
    """Freeze all objects there are, so that no collection of garbage looks at them again, and make collections rare.

    Rare ones are enough: nearly all that requests leave is freed by reference counts (tests see to pictures). With
    Python's own thresholds the objects of waiting requests led to a full collection once a second, which took a tenth
    of a second with five thousand results.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*YOUNG_AND_OLD)
    give_back()


def clear() -> None:
    """Free something large that `settle` had frozen: a network with its hooks is a cycle, which only `gc` frees."""
    gc.unfreeze()
    settle()


class _Pages:
    """Pages outside the heap, which go back to the system as soon as nothing in them is used any more.

    One mapping for a whole result, and a private one, which the system joins with its neighbours: a process may have
    some 65,000, and there are that many small results in a full store.
    """

    def __init__(self, nbytes: int) -> None:
        self._memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._used = 0

    def copy(self, array: NDArray[Scalar]) -> NDArray[Scalar]:
        copy = np.frombuffer(self._memory, array.dtype, array.size, self._used).reshape(array.shape)
        copy[...] = array
        self._used += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
        return copy

    def copy_tensor(self, tensor: Tensor) -> Tensor:
        return torch.from_numpy(self.copy(tensor.numpy()))
