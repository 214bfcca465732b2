"""Matrices are made once, and the least recently used go first."""

from __future__ import annotations

from dataclasses import replace

from app.api.matrices import Matrices
from models import Trace


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
