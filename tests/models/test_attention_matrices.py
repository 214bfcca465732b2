"""Products with a block's whole attention against the plain matrix in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from models.attention_maps import back_projected_map
from models.attention_matrices import CrissCrossMatrix, PyramidMatrix
from models.traces import Trace

GRIDS = [(5, 7), (7, 5), (6, 6), (1, 9), (9, 1), (1, 1), (2, 3)]
SCALES = (1, 3, 6, 8)
MATRICES = {"cca": CrissCrossMatrix, "apnb": PyramidMatrix}
Plain = Callable[[Trace], Tensor]


def trace_of(block: str, grid: tuple[int, int]) -> Trace:
    draw = torch.Generator().manual_seed(sum(grid))
    query = torch.randn(4, *grid, generator=draw).half()
    if block == "apnb":
        return Trace("apnb", 1, query, torch.randn(4, 110, generator=draw).half(), 0.5, SCALES)
    return Trace("cca", 1, query, torch.randn(4, *grid, generator=draw).half(), scale=1.5)


def some_cells(grid: tuple[int, int]) -> Tensor:
    """Within a corner, as classes are."""
    cells = torch.rand(grid, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    cells[torch.rand(grid, generator=torch.Generator().manual_seed(2)) > 0.5] = 0.0
    cells[: grid[0] // 3] = 0.0
    cells[:, -(grid[1] // 4) or grid[1] :] = 0.0
    return cells


def looked_at(matrix: CrissCrossMatrix | PyramidMatrix, cells: Tensor) -> Tensor:
    if isinstance(matrix, CrissCrossMatrix):
        return matrix.looked_at(cells)
    return back_projected_map(matrix.anchors(cells), (cells.shape[0], cells.shape[1]))


@pytest.mark.parametrize("cells", ["some", "all", "none"])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("block", ["cca", "apnb"])
def test_products(block: str, grid: tuple[int, int], cells: str, plain_attention: Plain) -> None:
    trace, expected = trace_of(block, grid), plain_attention(trace_of(block, grid))
    given = {"some": some_cells(grid), "all": torch.ones(grid).double(), "none": torch.zeros(grid).double()}[cells]
    matrix = MATRICES[block](trace)
    for got, product in (
        (looked_at(matrix, given), given.flatten() @ expected),
        (matrix.looking_at(given), expected @ given.flatten()),
    ):
        assert got.dtype == torch.float64
        torch.testing.assert_close(got, product.view(grid), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("block", ["cca", "apnb"])
def test_large_ones_in_single_precision(block: str, plain_attention: Plain, monkeypatch: pytest.MonkeyPatch) -> None:
    trace, cells = trace_of(block, (12, 15)), some_cells((12, 15))
    exact = MATRICES[block](trace)
    monkeypatch.setattr("models.attention_totals.MOST_EXACT", 0)
    monkeypatch.setattr("models.attention_totals.TILE", 30)  # some lines at a time
    matrix, expected = MATRICES[block](trace), plain_attention(trace)
    assert matrix.nbytes == exact.nbytes / 2
    for got, product in (
        (looked_at(matrix, cells), cells.flatten() @ expected),
        (matrix.looking_at(cells), expected @ cells.flatten()),
    ):
        torch.testing.assert_close(got, product.view(12, 15), rtol=1e-5, atol=1e-9)


def test_levels_of_a_pyramid_add_up() -> None:
    trace, cells = trace_of("apnb", (9, 12)), some_cells((9, 12))
    matrix = PyramidMatrix(trace)
    parts = [matrix.looking_at(cells, level) for level in SCALES]
    torch.testing.assert_close(torch.stack(parts).sum(0), matrix.looking_at(cells), rtol=1e-9, atol=1e-15)


def test_a_weight_too_small_for_single_precision_is_kept() -> None:
    trace = Trace("cca", 1, torch.ones(1, 1, 2).half(), torch.tensor([[[0.0, 150.0]]]).half())
    weights = CrissCrossMatrix(trace).looked_at(torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    torch.testing.assert_close(weights, torch.tensor([[0.0, 150.0]], dtype=torch.float64).softmax(1), rtol=1e-9, atol=0)
