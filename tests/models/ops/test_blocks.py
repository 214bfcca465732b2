from __future__ import annotations

import pytest
import torch

from models.ops.blocks import blocks, runs_in_place


@pytest.mark.parametrize(("lines", "affinities"), [(7, 33), (7, 200), (5, 1), (1, 4)])
def test_blocks_cover_each_line_once_and_keep_within_the_limit(lines: int, affinities: int) -> None:
    parts = [range(lines)[part] for part in blocks(lines, affinities, 100)]
    assert [line for part in parts for line in part] == list(range(lines))
    assert all(len(part) * affinities <= max(affinities, 100) for part in parts)


def test_plain_inference_alone_runs_in_place() -> None:
    learnt, plain = torch.ones(2, requires_grad=True), torch.ones(2)
    assert runs_in_place(plain, plain.double())
    assert not runs_in_place(plain, learnt)
    assert not runs_in_place(plain, plain.half())
    assert not runs_in_place(plain, plain.to("meta"))
    with torch.no_grad():
        assert runs_in_place(plain, learnt)
