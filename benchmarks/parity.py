"""Full-size networks of every source, loaded from their checkpoints, beside the source's own network written out.

`python -m benchmarks.parity` makes a checkpoint with random weights for each network that is read (seven of
mmsegmentation's, the official CCNet and ANN), at full width and at the depth of ResNet-50 and ResNet-101, loads it, and
compares logits at odd sizes with those of tests/models/reference.py. It prints a table and writes
benchmarks/results/parity.json.

Errors are the largest over all logits, as a share of the largest logit, from the reference in float64:
- ours: the loaded network in float32;
- served: the same, its norms folded and its convolutions fused, as the service runs it on a CPU in float32;
- reference: the reference in float32, which is what rounding alone does.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.machine import describe
from models.checkpoint import load_segmentor
from models.folding import fold_batch_norm
from models.fused import can_fuse, fuse_convolutions
from models.operators import choose_operators
from models.segmentor import Segmentor
from tests.models.reference import NETWORKS, State, full_size, logits_of, random_state, shapes_of

RESULTS = Path(__file__).parent / "results" / "parity.json"
DEPTHS = (50, 101)
IMAGES = ((97, 129), (161, 75))


@dataclass(frozen=True)
class Row:
    """
    Attributes:
        ours, served, reference: largest errors, see above
        other_class: share of the cells to which ours gives another class than the reference does
    """

    network: str
    depth: int
    million_parameters: float
    ours: float
    served: float
    reference: float
    other_class: float


def as_served(path: Path, image: Tensor) -> Segmentor:
    segmentor = load_segmentor(path)
    fold_batch_norm(segmentor)
    choose_operators(segmentor, torch.device("cpu"), reference=False)
    if can_fuse():
        fuse_convolutions(segmentor, image, reduced=False)
    return segmentor


def compare(name: str, depth: int, folder: Path) -> Row:
    state = tamed(random_state(shapes_of(name, full_size(name, depth)), seed=depth))
    path = folder / f"{name}.pth"
    torch.save(state, path)
    images = [torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(size[0])) for size in IMAGES]
    loaded, served = load_segmentor(path), as_served(path, images[0])
    exact = [logits_of(name, in_float64(state), image.double()) for image in images]
    with torch.inference_mode():
        ours = [loaded(image).logits for image in images]
        of_ours, of_served, of_reference = (
            max(error(got, want) for got, want in zip(logits, exact, strict=True))
            for logits in (
                ours,
                [served(image).logits for image in images],
                [logits_of(name, state, image) for image in images],
            )
        )
    cells = [(got.argmax(1) != want.argmax(1)).float().flatten() for got, want in zip(ours, exact, strict=True)]
    parameters = sum(parameter.numel() for parameter in loaded.parameters())
    other_class = torch.cat(cells).mean().item()
    return Row(name, depth, round(parameters / 1e6, 2), of_ours, of_served, of_reference, other_class)


def tamed(state: State) -> State:
    """With small residual branches, as trained networks have them.

    Else activations grow from block to block until affinities, which CCNet and DANet do not scale, are of the order of
    1e9, and attention is a choice between what float32 cannot tell apart.
    """
    return {key: tensor / 4 if key.endswith(".bn3.weight") else tensor for key, tensor in state.items()}


def in_float64(state: State) -> State:
    return {key: tensor.double() if tensor.is_floating_point() else tensor for key, tensor in state.items()}


def error(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape
    return float(f"{((got - want).abs().max() / want.abs().max()).item():.2e}")


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rows = []
    print("| network | depth | M parameters | ours | served | reference | other class |\n|" + " --- |" * 7)
    started = time.monotonic()
    for name in NETWORKS:
        for depth in DEPTHS:
            with tempfile.TemporaryDirectory() as folder:
                row = compare(name, depth, Path(folder))
            rows.append(vars(row))
            print("|", " | ".join(str(value) for value in vars(row).values()), "|", flush=True)
    print(f"{time.monotonic() - started:.0f} s")
    sizes = [f"{width}x{height}" for height, width in IMAGES]
    document = {"measured_on": describe(torch.device("cpu")), "images": sizes, "rows": rows}
    RESULTS.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
