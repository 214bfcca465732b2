from __future__ import annotations

import pytest
import torch

from models.ops.blocks import lines_at_once, runs_in_place


@pytest.mark.parametrize(("affinities", "lines"), [(33, 3), (100, 1), (200, 1), (1, 100)])
def test_as_many_lines_as_keep_within_the_limit_and_one_at_least(affinities: int, lines: int) -> None:
    assert lines_at_once(affinities, 100) == lines


def test_plain_inference_alone_runs_in_place() -> None:
    learnt, plain = torch.ones(2, requires_grad=True), torch.ones(2)
    assert runs_in_place(plain, plain.double())
    assert not runs_in_place(plain, learnt)
    assert not runs_in_place(plain, plain.half())
    assert not runs_in_place(plain, plain.to("meta"))
    with torch.no_grad():
        assert runs_in_place(plain, learnt)
