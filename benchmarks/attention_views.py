"""How long each view of attention takes at 128x256 cells, on one CPU core: `python -m benchmarks.attention_views`.

That is the papers' stride 8 of an image of 2048x1024. Queries and keys are random, with as many channels as the papers'
heads: 64 of criss-cross attention, 256 of the others. Each view is asked for at other points, or of the other classes,
again and again: `ms` is the median of the CPU time of that, and `first` the time of a result's first question, which
makes what is kept for the next ones. The map of a class is kept itself: `again` is to ask for it once more, as for each
change of its colours. Encoding is timed by itself: it is the same for all views.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from app.api.attention import Question, attention_map
from app.api.attention_views import Look, render_heat, to_npy, to_reply
from app.api.derived import Derived
from app.api.record import Record
from app.engine.device import Segmentation
from app.imaging import encode_rgb
from app.timings import Timings
from benchmarks.machine import describe
from models import Trace, list_models
from models.attention_totals import totals_of

GRID = (128, 256)
SIZE = (1024, 2048)
SCALES = (1, 3, 6, 8)
CLASSES = ("road", "building", "sky")
RESULTS = Path(__file__).parent / "results" / "attention_views.json"
GOAL = 10.0  # ms


def make_record(*traces: Trace) -> Record:
    """A result with a third of road below, a third of buildings, a third of sky."""
    names = list_models()[0].classes.names
    mask = np.zeros(SIZE, dtype=np.uint8)
    for index, name in enumerate(reversed(CLASSES)):
        mask[index * SIZE[0] // 3 :] = names.index(name)
    upload = encode_rgb(np.zeros((*SIZE, 3), dtype=np.uint8), "JPEG")
    return Record("measured", list_models()[0], upload, Segmentation(mask, mask, traces, Timings()))


def make_trace(block: Any, step: int, channels: int, keys: tuple[int, ...], scale: float, scales: Any = ()) -> Trace:
    """As a network in float32 leaves it, with what its own softmax divided by."""
    generator = torch.Generator().manual_seed(step)
    query, key = (torch.randn(channels, *shape, generator=generator) for shape in (GRID, keys))
    trace = Trace(block, step, query, key, scale, scales, torch.tensor(0.5) if block == "cca" else None)
    return replace(trace, logsumexp=totals_of(trace).float())


def records() -> dict[str, Record]:
    anchors = (sum(scale * scale for scale in SCALES),)
    return {
        "cca": make_record(*(make_trace("cca", step, 64, GRID, 64**-0.5) for step in (1, 2))),
        "apnb": make_record(make_trace("apnb", 1, 256, anchors, 256**-0.5, SCALES)),
        "nl": make_record(make_trace("nl", 1, 256, GRID, 256**-0.5)),
    }


def questions(block: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every view of a block, as words and as fields of a question."""
    ways: dict[str, list[tuple[str, dict[str, Any]]]] = {
        "cca": [
            ("step 1", {"step": "1"}),
            ("composed", {"step": "composed"}),
            ("rollout", {"step": "composed", "compose": "rollout"}),
        ],
        "apnb": [("all levels", {}), ("level 8", {"level": "8"})],
        "nl": [("", {})],
    }
    for name, fields in ways[block]:
        for direction in ("from", "to"):
            yield f"{name}, {direction}".removeprefix(", "), {"block": block, "direction": direction, **fields}


def median_ms(ask: Callable[[int], object], seconds: float) -> float:
    taken: list[float] = []
    ended = time.perf_counter() + seconds
    while len(taken) < 3 or time.perf_counter() < ended:
        taken.append(milliseconds(partial(ask, len(taken))))
    return statistics.median(taken)


def measure(record: Record, fields: dict[str, Any], seconds: float) -> dict[str, float]:
    """Of a view of points."""
    derived = Derived(1 << 40)

    def ask(index: int) -> object:
        # No row, column or cell comes again soon.
        point = (997 * (index + 1) % SIZE[1], 617 * (index + 1) % SIZE[0])
        return attention_map(record, Question(point, **fields), derived)

    first = milliseconds(lambda: ask(0))
    return {
        "first": round(first, 2),
        "ms": round(median_ms(ask, seconds), 2),
        "kept_mb": round(derived.nbytes / 1e6, 1),
    }


def measure_class(record: Record, fields: dict[str, Any], seconds: float) -> dict[str, float]:
    taken: dict[str, list[float]] = {"first": [], "ms": [], "again": []}
    derived = Derived(1 << 40)

    def ask(name: str) -> object:
        return attention_map(record, Question(name, **fields), derived)

    ended = time.perf_counter() + seconds
    while not taken["ms"] or time.perf_counter() < ended:
        derived.forget(record.id)
        for index, name in enumerate(CLASSES):
            taken["ms" if index else "first"].append(milliseconds(partial(ask, name)))
            taken["again"].append(milliseconds(partial(ask, name)))
    medians = {name: round(statistics.median(times), 2) for name, times in taken.items()}
    return {**medians, "kept_mb": round(derived.nbytes / 1e6, 1)}


def milliseconds(ask: Callable[[], object]) -> float:
    started = time.process_time()
    ask()
    return 1000 * (time.process_time() - started)


def measure_encoding(record: Record, seconds: float) -> dict[str, float]:
    found = attention_map(record, Question((900, 500), "cca", "composed"), Derived(0))
    ways: dict[str, Callable[[int], object]] = {
        "NPY": lambda _: to_npy(found),
        "JSON without the weights": lambda _: to_reply(record, found, 10, False).model_dump_json(),
        "JSON": lambda _: to_reply(record, found, 10, True).model_dump_json(),
        "PNG, a pixel a cell": lambda _: render_heat(record, found, Look(alpha=None, at_map_size=True), "PNG"),
        "PNG over an image of 2048x1024": lambda _: render_heat(record, found, Look(), "PNG"),
    }
    return {name: round(median_ms(encode, seconds), 2) for name, encode in ways.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.5, help="of asking, for each view")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # where all cores are busy, two threads wait for each other for longer than they compute
    made, views = records(), {}
    measure(made["cca"], {"block": "cca"}, 0.0)  # what torch does once in a process is nobody's first question
    print(f"{'view':38}{'ms':>9}{'first':>10}{'again':>9}{'kept MB':>9}")
    for block, record in made.items():
        for name, fields in questions(block):
            for is_class in (False, True):
                view = f"{block}, {name}, {'a class' if is_class else 'a point'}"
                views[view] = row = (measure_class if is_class else measure)(record, fields, arguments.seconds)
                late = "" if row["ms"] < GOAL and (is_class or row["first"] < GOAL) else "  over 10 ms"
                again = f"{row['again']:9.2f}" if is_class else 9 * " "
                print(f"{view:38}{row['ms']:9.2f}{row['first']:10.1f}{again}{row['kept_mb']:9.1f}{late}", flush=True)
    encoding = measure_encoding(made["cca"], arguments.seconds)
    for name, taken in encoding.items():
        print(f"{name:38}{taken:9.2f}")
    report = {"machine": describe(torch.device("cpu")), "grid": GRID, "views": views, "encoding_ms": encoding}
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
