"""Products with a block's whole attention against the plain matrix in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.attention_matrices import PyramidMatrix, matrix_of
from models.traces import Trace

GRIDS = [(5, 7), (7, 5), (6, 6), (1, 9), (9, 1), (1, 1), (2, 3)]
SCALES = (1, 3, 6, 8)
Plain = Callable[[Trace], Tensor]


@pytest.fixture
def plain(criss_cross_map: Callable[[Tensor, Tensor], Tensor]) -> Plain:
    """A block's attention as a matrix [HW, HW]."""

    def plain(trace: Trace) -> Tensor:
        query, key = trace.query.double(), trace.key.double()
        if trace.block == "cca":
            return criss_cross_map(query[None] * trace.scale, key[None])[0]
        weights = (trace.scale * query.flatten(1).T @ key.flatten(1)).softmax(1)
        if not trace.pool_scales:
            return weights
        cells = torch.eye(query[0].numel(), dtype=torch.float64).view(-1, 1, *trace.grid)
        pooled = torch.cat([F.adaptive_avg_pool2d(cells, scale).flatten(1) for scale in trace.pool_scales], 1)
        return weights @ pooled.T

    return plain


def trace_of(block: str, grid: tuple[int, int]) -> Trace:
    draw = torch.Generator().manual_seed(sum(grid))
    query = torch.randn(4, *grid, generator=draw).half()
    if block == "apnb":
        return Trace("apnb", 1, query, torch.randn(4, 110, generator=draw).half(), 0.5, SCALES)
    key = torch.randn(4, *grid, generator=draw).half()
    return Trace("cca", 1, query, key, scale=1.5) if block == "cca" else Trace("nl", 1, query, key, scale=0.5)


def some_cells(grid: tuple[int, int]) -> Tensor:
    cells = torch.rand(grid, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    cells[torch.rand(grid, generator=torch.Generator().manual_seed(2)) > 0.5] = 0.0
    return cells


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("block", ["cca", "apnb", "nl"])
def test_products(block: str, grid: tuple[int, int], plain: Plain) -> None:
    trace, cells = trace_of(block, grid), some_cells(grid)
    matrix, expected = matrix_of(trace), plain(trace)
    for got, product in (
        (matrix.looked_at(cells), cells.flatten() @ expected),
        (matrix.looking_at(cells), expected @ cells.flatten()),
    ):
        assert got.dtype == torch.float64
        torch.testing.assert_close(got, product.view(grid), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("block", ["cca", "apnb", "nl"])
def test_large_ones_in_single_precision(block: str, plain: Plain, monkeypatch: pytest.MonkeyPatch) -> None:
    trace, cells = trace_of(block, (12, 15)), some_cells((12, 15))
    exact = matrix_of(trace)
    monkeypatch.setattr("models.attention_matrices.MOST_EXACT", 0)
    monkeypatch.setattr("models.attention_matrices.CHUNK", 7 * 180)
    matrix, expected = matrix_of(trace), plain(trace)
    assert matrix.nbytes < exact.nbytes
    for got, product in (
        (matrix.looked_at(cells), cells.flatten() @ expected),
        (matrix.looking_at(cells), expected @ cells.flatten()),
    ):
        torch.testing.assert_close(got, product.view(12, 15), rtol=2e-5, atol=1e-8)


def test_levels_of_a_pyramid_add_up() -> None:
    trace, cells = trace_of("apnb", (9, 12)), some_cells((9, 12))
    matrix = matrix_of(trace)
    assert isinstance(matrix, PyramidMatrix)
    parts = [matrix.looking_at(cells, level) for level in SCALES]
    torch.testing.assert_close(torch.stack(parts).sum(0), matrix.looking_at(cells), rtol=1e-9, atol=1e-15)


def test_a_weight_too_small_for_single_precision_is_kept() -> None:
    trace = Trace("cca", 1, torch.ones(1, 1, 2).half(), torch.tensor([[[0.0, 150.0]]]).half())
    weights = matrix_of(trace).looked_at(torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    torch.testing.assert_close(weights, torch.tensor([[0.0, 150.0]], dtype=torch.float64).softmax(1), rtol=1e-9, atol=0)
