"""What a request for attention costs: `python -m benchmarks.traces [--rounds N]`.

Runs the bundled CCNet through the service's worker, one image of its usual size, with its queries and keys wanted and
without, by turns. Prints a table and writes benchmarks/results/traces.json. `forward` is the network, `pass` all from
the image's pixels to mask and traces on the host. Wall time: on a machine that does something else the ratios tell
nothing. A ratio is the median of those of the rounds, each of which has both, by turns one and the other first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from app.engine.device import Segmentation
from app.engine.staging import Image
from app.engine.worker import Worker
from benchmarks.machine import describe
from models import get_spec
from models.ops.upsample import Size

MODEL = "ccnet-mobilenetv2-camvid"
RESULTS = Path(__file__).parent / "results" / "traces.json"


def seconds_of(worker: Worker, key: str, size: Size, *, wanted: bool) -> tuple[float, float]:
    """Of the network, and of the whole pass, for one image with or without traces."""
    image = Image(torch.zeros(*size, 3, dtype=torch.uint8), size, wants_traces=wanted)
    staged = worker.stage([image])
    started = time.perf_counter()
    (outcome,) = worker.run(key, staged).outcomes
    taken = time.perf_counter() - started
    assert isinstance(outcome, Segmentation), outcome
    assert bool(outcome.traces) == wanted
    return outcome.timings.stages["forward"], taken


def cost(worker: Worker, key: str, size: Size, rounds: int) -> dict[str, float]:
    """Milliseconds without and with traces wanted, and by how much more the second is, as a share of the first."""
    for wanted in (False, True) * 3:
        seconds_of(worker, key, size, wanted=wanted)
    pairs = []
    for index in range(rounds):
        order = (False, True) if index % 2 else (True, False)
        took = {which: seconds_of(worker, key, size, wanted=which) for which in order}
        pairs.append((took[False], took[True]))
    figures = {}
    for place, name in enumerate(("forward", "pass")):
        plain, traced = ([pair[which][place] for pair in pairs] for which in (0, 1))
        figures[f"{name} ms"] = 1000 * statistics.median(plain)
        figures[f"{name} ms, wanted"] = 1000 * statistics.median(traced)
        figures[f"{name}, more"] = statistics.median(b / a for a, b in zip(plain, traced, strict=True)) - 1
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    rounds = parser.parse_args().rounds
    worker, spec = Worker("auto", 0), get_spec(MODEL)
    machine = describe(worker.device)  # with the threads of a pass that runs alone, as these do
    worker.enter()
    worker.load(spec, MODEL)
    size = spec.preprocessing.input_size((360, 480))
    figures = cost(worker, MODEL, size, rounds)
    print(f"{MODEL} at {size[1]}x{size[0]} on {worker.device}, {rounds} rounds")
    for name, value in figures.items():
        print(f"{name:<20}{100 * value:8.2f} %" if name.endswith("more") else f"{name:<20}{value:8.2f}")
    found = {"measured_on": machine, "model": MODEL, "size": size, "rounds": rounds, **figures}
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
