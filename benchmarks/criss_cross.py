"""Criss-cross attention alone: our forms beside the einsum form that mmcv has.

`python -m benchmarks.criss_cross [--rounds N] [--threads N ...]` prints tables and writes
benchmarks/results/criss_cross.json.

Affinity, softmax and aggregation of one image, 64 query and 512 value channels, on the three grids that the papers'
images have at stride 8; `block` is with the three projections and the residual, on a map in NCHW memory. All is float32
unless a row says otherwise: "bfloat16 values" has queries, keys, affinities and softmax in float32, and values, weights
and result in bfloat16; "einsum form, bfloat16" has everything in it, affinities included.
The einsum form gets NCHW memory, which it is written for, ours gets channels-last, which the block gives it. The heap
is kept as the service keeps it: all forms profit. Columns: ms as a clock on the wall has them, and CPU ms over all
threads, medians of rounds in which all forms take turns; how many times less of each than the einsum form in float32;
MB at once beyond the inputs, the result included, and of those the result's own; how far the result is from float64, at
most. One table for each number of threads, and below it what the products alone take at the rate of large matrices.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from app.engine.memory import reuse_heap
from benchmarks.forward import measure_both
from benchmarks.heads import peak_memory
from benchmarks.machine import describe
from models.heads.ccnet import CrissCrossAttention
from models.ops.criss_cross import criss_cross_attention, criss_cross_attention_reference

GRIDS = ((64, 128), (97, 97), (128, 256))
QUERY_CHANNELS, VALUE_CHANNELS = 64, 512
LARGE = 2048  # rows and columns
RESULTS = Path(__file__).parent / "results" / "criss_cross.json"


def einsum_form(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """What mmcv's module computes between its projections, operation by operation (mmcv 2.x)."""
    height = query.shape[2]
    diagonal = torch.diag(torch.full((height,), float("-inf"), device=query.device, dtype=query.dtype))
    column = (torch.einsum("bchw,bciw->bwhi", query, key) + diagonal).transpose(1, 2)
    row = torch.einsum("bchw,bchj->bhwj", query, key)
    attention = torch.cat([column, row], dim=-1).softmax(-1)
    context = torch.einsum("bciw,bhwi->bchw", value, attention[..., :height])
    context += torch.einsum("bchj,bhwj->bchw", value, attention[..., height:])
    return context


def ours(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return criss_cross_attention(query, key, value)[0]


def reference(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return criss_cross_attention_reference(query, key, value)[0]


def random_inputs(grid: tuple[int, int], device: torch.device) -> list[Tensor]:
    """Query and key so that affinities are a few units, as trained networks have them."""
    generator = torch.Generator().manual_seed(0)
    sizes = (QUERY_CHANNELS, 0.5), (QUERY_CHANNELS, 0.5), (VALUE_CHANNELS, 1.0)
    return [(torch.randn(1, size, *grid, generator=generator) * spread).to(device) for size, spread in sizes]


def rows(grid: tuple[int, int], rounds: int, device: torch.device) -> dict[str, dict[str, float]]:
    inputs = random_inputs(grid, device)
    channels_last = [x.contiguous(memory_format=torch.channels_last) for x in inputs]
    all_reduced, value_reduced = [x.bfloat16() for x in inputs], [*channels_last[:2], channels_last[2].bfloat16()]
    exact = reference(*(x.double() for x in inputs))
    block = CrissCrossAttention(VALUE_CHANNELS, QUERY_CHANNELS).eval().to(device)

    def block_with_einsum() -> Tensor:
        x = inputs[2]
        context = einsum_form(block.query_conv(x), block.key_conv(x), block.value_conv(x))
        out: Tensor = block.gamma(context) + x
        return out

    runs: dict[str, Callable[[], Tensor]] = {
        "einsum form": lambda: einsum_form(*inputs),
        "einsum form, bfloat16": lambda: einsum_form(*all_reduced),
        "reference": lambda: reference(*inputs),
        "ours": lambda: ours(*channels_last),
        "ours, bfloat16 values": lambda: ours(*value_reduced),
        "block, einsum form": block_with_einsum,
        "block, ours": lambda: block(inputs[2])[0],
    }
    errors = {name: float((run().double() - exact).abs().max()) for name, run in runs.items() if "block" not in name}
    seconds = measure_both(runs, rounds, device)
    return {
        name: {
            "seconds": seconds[name][0],
            "cpu_seconds": seconds[name][1],
            "peak_bytes": peak_memory(run, device),
            "result_bytes": run().nbytes,
            **({"error": errors[name]} if name in errors else {}),
        }
        for name, run in runs.items()
    }


def product_rates(rounds: int, device: torch.device) -> dict[str, float]:
    """FLOPs a second, by the clock, of the product of two large matrices: what nothing made of products can pass."""
    matrices = {dtype: torch.randn(LARGE, LARGE, device=device).to(dtype) for dtype in (torch.float32, torch.bfloat16)}
    runs = {str(dtype).removeprefix("torch."): partial(torch.mm, x, x) for dtype, x in matrices.items()}
    return {name: 2 * LARGE**3 / wall for name, (wall, _) in measure_both(runs, rounds, device).items()}


def floors(grid: tuple[int, int], rates: Mapping[str, float]) -> dict[str, float]:
    """Seconds that the products alone would take at these rates, by the type of the values."""
    pairs = 2 * grid[0] * grid[1] * sum(grid)
    affinities = pairs * QUERY_CHANNELS / rates["float32"]
    return {name: affinities + pairs * VALUE_CHANNELS / rate for name, rate in rates.items()}


def show(grid: str, table: dict[str, dict[str, float]]) -> None:
    print(f"\n{grid:<22}{'ms':>8}{'x':>8}{'CPU ms':>8}{'x':>8}{'MB':>10}{'its result':>12}{'error':>12}")
    for form, row in table.items():
        base = table["block, einsum form" if "block" in form else "einsum form"]
        times = (f"{1000 * row[what]:8.1f}{base[what] / row[what]:8.2f}" for what in ("seconds", "cpu_seconds"))
        sizes = f"{row['peak_bytes'] / 1e6:10.1f}{row['result_bytes'] / 1e6:12.1f}"
        print(f"{form:<22}{''.join(times)}{sizes}{row.get('error', 0):12.1e}", flush=True)


def one_table(rounds: int, device: torch.device) -> dict[str, object]:
    rates = product_rates(rounds, device)
    forms, products = {}, {}
    for grid in GRIDS:
        name = f"{grid[0]}x{grid[1]}"
        forms[name], products[name] = rows(grid, rounds, device), floors(grid, rates)
        show(f"{name}, {torch.get_num_threads()} threads", forms[name])
        for dtype, seconds in products[name].items():
            rate = f"{rates[dtype] / 1e9:.0f} GFLOP/s"
            print(f"products alone, values in {dtype}, at {rate}: {1000 * seconds:.1f} ms", flush=True)
    return {
        "measured_on": {**describe(device), "rounds": rounds},
        "flops_per_second": rates,
        "forms": forms,
        "floor_seconds": products,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    reuse_heap()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    results = {}
    with torch.inference_mode():
        for threads in arguments.threads:
            torch.set_num_threads(threads)
            results[str(threads)] = one_table(arguments.rounds, device)
    RESULTS.write_text(json.dumps({"threads": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
