"""The papers' table: what criss-cross and pyramid attention cost beside the Non-local block, at the papers' settings.

`python -m benchmarks.attention [SETTING ...] [--rounds N]` prints a table for each setting, adds it to
benchmarks/results/attention.json and draws benchmarks/results/attention.png.

Settings, batch 1, float32, forward passes without gradients, batch norm folded, random features, the heap kept as the
service keeps it:
- 97x97: 512 channels, CCNet's own (stride 8 of a 769x769 crop); queries and keys have 64 channels, values 512.
  Non-local is the block with CCNet's projections and residual, unscaled: the paper's 108 GFLOPs are this block's.
- 96x96, 128x128, 128x256: 2048 channels, ANN's own; queries, keys and values have 256. Non-local is APNB without its
  pooling, one projection for query and key, as ANN's authors compare it. Of 128x256 the plain one needs 11 GB.
- growth: 512 channels as for 97x97, from 32x64 to 128x256 cells, for the picture.

Blocks: `nonlocal, map kept` is the block as it is usually written; `nonlocal` the same as it runs here; `rcca R` are R
passes of criss-cross attention; `apnb` and `afnb` are ANN's, with their output projection but without the convolution
that joins them to their input, as its authors measured. AFNB's keys come from a map of half the channels, as in ANN.

Columns are those of `benchmarks.heads`, whose counting this is: M parameters, GFLOPs (a multiply-add is two), CPU ms
over all threads (on CUDA: wall ms), and MB allocated at once beyond weights and input.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from app.engine.memory import reuse_heap
from benchmarks.forward import measure
from benchmarks.heads import Cost, Part, Run, attention_by_map, count_flops, count_parameters, peak_memory
from benchmarks.machine import describe
from models.folding import fold_batch_norm
from models.heads.ann import PyramidAttention
from models.heads.ccnet import CrissCrossAttention
from models.heads.danet import PositionAttention
from models.ops.attention import Attend, dense_attention

PLAIN = "nonlocal, map kept"
GRIDS = {"97x97": (97, 97), "96x96": (96, 96), "128x128": (128, 128), "128x256": (128, 256)}
GROWTH = ((32, 64), (48, 96), (64, 128), (96, 192), (128, 256))
GROWING = (PLAIN, "nonlocal", "rcca 2", "apnb")
RESULTS = Path(__file__).parent / "results" / "attention.json"
PICTURE = RESULTS.with_suffix(".png")

# What the papers print for their own implementations: GFLOPs, and MB on a GPU (arXiv 1811.11721, its ablation of RCCA).
PUBLISHED = {
    "97x97": {
        PLAIN: {"gflops": 108.0, "mb": 1411.0},
        "rcca 1": {"gflops": 8.3},
        "rcca 2": {"gflops": 16.5, "mb": 127.0},
    }
}
# And as ratios to the plain block: ANN's abstract (arXiv 1908.07678) for 256x128, CCNet's (1811.11721) for its setting.
PUBLISHED_RATIOS = {
    "97x97": {"rcca 2": {"less memory": 11.0, "fewer FLOPs": 0.85}},
    "128x256": {"apnb": {"less memory": 28.0, "times as fast": 6.0}},
}

Table = dict[str, Cost]


class Sizes(NamedTuple):
    channels: int
    query_channels: int  # of Non-local and RCCA
    inner_channels: int  # of APNB and AFNB


CCNET, ANN = Sizes(512, 64, 256), Sizes(2048, 256, 256)


class PositionBlock(PositionAttention):
    """CCNet's baseline: its own projections and residual, every position over all others."""

    attend: Attend = staticmethod(dense_attention)

    def forward(self, x: Tensor, _: Tensor) -> Tensor:  # type: ignore[override]  # no trace, and one map given twice
        query, key, value = self.query_project(x), self.key_project(x).flatten(2), self.value_project(x).flatten(2)
        return torch.addcmul(x, self.attend(query, key, value, 1.0)[0], self.gamma.scale)


class UnpooledBlock(PyramidAttention):
    """ANN's baseline: APNB without its pooling."""

    attend: Attend = staticmethod(dense_attention)

    def forward(self, query_map: Tensor, key_map: Tensor) -> Tensor:  # type: ignore[override]  # no trace
        query, value = self.query_project(query_map), self.value_project(key_map)
        context: Tensor = self.out_project(self.attend(query, query.flatten(2), value.flatten(2), self.scale)[0])
        return context


def blocks_of(sizes: Sizes) -> dict[str, nn.Module]:
    """CCNet's blocks have values of all channels, ANN's of as few as their queries."""
    channels, query_channels, inner = sizes

    def pyramid(block: type[PyramidAttention], key_channels: int, *, shared: bool) -> PyramidAttention:
        return block(channels, key_channels, channels, (inner, inner), shared=shared)

    def plain() -> nn.Module:
        of_ccnet = query_channels < inner
        return PositionBlock(channels, query_channels) if of_ccnet else pyramid(UnpooledBlock, channels, shared=True)

    blocks: dict[str, Any] = {
        PLAIN: plain(),
        "nonlocal": plain(),
        "rcca": CrissCrossAttention(channels, query_channels),
        "apnb": pyramid(PyramidAttention, channels, shared=True),
        "afnb": pyramid(PyramidAttention, channels // 2, shared=False),
    }
    blocks[PLAIN].load_state_dict(blocks["nonlocal"].state_dict())
    blocks[PLAIN].attend = attention_by_map
    return {name: block.eval() for name, block in blocks.items()}


def parts_of(sizes: Sizes, grid: tuple[int, int], device: torch.device, *, folds: bool = True) -> dict[str, Part]:
    """All blocks on one map, as they are run and counted."""
    with device:
        on = blocks_of(sizes)
        x, low = (torch.randn(1, channels, *grid) for channels in (sizes.channels, sizes.channels // 2))
    if folds:
        for block in on.values():
            fold_batch_norm(block)

    def passes(recurrence: int) -> Run:
        def run() -> object:
            y = x
            for _ in range(recurrence):
                y, _ = on["rcca"](y)
            return y

        return run

    runs: dict[str, tuple[str, Run]] = {
        PLAIN: (PLAIN, lambda: on[PLAIN](x, x)),
        "nonlocal": ("nonlocal", lambda: on["nonlocal"](x, x)),
        **{f"rcca {recurrence}": ("rcca", passes(recurrence)) for recurrence in (1, 2, 3)},
        "apnb": ("apnb", lambda: on["apnb"](x, x)),
        "afnb": ("afnb", lambda: on["afnb"](x, low)),
    }
    return {name: Part(count_parameters(on[block]), run) for name, (block, run) in runs.items()}


def flops_of(sizes: Sizes, grid: tuple[int, int]) -> dict[str, int]:
    """Of each part, by a run without numbers; batch norm, which cannot be folded without them, is not counted."""
    with FakeTensorMode():
        parts = parts_of(sizes, grid, torch.device("cpu"), folds=False)
        return {name: count_flops(part.run) for name, part in parts.items()}


def costs(sizes: Sizes, grid: tuple[int, int], rounds: int, device: torch.device, *names: str) -> Table:
    """
    Args:
        names: of the parts; none for all
    """
    flops = flops_of(sizes, grid)
    parts = {name: part for name, part in parts_of(sizes, grid, device).items() if not names or name in names}
    # Memory comes first: its run also warms up.
    peaks = {name: peak_memory(part.run, device) for name, part in parts.items()}
    seconds = measure({name: part.run for name, part in parts.items()}, rounds, device)
    return {name: Cost(part.parameters, flops[name], seconds[name], peaks[name]) for name, part in parts.items()}


def setting_costs(setting: str, rounds: int, device: torch.device) -> Table:
    return costs(CCNET if setting == "97x97" else ANN, GRIDS[setting], rounds, device)


def growth_costs(rounds: int, device: torch.device) -> dict[str, Table]:
    return {f"{grid[0]}x{grid[1]}": costs(CCNET, grid, rounds, device, *GROWING) for grid in GROWTH}


def show(setting: str, table: Mapping[str, Cost]) -> None:
    """A line a block, the published figures after ours."""
    print(f"\n{setting:<20}{'M':>8}{'GFLOPs':>18}{'ms':>10}{'MB':>18}{'of plain: FLOPs':>18}{'ms':>8}{'MB':>8}")
    plain = table[PLAIN]
    for name, cost in table.items():
        theirs = PUBLISHED.get(setting, {}).get(name, {})
        flops, peak = (f"{theirs[what]:g}" if what in theirs else "" for what in ("gflops", "mb"))
        shares = (cost.flops / plain.flops, cost.seconds / plain.seconds, cost.peak_bytes / plain.peak_bytes)
        print(
            f"{name:<20}{cost.parameters / 1e6:8.3f}{cost.flops / 1e9:10.2f}{flops and f'({flops})':>8}"
            f"{1000 * cost.seconds:10.0f}{cost.peak_bytes / 1e6:10.1f}{peak and f'({peak})':>8}"
            f"{100 * shares[0]:16.1f} %" + "".join(f"{100 * share:6.1f} %" for share in shares[1:])
        )
    for name, ratio in PUBLISHED_RATIOS.get(setting, {}).items():
        print(f"published: {name}, " + ", ".join(f"{value:g} {what}" for what, value in ratio.items()))


def draw(growth: Mapping[str, Mapping[str, Mapping[str, float]]], picture: Path) -> None:
    """FLOPs, memory and time of each block over the number of cells, all axes logarithmic.

    Args:
        growth: grid to block to its cost, as it is in the results
    """
    figure = Figure(figsize=(10, 3.6), layout="constrained", dpi=100)
    panels = (("flops", 1e9, "GFLOPs"), ("peak_bytes", 1e6, "MB beyond weights and input"), ("seconds", 1e-3, "CPU ms"))
    for axes, (what, unit, label) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for name in GROWING:
            axes.plot(list(growth), [table[name][what] / unit for table in growth.values()], marker="o", label=name)
        axes.set(yscale="log", title=label, xlabel="cells of the map")
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(visible=True, which="major", alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    figure.savefig(picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = (*GRIDS, "growth")
    parser.add_argument("settings", nargs="*", metavar="SETTING", help=f"of {', '.join(every)}; all without any")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if unknown := set(arguments.settings) - set(every):
        parser.error(f"unknown setting {', '.join(sorted(unknown))}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reuse_heap()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"published": PUBLISHED, "growth": {}}

    with torch.inference_mode():
        for setting in arguments.settings or every:
            if setting == "growth":
                grown = growth_costs(arguments.rounds, device)
                for grid, table in grown.items():
                    show(f"growth, {grid}", table)
                results["growth"] = {
                    grid: {name: asdict(cost) for name, cost in table.items()} for grid, table in grown.items()
                }
                draw(results["growth"], PICTURE)
            else:
                table = setting_costs(setting, arguments.rounds, device)
                show(setting, table)
                results.setdefault("costs", {})[setting] = {name: asdict(cost) for name, cost in table.items()}
            results.setdefault("measured_on", {})[setting] = describe(device) | {"rounds": arguments.rounds}
            RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
