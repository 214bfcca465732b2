"""Every view that is timed can be asked for."""

from __future__ import annotations

import pytest

from benchmarks import attention_views as benchmark


def test_views_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "GRID", (6, 8))
    monkeypatch.setattr(benchmark, "SIZE", (48, 64))
    for block, record in benchmark.records().items():
        for _, fields in benchmark.questions(block):
            row = benchmark.measure(record, fields, 0.0)
            assert row.keys() == {"first", "ms", "kept_mb"}
            assert min(row.values()) >= 0
            row = benchmark.measure_class(record, fields, 0.0)
            assert row.keys() == {"first", "ms", "again", "kept_mb"}
            assert min(row.values()) >= 0
