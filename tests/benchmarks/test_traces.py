from __future__ import annotations

import pytest
import torch

from app.engine.worker import Worker
from benchmarks import traces
from benchmarks.traces import MODEL, cost
from models import get_spec


def test_both_ways_are_timed() -> None:
    worker = Worker("cpu", 1)
    worker.load(get_spec(MODEL), MODEL)
    figures = cost(worker, MODEL, (32, 48), rounds=2)
    assert list(figures) == [
        *("forward ms", "forward ms, wanted", "forward, more"),
        *("pass ms", "pass ms, wanted", "pass, more"),
    ]
    assert 0 < figures["forward ms"] < figures["pass ms"]


def test_a_share_is_of_what_a_pass_takes_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds_of(worker: object, key: str, size: object, *, wanted: bool) -> tuple[float, float]:
        return (0.101, 0.11) if wanted else (0.1, 0.1)

    monkeypatch.setattr(traces, "seconds_of", seconds_of)
    figures = cost(torch.device("cpu"), "", (1, 1), rounds=3)
    assert figures["forward, more"] == pytest.approx(0.01)
    assert figures["pass, more"] == pytest.approx(0.1)
