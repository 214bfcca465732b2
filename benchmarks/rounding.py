"""What the default precision makes of attention maps, beside float32: `python -m benchmarks.rounding`.

A bundled model runs in bfloat16 in part, where the device has it and masks stay the same. This takes the page's three
samples through each of them in both ways, asks what every cell looks at, and says how much of a cell's weight is on
other cells: half the sum of the absolute differences, 0 for the same map and 1 for one that shares no cell. Prints a
table and writes benchmarks/results/rounding.json: the 95th percentile and the largest, and for how many cells another
cell is the heaviest.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.api.attention import Question, attention_map, blocks_of
from app.api.derived import Derived
from app.api.record import Record
from app.engine.device import Segmentation
from app.engine.prepare import prepare
from app.engine.worker import Worker
from app.imaging import decode
from benchmarks.machine import describe
from models import ModelSpec, list_models

SAMPLES = sorted((Path(__file__).parents[1] / "app/web").glob("sample*.jpg"))
STEPS = {"cca": ("1", "2", "composed")}
RESULTS = Path(__file__).parent / "results" / "rounding.json"

Maps = NDArray[np.float64]  # of each cell in reading order, what it looks at: [cells, cells]


def result_of(worker: Worker, spec: ModelSpec, upload: bytes) -> Record:
    image = decode(upload, max_pixels=1 << 20)
    (outcome,) = worker.run(spec.name, worker.stage(prepare(image, spec, spec.inference, wants_traces=True))).outcomes
    assert isinstance(outcome, Segmentation), outcome
    return Record("measured", spec, upload, outcome)


def maps_of(record: Record, block: str, step: str | None) -> Maps:
    height, width = record.segmentation.mask.shape
    rows, columns = record.segmentation.traces[0].grid
    middles = [
        (int((column + 0.5) * width / columns), int((row + 0.5) * height / rows))
        for row in range(rows)
        for column in range(columns)
    ]
    found = [attention_map(record, Question(middle, block, step), Derived(0)).weights.ravel() for middle in middles]
    return np.array(found, dtype=np.float64)


def views(record: Record) -> Iterator[tuple[str, str | None]]:
    """Blocks, and steps of those that have several."""
    for block in blocks_of(record):
        for step in STEPS.get(block, (None,)):
            yield block, step


def differences(one: list[Maps], other: list[Maps]) -> dict[str, float]:
    pairs = list(zip(one, other, strict=True))
    elsewhere = np.concatenate([np.abs(a - b).sum(1) / 2 for a, b in pairs])
    heaviest = np.concatenate([a.argmax(1) != b.argmax(1) for a, b in pairs])
    return {
        "cells": len(elsewhere),
        "elsewhere, 95th percentile": round(float(np.percentile(elsewhere, 95)), 4),
        "elsewhere, most": round(float(elsewhere.max()), 4),
        "another is heaviest": round(float(heaviest.mean()), 4),
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    by_default, exact = (Worker("auto", 0, reduced=reduced) for reduced in (True, False))
    found = {}
    print(f"{'':<46}{'95 in 100':>10}{'most':>8}{'other heaviest':>16}")
    for spec in list_models():
        for worker in (by_default, exact):
            worker.enter()
            worker.load(spec, spec.name)
        pairs = [[result_of(worker, spec, file.read_bytes()) for worker in (by_default, exact)] for file in SAMPLES]
        if not pairs[0][0].segmentation.traces:
            continue  # a model without attention
        for block, step in views(pairs[0][0]):
            one, other = ([maps_of(pair[which], block, step) for pair in pairs] for which in (0, 1))
            name = f"{spec.name}, {block}" + (f" {step}" if step else "")
            found[name] = row = differences(one, other)
            print(f"{name:<46}{100 * row['elsewhere, 95th percentile']:8.2f} %", end="")
            print(f"{100 * row['elsewhere, most']:6.1f} %{100 * row['another is heaviest']:14.2f} %", flush=True)
    report = {"measured_on": describe(by_default.device), "samples": len(SAMPLES), "views": found}
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
