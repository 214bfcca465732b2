"""What is measured: everything on a GPU, tiny sizes where it is only to be shown that it runs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

Run = Callable[[], object]
Row = dict[str, str | float]
Grid = tuple[int, int]  # height, width


class Scope(NamedTuple):
    """
    Attributes:
        channels: of queries and keys, and of values
        blocks: queries, keys, value channels, warps
        depths: of the whole models' ResNets
        sizes, batches: that they are given
        checkpoint: whether a ccnet_r50-d8 is served beside the bundled CCNet
        clients: numbers of them, each of which sends as soon as it is answered
        seconds: of each number of clients, and before it is counted
        rounds: in which attention is wanted and not wanted
    """

    grids: Sequence[Grid]
    channels: tuple[int, int]
    dtypes: Sequence[torch.dtype]
    blocks: Sequence[tuple[int, int, int, int]]
    depths: Sequence[int]
    sizes: Sequence[Grid]
    batches: Sequence[int]
    checkpoint: bool
    clients: Sequence[int]
    seconds: tuple[float, float]
    rounds: int


FULL = Scope(
    ((64, 128), (97, 97), (128, 256)),
    (64, 512),
    (torch.bfloat16, torch.float16, torch.float32),
    list(itertools.product((32, 64, 128), (32, 64), (128, 256, 512), (4, 8))),
    (50, 101),
    ((512, 1024), (769, 769), (1024, 2048)),
    (1, 2, 4, 8, 16),
    checkpoint=True,
    clients=(1, 16, 64),
    seconds=(6.0, 2.0),
    rounds=200,
)
QUICK = Scope(
    ((5, 7),),
    (6, 16),
    (torch.bfloat16, torch.float32),
    [(16, 16, 16, 4)],
    (50,),
    ((33, 41),),
    (1,),
    checkpoint=False,
    clients=(2,),
    seconds=(3.0, 0.0),
    rounds=1,
)
