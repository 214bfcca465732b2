from __future__ import annotations

import logging
import sys
from collections.abc import Iterator

import pytest
import torch

from models.ops import upsample
from models.ops.launching import can_launch


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    for remembered in (can_launch, upsample._kernel):
        remembered.cache_clear()
    yield
    for remembered in (can_launch, upsample._kernel):
        remembered.cache_clear()


def test_kernels_run_where_they_are_interpreted_or_there_is_a_gpu() -> None:
    pytest.importorskip("triton", reason="no Triton")
    assert can_launch()
    assert upsample._kernel() is not None


def test_not_without_triton(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    assert not can_launch()
    assert upsample._kernel() is None
    assert caplog.records == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver")
def test_not_without_what_triton_launches_them_by(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Here a driver. Without a compiler it is an error of the same type."""
    triton = pytest.importorskip("triton", reason="no Triton")
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    with caplog.at_level(logging.WARNING, "models.ops.launching"):
        assert not can_launch()
    assert upsample._kernel() is None
    (record,) = caplog.records
    assert "driver" in record.message
