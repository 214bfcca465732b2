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
from app.engine.memory import ALIGNMENT, give_back, outlive, reuse_heap
from app.timings import Timings
from models import Trace


def segmentation(height: int, width: int, *cells: tuple[int, int]) -> Segmentation:
    """A result with a trace for each of the grids."""
    ids = (np.arange(height * width) % 251).astype(np.uint8).reshape(height, width)
    traces = (
        Trace("cca", step, torch.rand(2, *grid).half(), torch.rand(2, *grid).half(), logsumexp=torch.rand(grid))
        for step, grid in enumerate(cells, 1)
    )
    return Segmentation(ids, (ids.T + 100).T, tuple(traces), Timings({"forward": 0.1}))


def addresses(result: Segmentation) -> list[int]:
    traces = [part for trace in result.traces for part in (trace.query, trace.key, trace.logsumexp)]
    arrays = [result.mask.ctypes.data, result.confidence.ctypes.data]
    return arrays + [part.data_ptr() for part in traces if part is not None]


@pytest.mark.parametrize(
    ("size", "cells"),
    [((360, 480), [(60, 80), (60, 80)]), ((3, 4), [(1, 1)]), ((1, 1), []), ((63, 65), [(5, 7), (1, 3), (9, 9)])],
)
def test_a_result_outlives_its_pass_whole_and_outside_the_heap(
    size: tuple[int, int], cells: list[tuple[int, int]]
) -> None:
    result = segmentation(*size, *cells)
    kept = outlive(result)
    for ours, theirs in ((kept.mask, result.mask), (kept.confidence, result.confidence)):
        assert ours.dtype == theirs.dtype
        assert (ours == theirs).all()
    for ours, theirs in zip(kept.traces, result.traces, strict=True):
        assert ours.logsumexp is not None
        assert theirs.logsumexp is not None
        for mine, its in ((ours.query, theirs.query), (ours.key, theirs.key), (ours.logsumexp, theirs.logsumexp)):
            assert torch.equal(mine, its)
        assert (ours.block, ours.step) == (theirs.block, theirs.step)
    assert kept.timings is result.timings
    assert addresses(kept)[0] % mmap.PAGESIZE == 0
    assert all(address % ALIGNMENT == 0 for address in addresses(kept))
    assert not set(addresses(kept)) & set(addresses(result))


def test_a_strided_mask_is_copied_in_its_order() -> None:
    result = segmentation(4, 6)
    turned = Segmentation(result.mask.T, result.confidence.T, (), result.timings)
    assert (outlive(turned).mask == result.mask.T).all()


@pytest.mark.skipif(sys.platform != "linux", reason="mappings are counted in /proc")
def test_many_small_results_take_few_mappings() -> None:
    before = count_mappings()
    kept = [outlive(segmentation(8, 8, (1, 1), (1, 1))) for _ in range(1000)]
    assert count_mappings() - before < 100
    first = addresses(kept[0])[0]
    assert is_mapped(first)
    del kept
    assert not is_mapped(first)


def count_mappings() -> int:
    return len(Path("/proc/self/maps").read_text().splitlines())


def is_mapped(address: int) -> bool:
    spans = (line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines())
    return any(int(start, 16) <= address < int(end, 16) for start, end in spans)


def test_free_pages_are_given_back() -> None:
    give_back()
    blocks = [np.ones(100_000, dtype=np.uint8) for _ in range(400)]  # too small for mappings of their own
    grown = resident()
    del blocks[::2], blocks
    give_back()
    assert resident() < grown - 20_000_000


# Prints how often garbage was looked for while a hundred thousand objects were kept, by generation.
KEEP_MANY = """
import gc
from app.engine.memory import settle

settle()
before = [stats["collections"] for stats in gc.get_stats()]
kept = [[] for _ in range(100_000)]
print(*(stats["collections"] - old for stats, old in zip(gc.get_stats(), before)))
"""


def test_garbage_is_not_looked_for_in_all_that_is_kept() -> None:
    # In a process of its own, since how often is for all of it.
    printed = subprocess.run([sys.executable, "-c", KEEP_MANY], capture_output=True, text=True, check=True).stdout
    young, old, everywhere = map(int, printed.split())
    assert everywhere == 0
    assert young + old == pytest.approx(100_000 / 2000, abs=3)


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
