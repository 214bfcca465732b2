"""The logits that every architecture must give: `python -m tests.models.golden.networks` writes them.

They are computed in float64 by the networks written out in tests/models/reference.py, never by ours, from weights and
an image that are made by a rule. To be written again only if the rule or the networks change.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from tests.models.reference import NETWORKS, Ruled, Sizes, State, logits_of, ruled_state, shapes_of

FILE = Path(__file__).with_name("networks.safetensors")
# Every width differs from every other, so that none can stand for another; the size is of no stride a multiple.
SIZES = Sizes((2, 1, 3, 2), (5, 9), (4, 6, 8, 10), 20, 7, 11)
BASIC = Sizes((1, 2, 2, 1), (4, 8), (8, 9, 10, 12), 16, 3, 11, basic=True)
HEIGHT, WIDTH = 65, 91


def golden_state(name: str, sizes: Sizes) -> State:
    return ruled_state(shapes_of(name, sizes))


def golden_image() -> Tensor:
    return Ruled().normal((1, 3, HEIGHT, WIDTH))


def cases() -> dict[str, tuple[str, Sizes]]:
    """Name in the file to the network and its sizes: each network with bottlenecks, and one with basic blocks."""
    return {**{name: (name, SIZES) for name in NETWORKS}, "ccnet_basic": ("ccnet", BASIC)}


def main() -> None:
    golden = {}
    for case, (name, sizes) in cases().items():
        state = {key: tensor.double() for key, tensor in golden_state(name, sizes).items()}
        golden[case] = logits_of(name, state, golden_image().double()).float().contiguous()
    save_file(golden, FILE)


if __name__ == "__main__":
    main()
