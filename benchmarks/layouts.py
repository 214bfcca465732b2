"""What it costs to lay weights out for one size of input and one thread alone, as was done before.

`python -m benchmarks.layouts [--rounds N]` prints the milliseconds of CCNet's forward pass for inputs of several
shapes, on one thread and on two, with weights laid out for 640x480 on one thread and as the service has them, by turns,
and writes benchmarks/results/layouts.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from app.engine.memory import reuse_heap
from app.engine.tuning import make_fast
from benchmarks.machine import describe
from models import Segmentor, create_model, fused
from models.folding import fold_batch_norm
from models.fused import has_bfloat16

MODEL = "ccnet-mobilenetv2-camvid"
RESULTS = Path(__file__).parent / "results" / "layouts.json"
USUAL = (480, 640)  # height, width
SHAPES = (USUAL, (368, 640), (320, 640), (480, 480), (640, 368), (640, 480))


def network(heights: tuple[float, ...], threads: tuple[int, int], *, reduced: bool) -> Segmentor:
    segmentor, usual = create_model(MODEL), fused.HEIGHTS
    fold_batch_norm(segmentor)
    segmentor.use_channels_last()
    fused.HEIGHTS = heights
    make_fast(segmentor, torch.randn(1, 3, *USUAL), threads, reduced=reduced)
    fused.HEIGHTS = usual
    return segmentor


@torch.inference_mode()
def measure(rounds: int, threads: int, *, reduced: bool) -> dict[str, dict[str, float]]:
    torch.get_num_threads()
    torch.set_num_threads(1)
    forms = {
        "for one": network((1,), (1, 1), reduced=reduced),
        "as served": network(fused.HEIGHTS, (1, 2), reduced=reduced),
    }
    torch.set_num_threads(threads)
    table = {}
    for shape in SHAPES:
        image = torch.randn(1, 3, *shape).contiguous(memory_format=torch.channels_last)
        taken: dict[str, list[float]] = {name: [] for name in forms}
        for turn in range(rounds + 3):  # the first three warm up
            for name in list(forms)[:: 1 if turn % 2 else -1]:
                started = time.perf_counter()
                forms[name](image)
                taken[name].append(1000 * (time.perf_counter() - started))
        table[f"{shape[1]}x{shape[0]}"] = {name: round(statistics.median(ms[3:]), 1) for name, ms in taken.items()}
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    reuse_heap()
    tables = {}
    for reduced in (False, True) if has_bfloat16() else (False,):
        for threads in (1, 2):
            name = f"{'bfloat16 in part' if reduced else 'float32'}, {threads} threads"
            with ThreadPoolExecutor(1) as brief:  # for what OpenMP makes of several such threads, see models/fused.py
                tables[name] = brief.submit(measure, rounds, threads, reduced=reduced).result()
            print(f"\n{name:<28}{'for one':>10}{'as served':>12}")
            for shape, taken in tables[name].items():
                print(f"{shape:<28}{taken['for one']:10.1f}{taken['as served']:12.1f}", flush=True)
    document = {"measured_on": describe(torch.device("cpu")), "rounds": rounds, "ms": tables}
    RESULTS.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
