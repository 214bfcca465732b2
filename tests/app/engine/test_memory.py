from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from app.engine import memory
from app.engine.device import Segmentation
from app.engine.memory import give_back, in_own_pages, outlive, reuse_heap
from app.timings import Timings
from models import Trace


def starts_a_page(address: int) -> bool:
    return address % mmap.PAGESIZE == 0


@pytest.mark.parametrize("shape", [(360, 480), (16, 23, 30), (1,), (0, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float16])
def test_the_copy_is_equal_and_outside_the_heap(shape: tuple[int, ...], dtype: type[np.generic]) -> None:
    array = (np.arange(np.prod(shape)) % 251).astype(dtype).reshape(shape)
    copy = in_own_pages(array)
    assert copy.dtype == array.dtype
    assert (copy == array).all()
    assert starts_a_page(copy.ctypes.data)


def test_the_copy_can_be_written_without_changing_the_array() -> None:
    array = np.zeros((4, 4), dtype=np.uint8)
    in_own_pages(array)[0, 0] = 1
    assert array[0, 0] == 0


def test_a_strided_array_is_copied_in_its_order() -> None:
    array = np.arange(24, dtype=np.uint8).reshape(4, 6).T
    assert (in_own_pages(array) == array).all()


def test_a_result_outlives_its_pass_whole_and_outside_the_heap() -> None:
    ids = np.arange(12, dtype=np.uint8).reshape(3, 4)
    trace = Trace("cca", 1, torch.rand(2, 3, 4).half(), torch.rand(2, 3, 4).half(), logsumexp=torch.rand(3, 4))
    result = Segmentation(ids, ids + 100, (trace,), Timings({"forward": 0.1}))
    kept = outlive(result)
    (same,) = kept.traces
    for ours, theirs in ((kept.mask, result.mask), (kept.confidence, result.confidence)):
        assert (ours == theirs).all()
        assert starts_a_page(ours.ctypes.data)
    assert same.logsumexp is not None
    for mine, its in ((same.query, trace.query), (same.key, trace.key), (same.logsumexp, trace.logsumexp)):
        assert torch.equal(mine, its)
        assert mine.data_ptr() != its.data_ptr()
        assert starts_a_page(mine.data_ptr())
    assert (same.block, same.step, kept.timings) == ("cca", 1, result.timings)


def test_free_pages_are_given_back() -> None:
    give_back()
    blocks = [np.ones(100_000, dtype=np.uint8) for _ in range(400)]  # too small for mappings of their own
    grown = resident()
    del blocks[::2], blocks
    give_back()
    assert resident() < grown - 20_000_000


# Prints the pages that the system had to map while a thread took and freed some blocks, for the last 20 of 40 times.
ALLOCATE_AGAIN = """
import resource, sys, threading, torch
from app.engine.memory import reuse_heap

def allocate():
    for _ in range(40):
        blocks = [torch.ones(megabytes * 10**6, dtype=torch.uint8) for _ in range(count)]
        del blocks
        counts.append(resource.getrusage(resource.RUSAGE_THREAD).ru_minflt)

count, megabytes = int(sys.argv[2]), int(sys.argv[3])
if sys.argv[1] == "reuse":
    reuse_heap()
counts = []
thread = threading.Thread(target=allocate)
thread.start()
thread.join()
print(counts[-1] - counts[-20])
"""


# More than one heap of a thread holds: twice what glibc would map for itself, thrice what lies on heaps anyway.
@pytest.mark.parametrize(("heap", "count", "megabytes"), [("reuse", 2, 40), ("as it is", 2, 40), ("reuse", 3, 20)])
def test_a_pass_finds_the_pages_of_the_one_before(heap: str, count: int, megabytes: int) -> None:
    # In a process of its own, since how the heap works can't be put back.
    command = [sys.executable, "-c", ALLOCATE_AGAIN, heap, str(count), str(megabytes)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    assert (int(done.stdout) < 1000) == (heap == "reuse")


def test_an_old_glibc_gets_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: dict[int, int] = {}

    def mallopt(parameter: int, value: int) -> int:
        if parameter == memory.M_MMAP_THRESHOLD and value > 1 << 25:
            return 0
        taken[parameter] = value
        return 1

    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=mallopt))
    reuse_heap()
    assert taken == {memory.M_MMAP_THRESHOLD: 1 << 25, memory.M_TRIM_THRESHOLD: 1 << 30, memory.M_TOP_PAD: 1 << 28}


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
