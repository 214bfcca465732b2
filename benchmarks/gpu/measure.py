"""Time, memory and bandwidth on the device."""

from __future__ import annotations

import statistics
import time

import torch

from benchmarks.gpu.scope import DEVICE, Run

SECONDS = 0.15  # that a form is measured for
CACHES = 1 << 29  # bytes, several times what any GPU's caches hold


def seconds_of(run: Run, *, graph: bool) -> float:
    """Median of runs, of which there are as many as fit `SECONDS`.

    Args:
        graph: the time is the device's alone, with no input in any cache; else launches count too
    """
    if DEVICE.type == "cpu":
        started = time.perf_counter()
        run()
        return time.perf_counter() - started
    repeat = captured(run) if graph else run
    caches = torch.empty(CACHES, dtype=torch.uint8, device=DEVICE) if graph else None
    repeat()
    took: list[float] = []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(took) < 3:
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        if caches is not None:
            caches.zero_()  # which takes the device longer than the launch of the graph behind it takes the host
        before.record()
        repeat()
        after.record()
        after.synchronize()
        took.append(before.elapsed_time(after) / 1000)
    return statistics.median(took)


def captured(run: Run) -> Run:
    """The same as a CUDA graph, after enough runs on the side for libraries and compilers to be ready."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def peak_of(run: Run) -> int:
    """Bytes at once beyond what was there; 0 where they are not counted."""
    if DEVICE.type == "cpu":
        return 0
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return int(torch.cuda.max_memory_allocated()) - before


def copy_bandwidth() -> float:
    """Bytes a second, read and written, of a copy far larger than any cache."""
    source = torch.empty((1 << 30) if DEVICE.type == "cuda" else 1 << 20, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds_of(lambda: target.copy_(source), graph=False)
