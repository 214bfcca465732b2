"""Matrices are made once, and the least recently used go first."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from app.api.matrices import Matrices
from models import Trace
from models.attention_matrices import Matrix, matrix_of

PATIENCE = 20.0  # seconds


def test_a_matrix_is_made_once(dense_trace: Trace) -> None:
    matrices = Matrices(1 << 30)
    first = matrices.get("a", dense_trace)
    assert matrices.get("a", dense_trace) is first
    assert matrices.get("b", dense_trace) is not first
    assert matrices.get("a", replace(dense_trace, step=2)) is not first
    assert matrices.nbytes == 3 * first.nbytes


def test_the_least_recently_used_goes(pyramid_traces: tuple[Trace, ...]) -> None:
    matrices = Matrices(1 << 30)
    first, second = matrices.get("a", pyramid_traces[0]), matrices.get("a", pyramid_traces[1])
    matrices.max_bytes = matrices.nbytes
    assert matrices.get("a", pyramid_traces[0]) is first
    matrices.get("b", pyramid_traces[0])
    assert matrices.nbytes <= matrices.max_bytes
    assert matrices.get("a", pyramid_traces[0]) is first
    assert matrices.get("a", pyramid_traces[1]) is not second


def test_one_is_kept_however_large(dense_trace: Trace) -> None:
    matrices = Matrices(1)
    assert matrices.get("a", dense_trace) is matrices.get("a", dense_trace)


def test_a_slow_matrix_holds_up_only_those_who_want_it(monkeypatch: pytest.MonkeyPatch, dense_trace: Trace) -> None:
    slow, begun, may_end, made = replace(dense_trace, step=2), threading.Event(), threading.Event(), []

    def make(trace: Trace) -> Matrix:
        made.append(trace.step)
        if trace is slow:
            begun.set()
            assert may_end.wait(PATIENCE)
        return matrix_of(trace)

    monkeypatch.setattr("app.api.matrices.matrix_of", make)
    matrices = Matrices(1 << 30)
    with ThreadPoolExecutor(3) as threads:
        first = threads.submit(matrices.get, "a", slow)
        assert begun.wait(PATIENCE)
        second = threads.submit(matrices.get, "a", slow)
        threads.submit(matrices.get, "a", dense_trace).result(PATIENCE)
        assert not first.done()
        assert not second.done()
        may_end.set()
        assert first.result(PATIENCE) is second.result(PATIENCE)
    assert made == [2, 1]


def test_after_a_failure_the_next_tries_again(monkeypatch: pytest.MonkeyPatch, dense_trace: Trace) -> None:
    def fail(trace: Trace) -> Matrix:
        raise MemoryError

    matrices = Matrices(1 << 30)
    with monkeypatch.context() as patched:
        patched.setattr("app.api.matrices.matrix_of", fail)
        with pytest.raises(MemoryError):
            matrices.get("a", dense_trace)
    assert matrices.get("a", dense_trace).nbytes == matrices.nbytes > 0


def test_those_of_a_result_are_forgotten(dense_trace: Trace) -> None:
    matrices = Matrices(1 << 30)
    kept = matrices.get("b", dense_trace)
    for step in (1, 2):
        matrices.get("a", replace(dense_trace, step=step))
    matrices.forget("a")
    matrices.forget("never there")
    assert matrices.nbytes == kept.nbytes
    assert matrices.get("b", dense_trace) is kept
