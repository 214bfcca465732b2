from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.parity import compare, error, tamed
from tests.models.reference import Sizes, random_state, shapes_of


def test_all_agree_on_a_small_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.parity.full_size", lambda *_: Sizes())
    row = compare("official_ann", 50, tmp_path)
    assert 0 < max(row.ours, row.served, row.reference) < 1e-4
    assert row.other_class < 0.01


def test_an_error_is_a_share_of_the_largest() -> None:
    assert error(torch.tensor([1.0, -4.5]), torch.tensor([1.0, -5.0])) == 0.1


def test_residual_branches_are_small_and_nothing_else_is() -> None:
    state = random_state(shapes_of("ccnet", Sizes()))
    changed = {key for key, tensor in tamed(state).items() if not torch.equal(tensor, state[key])}
    assert changed == {key for key in state if key.endswith(".bn3.weight")}
