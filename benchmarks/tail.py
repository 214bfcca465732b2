"""What the tail of a forward pass costs, from the logits to class ids at the image's size, beside its plain form.

`python -m benchmarks.tail [--rounds N]` prints a table and writes benchmarks/results/tail.json. The plain form resizes
the logits twice, whole, and takes softmax and maximum of what it gets: `upsample_argmax_reference`. Ours makes a block
of rows at a time by two matrix products. ms is CPU time over all threads (on CUDA: wall time), the median of rounds in
which both take turns; MB what was allocated at once beyond the logits, as torch's own allocator counts it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.forward import measure
from benchmarks.heads import peak_memory
from benchmarks.machine import describe
from models.ops.upsample import Size, upsample_argmax, upsample_argmax_reference

RESULTS = Path(__file__).parent / "results" / "tail.json"


class Setting(NamedTuple):
    classes: int
    grid: Size
    input_size: Size
    original: Size


SETTINGS = {
    "bundled model, 480x360": Setting(11, (120, 160), (480, 640), (360, 480)),
    "19 classes, 769x769 to 2048x1024": Setting(19, (97, 97), (769, 769), (1024, 2048)),
    "19 classes, 2048x1024": Setting(19, (128, 256), (1024, 2048), (1024, 2048)),
    "150 classes, 2048x1024": Setting(150, (128, 256), (1024, 2048), (1024, 2048)),
}


def compare(setting: Setting, rounds: int, device: torch.device) -> dict[str, Mapping[str, float]]:
    """Seconds and peak bytes of the plain form and of ours, and the share of pixels on whose class they agree."""
    logits = 3 * torch.randn(setting.classes, *setting.grid, device=device)
    forms = {
        name: partial(form, logits, setting.input_size, setting.original, align_corners=False)
        for name, form in (("plain", upsample_argmax_reference), ("ours", upsample_argmax))
    }
    agreement = (forms["plain"]()[0] == forms["ours"]()[0]).float().mean().item()
    seconds = measure(dict(forms), rounds, device)
    peak = {name: peak_memory(form, device) for name, form in forms.items()}
    return {"seconds": seconds, "peak_bytes": peak, "agreement": {"ids": agreement}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"on {device}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"{'':<36}{'plain ms':>10}{'ours ms':>10}{'plain MB':>10}{'ours MB':>10}{'agree':>12}")
    costs = {}
    with torch.inference_mode():
        for name, setting in SETTINGS.items():
            costs[name] = cost = compare(setting, rounds, device)
            numbers = [1000 * cost["seconds"][form] for form in ("plain", "ours")]
            numbers += [cost["peak_bytes"][form] / 1e6 for form in ("plain", "ours")]
            print(f"{name:<36}" + "".join(f"{x:10.1f}" for x in numbers) + f"{cost['agreement']['ids']:12.7f}")
    RESULTS.write_text(
        json.dumps(
            {
                "measured_on": {**describe(device), "rounds": rounds},
                "costs": costs,
            },
            indent=2,
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
