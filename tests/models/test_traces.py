from __future__ import annotations

import dataclasses

import pytest
import torch

from models.traces import Trace


@pytest.fixture
def trace() -> Trace:
    query, key = torch.randn(3, 4, 5, 6), torch.randn(3, 4, 110)
    return Trace("apnb", 1, query, key, scale=0.5, pool_scales=(1, 3, 6, 8))


def test_grid_is_the_querys_with_and_without_a_batch(trace: Trace) -> None:
    assert trace.grid == trace.of_image(0).grid == (5, 6)


def test_bytes_are_those_of_query_and_key(trace: Trace) -> None:
    assert trace.nbytes == 4 * 3 * 4 * (30 + 110)
    assert trace.of_image(0).nbytes == 4 * 4 * (30 + 110)
    with_totals = dataclasses.replace(trace, logsumexp=torch.randn(3, 5, 6))
    assert with_totals.of_image(0).nbytes == 4 * (4 * (30 + 110) + 30)


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize(
    ("dtype", "kept"),
    [(torch.float64, torch.float32), (torch.float32, torch.float32), (torch.bfloat16, torch.float16)],
)
def test_an_images_trace_is_its_own_and_as_exact(
    trace: Trace, index: int, dtype: torch.dtype, kept: torch.dtype
) -> None:
    totals = torch.randn(3, 5, 6)
    batch = dataclasses.replace(trace, query=trace.query.to(dtype), key=trace.key.to(dtype), logsumexp=totals)
    alone = batch.of_image(index)
    assert alone.logsumexp is not None
    for mine, its in ((alone.query, batch.query), (alone.key, batch.key)):
        assert mine.dtype == kept
        torch.testing.assert_close(mine.float(), its[index].float(), rtol=0, atol=0)
    assert torch.equal(alone.logsumexp, totals[index])
    assert alone.logsumexp.untyped_storage().nbytes() == alone.logsumexp.nbytes
    assert (alone.block, alone.step, alone.scale, alone.pool_scales) == ("apnb", 1, 0.5, (1, 3, 6, 8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_an_images_trace_does_not_keep_the_batch_alive(trace: Trace, dtype: torch.dtype) -> None:
    batch = dataclasses.replace(trace, query=trace.query.to(dtype), key=trace.key.to(dtype))
    alone = batch.of_image(1)
    for mine, whole in ((alone.query, batch.query), (alone.key, batch.key)):
        assert mine.untyped_storage().nbytes() == mine.nbytes
        assert mine.untyped_storage().data_ptr() != whole.untyped_storage().data_ptr()


def test_an_images_trace_has_no_gradient_and_one_layout(trace: Trace) -> None:
    query = trace.query.contiguous(memory_format=torch.channels_last).requires_grad_()
    alone = dataclasses.replace(trace, query=query).of_image(0)
    assert not alone.query.requires_grad
    assert alone.query.is_contiguous()


def test_a_trace_is_frozen(trace: Trace) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        trace.step = 2  # type: ignore[misc]


def test_values_beyond_half_stay_finite() -> None:
    large = torch.tensor([1e5, -1e5, 65280.0], dtype=torch.bfloat16).view(1, 3, 1, 1)
    alone = Trace("nl", 1, large, large).of_image(0)
    assert alone.query.flatten().tolist() == alone.key.flatten().tolist() == [65504, -65504, 65280]
