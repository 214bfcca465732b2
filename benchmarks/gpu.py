"""All figures of a GPU in one call: `python -m benchmarks.gpu [--quick] [--only SECTION ...]`.

Prints tables and writes benchmarks/results/gpu.json. Needs nothing beyond what the service needs, and Triton. Not run
on a GPU yet: until it has been, nothing here is a figure. Without one it runs small sizes on the CPU, the kernels by
Triton's interpreter if TRITON_INTERPRET=1, to show that it works; those times mean nothing and are not written.

Sections, after the bandwidth at which the GPU copies memory, which the roofline is made of:
- operators: criss-cross attention on the papers' grids, 64 query and 512 value channels, in each type: the kernels,
  torch's form, mmcv's einsum form, and that form compiled by torch. `of roofline` is the least time in which query,
  key, value and result can move, divided by the time taken. Times are of CUDA graphs, so that launches are in none;
  error is the largest difference from float64.
- blocks: the kernels with other block sizes and warps, to choose those of `models.ops.criss_cross_triton` by.
- models: images a second of whole networks, by type, with and without a CUDA graph, at each batch that fits; peak
  memory. The server's own throughput is `benchmarks.serving`'s.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.criss_cross import einsum_form
from benchmarks.machine import describe
from models import Segmentor
from models.backbones.resnet import BLOCKS, ResNet
from models.folding import fold_batch_norm
from models.heads.ann import ANNHead
from models.heads.ccnet import CCHead
from models.heads.non_local import NonLocalHead
from models.operators import choose_operators
from models.ops.criss_cross import criss_cross_attention, criss_cross_attention_reference

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HEADS: dict[str, Callable[[], nn.Module]] = {
    "ccnet": lambda: CCHead(2048, 512, 19),
    "ann": lambda: ANNHead((1024, 2048), 512, 19),
    "nonlocal": lambda: NonLocalHead(2048, 512, 19),
}
SECONDS = 0.15  # that a form is measured for
RESULTS = Path(__file__).parent / "results" / "gpu.json"

Run = Callable[[], object]
Row = dict[str, str | float]


class Scope(NamedTuple):
    grids: Sequence[tuple[int, int]]
    channels: tuple[int, int]  # of queries and keys, and of values
    dtypes: Sequence[torch.dtype]
    blocks: Sequence[tuple[int, int, int, int]]  # queries, keys, value channels, warps
    sizes: Sequence[tuple[int, int]]
    batches: Sequence[int]


FULL = Scope(
    ((64, 128), (97, 97), (128, 256)),
    (64, 512),
    (torch.bfloat16, torch.float16, torch.float32),
    list(itertools.product((32, 64, 128), (32, 64), (128, 256, 512), (4, 8))),
    ((512, 1024), (769, 769), (1024, 2048)),
    (1, 2, 4, 8, 16),
)
QUICK = Scope(((5, 7),), (6, 16), (torch.bfloat16, torch.float32), [(16, 16, 16, 4)], ((33, 41),), (1,))


def seconds_of(run: Run, *, graph: bool) -> float:
    """Median of runs, of which there are as many as fit `SECONDS`."""
    if DEVICE.type == "cpu":
        started = time.perf_counter()
        run()
        return time.perf_counter() - started
    repeat = captured(run) if graph else run
    repeat()
    took = []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(took) < 3:
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        repeat()
        after.record()
        after.synchronize()
        took.append(before.elapsed_time(after) / 1000)
    return statistics.median(took)


def captured(run: Run) -> Run:
    """The same as a CUDA graph, after enough runs on the side for libraries and compilers to be ready."""
    side = torch.cuda.Stream()
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


def inputs_of(grid: tuple[int, int], channels: tuple[int, int], dtype: torch.dtype) -> list[Tensor]:
    few, many = channels
    sizes = (few, 0.5), (few, 0.5), (many, 1.0)
    return [
        (spread * torch.randn(1, size, *grid, device=DEVICE)).to(dtype).contiguous(memory_format=torch.channels_last)
        for size, spread in sizes
    ]


def forms() -> dict[str, Callable[..., Tensor]]:
    from models.ops.criss_cross_triton import criss_cross_attention_triton

    compiled = torch.compile(einsum_form) if DEVICE.type == "cuda" else einsum_form
    return {
        "kernels": lambda *x: criss_cross_attention_triton(*x)[0],
        "torch": lambda *x: criss_cross_attention(*x)[0],
        "mmcv's form": einsum_form,
        "mmcv's form, compiled": compiled,
    }


def operators(scope: Scope, bandwidth: float) -> Iterator[Row]:
    for grid, dtype in itertools.product(scope.grids, scope.dtypes):
        inputs = inputs_of(grid, scope.channels, dtype)
        moved = sum(x.nbytes for x in inputs) + inputs[2].nbytes
        exact = criss_cross_attention_reference(*(x.double() for x in inputs))[0]
        for name, form in forms().items():
            run = lambda form=form, inputs=inputs: form(*inputs)  # noqa: E731
            error = float((run().double() - exact).abs().max())
            seconds = seconds_of(run, graph=True)
            yield {
                "grid": f"{grid[0]}x{grid[1]}",
                "type": str(dtype).removeprefix("torch."),
                "form": name,
                "us": 1e6 * seconds,
                "of roofline": moved / bandwidth / seconds,
                "MB": peak_of(run) / 1e6,
                "error": error,
            }


def blocks(scope: Scope) -> Iterator[Row]:
    from models.ops import criss_cross_triton as kernels

    names = ("BLOCK_QUERIES", "BLOCK_KEYS", "BLOCK_VALUES", "NUM_WARPS")
    usual = [getattr(kernels, name) for name in names]
    for grid in scope.grids:
        inputs, rows = inputs_of(grid, scope.channels, torch.bfloat16), []
        for choice in scope.blocks:
            for name, value in zip(names, choice, strict=True):
                setattr(kernels, name, value)
            try:
                seconds = seconds_of(lambda inputs=inputs: kernels.criss_cross_attention_triton(*inputs), graph=True)
            except Exception as error:  # noqa: BLE001 - Triton's own, when registers or shared memory don't suffice
                seconds = float("inf")
                print(f"{choice}: {type(error).__name__}")
            rows.append((seconds, choice))
        for seconds, choice in sorted(rows)[:5]:
            yield {"grid": f"{grid[0]}x{grid[1]}", **dict(zip(names, choice, strict=True)), "us": 1e6 * seconds}
    for name, value in zip(names, usual, strict=True):
        setattr(kernels, name, value)


def network(head: str, depth: int, dtype: torch.dtype) -> Segmentor:
    """As the service runs it on CUDA; plain float32 as it comes from a checkpoint."""
    segmentor = Segmentor(ResNet(BLOCKS[depth]), HEADS[head]()).eval()
    if dtype != torch.float32:
        fold_batch_norm(segmentor)
        segmentor.use_channels_last()
    segmentor.to(DEVICE, dtype)
    if dtype != torch.float32:
        choose_operators(segmentor, DEVICE)
    return segmentor


def whole_models(scope: Scope, deadline: float) -> Iterator[Row]:
    """Plain float32 without a graph first: what the others are compared with. Ends in time, wherever that is."""
    for depth, head, (dtype, graph) in itertools.product(
        (50, 101), HEADS, ((torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True))
    ):
        segmentor = network(head, depth, dtype)
        for size, batch in itertools.product(scope.sizes, scope.batches):
            if time.monotonic() > deadline:
                print("out of time: the rest is left out")
                return
            image = torch.randn(batch, 3, *size, device=DEVICE, dtype=dtype)
            if dtype != torch.float32:
                image = image.contiguous(memory_format=torch.channels_last)
            run = lambda segmentor=segmentor, image=image: segmentor(image).logits  # noqa: E731
            row: Row = {
                "model": f"{head}_r{depth}-d8",
                "size": f"{size[0]}x{size[1]}",
                "type": str(dtype).removeprefix("torch."),
                "graph": "yes" if graph else "no",
                "batch": batch,
            }
            try:
                yield row | {"images/s": batch / seconds_of(run, graph=graph), "MB": peak_of(run) / 1e6}
            except torch.cuda.OutOfMemoryError:
                yield row | {"images/s": 0.0, "MB": float("inf")}
                break


def show(title: str, rows: Iterator[Row]) -> list[Row]:
    """Each as soon as it is there, since a call may be cut off."""
    shown = []
    for row in rows:
        if not shown:
            print(f"\n{title}\n" + "".join(f"{name:>22}" for name in row))
        values = (f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values())
        print("".join(f"{value:>22}" for value in values), flush=True)
        shown.append(row)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sections = ("operators", "blocks", "models")
    parser.add_argument("--only", nargs="*", choices=sections, default=sections)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, nothing written: whether it runs")
    parser.add_argument("--minutes", type=float, default=7.5, help="after which no model is begun (%(default)s)")
    arguments = parser.parse_args()
    deadline = time.monotonic() + 60 * arguments.minutes
    scope = QUICK if arguments.quick or DEVICE.type == "cpu" else FULL
    found: dict[str, object] = {"measured_on": describe(DEVICE)}
    with torch.inference_mode():
        bandwidth = copy_bandwidth()
        found["copy_bytes_per_second"] = bandwidth
        print(f"{DEVICE}: copies {bandwidth / 1e9:.0f} GB/s, torch {torch.__version__}")
        if "operators" in arguments.only:
            found["operators"] = show("criss-cross attention", operators(scope, bandwidth))
        if "blocks" in arguments.only:
            found["blocks"] = show("blocks of the kernels, the best five a grid, bfloat16", blocks(scope))
        if "models" in arguments.only:
            found["models"] = show("whole models", whole_models(scope, deadline))
    if DEVICE.type == "cuda" and not arguments.quick:
        RESULTS.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
