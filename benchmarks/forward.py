"""What one forward pass costs on this device, and what each of our choices about it saves.

`python -m benchmarks.forward [--rounds N]` prints a table and writes benchmarks/results/forward.json.
Variants take turns, so that a noisy neighbour disturbs all alike; the median of the rounds counts.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from app.engine.timing import ModuleTimer
from benchmarks.machine import describe
from models import Segmentor, create_model, get_spec
from models.folding import fold_batch_norm

MODEL = "ccnet-mobilenetv2-camvid"
SIZE = get_spec(MODEL).preprocessing.input_size((360, 480))
BATCHES = (1, 2, 4, 8)
RESULTS = Path(__file__).parent / "results" / "forward.json"


def variants(device: torch.device) -> dict[str, Segmentor]:
    """The same network: as loaded, in channels-last memory, folded as well, and timed as well."""
    plain = create_model(MODEL).to(device)
    channels_last = copy.deepcopy(plain)
    channels_last.use_channels_last()
    folded = copy.deepcopy(channels_last)
    fold_batch_norm(folded)
    timed = copy.deepcopy(folded)
    ModuleTimer(timed, device)
    return {"as loaded": plain, "channels-last": channels_last, "+ folded": folded, "+ module timer": timed}


def measure(runs: Mapping[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, float]:
    """Median seconds of CPU time (on CUDA: wall time) of each run, all taking turns."""
    return {
        name: cpu if device.type == "cpu" else wall for name, (wall, cpu) in measure_both(runs, rounds, device).items()
    }


def measure_both(
    runs: Mapping[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, tuple[float, float]]:
    """Median seconds of each run by the clock and, over all threads, of the CPU, all taking turns."""
    clocks = time.perf_counter, time.process_time
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            started = [clock() for clock in clocks]
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            wall, cpu = (clock() - start for clock, start in zip(clocks, started, strict=True))
            seconds[name].append((wall, cpu))
    return {
        name: (statistics.median(wall for wall, _ in taken), statistics.median(cpu for _, cpu in taken))
        for name, taken in seconds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models = variants(device)
    images = {size: torch.randn(size, 3, *SIZE, device=device) for size in BATCHES}

    def run(name: str, batch: Tensor) -> Callable[[], object]:
        layout = torch.contiguous_format if name == "as loaded" else torch.channels_last
        images = batch.contiguous(memory_format=layout)
        return lambda: models[name](images)

    with torch.inference_mode():
        by_variant = measure({name: run(name, images[1]) for name in models}, rounds, device)
        by_batch = measure({str(size): run("+ folded", images[size]) for size in BATCHES}, rounds, device)
    per_image = {size: seconds / int(size) for size, seconds in by_batch.items()}

    print(f"{MODEL} at {SIZE[1]}x{SIZE[0]} on {device}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    for title, table in (("variant, batch 1", by_variant), ("batch size, per image", per_image)):
        print(f"\n{title:<24}{'ms':>8}")
        for name, seconds in table.items():
            print(f"{name:<24}{1000 * seconds:8.1f}")
    RESULTS.write_text(
        json.dumps(
            {
                "model": MODEL,
                "size": SIZE,
                "measured_on": {**describe(device), "rounds": rounds},
                "seconds_by_variant": by_variant,
                "seconds_per_image_by_batch_size": per_image,
            },
            indent=2,
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
