"""All figures of a GPU in one call: `python -m benchmarks.gpu [--quick] [--only SECTION ...]`.

Prints tables and writes benchmarks/results/gpu.json. Needs nothing beyond what the service needs, and Triton. Not run
on a GPU yet: until it has been, nothing here is a figure. Without one it runs small sizes on the CPU, the kernels by
Triton's interpreter, to show that it works; those times mean nothing and are not written.

Sections, after the bandwidth at which the GPU copies memory, which the roofline is made of:
- operators: criss-cross attention on the papers' grids, 64 query and 512 value channels, in each type: the kernels,
  torch's form, mmcv's einsum form, and that form compiled by torch. `of roofline` is the least time in which query,
  key, value and result can move, divided by the time taken. Times are of CUDA graphs, launched before their turn comes,
  and of inputs that are in no cache; error is the largest difference from float64.
- models: images a second of whole networks, plain in float32 (whose convolutions are TF32, torch's default) and as the
  service runs them in bfloat16, with and without its CUDA graphs, at each batch that fits; peak memory without. `graph`
  is `none` where the service's could not be made, and it ran without.
- attention: a ccnet_r50-d8 through the service's worker, queries and keys wanted and not wanted.
- http: the service itself as a process, JPEG in and PNG out, for clients that send as soon as they are answered.
- blocks: the kernels with other block sizes and warps, to choose those of `models.ops.criss_cross_triton` by, as
  many as there is time for.

Last, which goals are met. Of a section that fails what was measured until then is kept, the others follow, and the
exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.gpu.goals import goals
from benchmarks.gpu.http import served, throughput
from benchmarks.gpu.measure import copy_bandwidth
from benchmarks.gpu.networks import attention, whole_models
from benchmarks.gpu.operators import blocks, operators
from benchmarks.gpu.scope import DEVICE, FULL, QUICK, Row, Scope
from benchmarks.machine import describe

RESULTS = Path(__file__).parents[1] / "results" / "gpu.json"
SECTIONS = {
    "operators": "criss-cross attention",
    "models": "whole models",
    "attention": "a request for attention",
    "http": "the service, over HTTP",
    "blocks": "blocks of the kernels, the best five a grid, bfloat16",
}
RESERVED = 150.0  # seconds, of the sections after the models


def section(name: str, scope: Scope, bandwidth: float, deadline: float) -> Iterator[Row]:
    if name == "operators":
        yield from operators(scope, bandwidth)
    elif name == "models":
        yield from whole_models(scope, deadline - RESERVED)
    elif name == "attention":
        with tempfile.TemporaryDirectory(prefix="gpu-") as folder:
            yield from attention(served(Path(folder), scope)[-1][0], scope)
    elif name == "http":
        yield from throughput(scope)
    else:
        yield from blocks(scope, deadline)


def show(title: str, rows: Iterator[Row], shown: list[Row]) -> None:
    """Each as soon as it is there, since a call may be cut off, and a section may fail."""
    for row in rows:
        if not shown:
            print(f"\n{title}\n" + "".join(f"{name:>22}" for name in row))
        values = (f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values())
        print("".join(f"{value:>22}" for value in values), flush=True)
        shown.append(row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, nothing written: whether it runs")
    parser.add_argument("--minutes", type=float, default=7.5, help="after which nothing is begun (%(default)s)")
    arguments = parser.parse_args()
    deadline = time.monotonic() + 60 * arguments.minutes
    quick = arguments.quick or DEVICE.type == "cpu"
    found: dict[str, list[Row]] = {}
    failed = []
    with torch.inference_mode():
        bandwidth = copy_bandwidth()
        print(f"{DEVICE}: copies {bandwidth / 1e9:.0f} GB/s, torch {torch.__version__}")
        for name, title in SECTIONS.items():
            if name in arguments.only:
                found[name] = []
                try:
                    show(title, section(name, QUICK if quick else FULL, bandwidth, deadline), found[name])
                except Exception:  # noqa: BLE001 - a GPU is not to be had again for the others
                    traceback.print_exc()
                    failed.append(name)
    judged = list(goals({} if quick else found))
    show("goals", iter(judged), [])
    if not quick:
        known = {"measured_on": describe(DEVICE), "copy_bytes_per_second": bandwidth, "failed": failed}
        RESULTS.write_text(json.dumps({**known, **found, "goals": judged}, indent=2) + "\n")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
