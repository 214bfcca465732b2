"""Memory for what outlives a forward pass."""

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
LARGER_THAN_A_HEAP = 1 << 28  # that of a thread has up to 64 MiB; when it is full there comes another


def outlive(result: Segmentation) -> Segmentation:
    """A copy to keep; made on any thread but the device's.

    On the heap a result would settle in the gap that one of the pass's large temporaries has left, which
    is then too small for the next pass: the process grew by 8 MB for each result of half a megabyte.
    """
    return replace(
        result,
        mask=in_own_pages(result.mask),
        confidence=in_own_pages(result.confidence),
        traces=tuple(trace.mapped(_tensor_in_own_pages) for trace in result.traces),
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
    """Take all there is for lasting: frozen, it no longer holds up each collection of garbage."""
    gc.collect()
    gc.freeze()
    give_back()


def clear() -> None:
    """Give back what something large has left behind that was taken for lasting: a network's hooks are a cycle."""
    gc.unfreeze()
    settle()


def in_own_pages(array: NDArray[Scalar]) -> NDArray[Scalar]:
    """A copy in pages that go back to the system as soon as it is dropped."""
    pages = mmap.mmap(-1, max(1, array.nbytes))
    copy = np.frombuffer(pages, array.dtype, array.size).reshape(array.shape)
    copy[...] = array
    return copy


def _tensor_in_own_pages(tensor: Tensor) -> Tensor:
    return torch.from_numpy(in_own_pages(tensor.numpy()))
