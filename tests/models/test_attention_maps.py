"""Attention maps against the plain computation: whole matrices over all positions, in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.attention_maps import (
    anchor_weights,
    back_projected_map,
    cell_of,
    cells_of,
    composed_criss_cross_map,
    criss_cross_map,
    dense_map,
    one_cell,
    rollout_criss_cross_map,
    with_residual,
)
from models.ops.attention import pyramid_pool
from models.traces import Trace

GRIDS = [(5, 7), (7, 5), (6, 6), (1, 9), (9, 1), (1, 1), (2, 3)]
SCALES = (1, 3, 6, 8)
Plain = Callable[[Trace], Tensor]


def cross_trace(grid: tuple[int, int], step: int = 1, spread: float = 1.0) -> Trace:
    return Trace("cca", step, torch.randn(4, *grid) * spread, torch.randn(4, *grid))


def pyramid_trace(grid: tuple[int, int], scales: tuple[int, ...] = SCALES) -> Trace:
    anchors = sum(scale * scale for scale in scales)
    return Trace("apnb", 1, torch.randn(4, *grid), torch.randn(4, anchors), scale=0.5, pool_scales=scales)


def cells(grid: tuple[int, int]) -> list[tuple[int, int]]:
    return [(row, column) for row in range(grid[0]) for column in range(grid[1])]


def assert_is(got: Tensor, expected: Tensor, grid: tuple[int, int]) -> None:
    assert got.shape == grid
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, expected.view(grid), rtol=1e-9, atol=0)


@pytest.mark.parametrize("spread", [1.0, 20.0])
@pytest.mark.parametrize("grid", GRIDS)
def test_one_pass_is_a_row_of_the_plain_attention(grid: tuple[int, int], spread: float, plain_attention: Plain) -> None:
    trace = cross_trace(grid, spread=spread)
    for expected, cell in zip(plain_attention(trace), cells(grid), strict=True):
        assert_is(criss_cross_map(trace, cell), expected, grid)


@pytest.mark.parametrize("spread", [1.0, 50.0])
@pytest.mark.parametrize("grid", GRIDS)
def test_one_pass_is_a_cross_that_sums_to_one(grid: tuple[int, int], spread: float) -> None:
    trace = cross_trace(grid, spread=spread)
    for row, column in cells(grid):
        weights = criss_cross_map(trace, (row, column))
        assert weights.sum() == pytest.approx(1, abs=1e-12)
        assert torch.count_nonzero(weights) == sum(grid) - 1
        weights[row], weights[:, column] = 0, 0
        assert not weights.any()


@pytest.mark.parametrize("grid", GRIDS)
def test_two_passes_are_a_row_of_the_product(grid: tuple[int, int], plain_attention: Plain) -> None:
    first, second = cross_trace(grid, 1), cross_trace(grid, 2)
    product = plain_attention(second) @ plain_attention(first)
    for expected, cell in zip(product, cells(grid), strict=True):
        weights = composed_criss_cross_map(first, second, cell)
        assert_is(weights, expected, grid)
        assert weights.sum() == pytest.approx(1, abs=1e-12)
        assert (weights > 0).all()


@pytest.mark.parametrize("gamma", [0.7, -0.02, 0.0, None])
@pytest.mark.parametrize("grid", GRIDS)
def test_rollout_is_a_row_of_the_product_with_residuals(
    grid: tuple[int, int], gamma: float | None, plain_attention: Plain
) -> None:
    factor = None if gamma is None else torch.tensor(gamma, dtype=torch.float64)
    first, second = (replace(cross_trace(grid, step), gamma=factor) for step in (1, 2))
    size = abs(1.0 if gamma is None else gamma)
    one, two = (
        (size * plain_attention(trace) + torch.eye(grid[0] * grid[1])) / (1 + size) for trace in (first, second)
    )
    for expected, cell in zip(two @ one, cells(grid), strict=True):
        weights = rollout_criss_cross_map(first, second, cell)
        assert_is(weights, expected, grid)
        assert weights.sum() == pytest.approx(1, abs=1e-12)
    step = with_residual(first, criss_cross_map(first, cell), one_cell(cell, grid))
    assert_is(step, one[-1], grid)


@pytest.mark.parametrize("size", [(6, 8), (24, 32), (25, 31), (3, 5), (1, 1), (700, 2)])
@pytest.mark.parametrize("grid", [(6, 8), (1, 1), (5, 3)])
def test_the_share_of_a_cell_is_that_of_its_pixels(size: tuple[int, int], grid: tuple[int, int]) -> None:
    member = np.random.default_rng(0).random(size) < 0.4
    expected = np.zeros(grid)
    for y, x in np.argwhere(member):
        expected[cell_of(x, y, size[1], size[0], grid)] += 1 / member.sum()
    np.testing.assert_allclose(cells_of(member, grid).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("grid", GRIDS)
def test_a_dense_map_is_a_row_of_the_plain_attention(grid: tuple[int, int], plain_attention: Plain) -> None:
    trace = Trace("nl", 1, torch.randn(4, *grid), torch.randn(4, *grid), scale=0.5)
    for expected, cell in zip(plain_attention(trace), cells(grid), strict=True):
        assert_is(dense_map(trace, cell), expected, grid)


@pytest.mark.parametrize("grid", [(5, 7), (12, 9), (1, 1)])
def test_the_weights_of_anchors_are_a_softmax_over_pooled_keys(grid: tuple[int, int]) -> None:
    trace = pyramid_trace(grid)
    affinity = 0.5 * trace.query.double().flatten(1).T @ trace.key.double()
    for expected, cell in zip(affinity.softmax(1), cells(grid), strict=True):
        anchors = anchor_weights(trace, cell)
        assert {scale: tuple(part.shape) for scale, part in anchors.items()} == {s: (s, s) for s in SCALES}
        joined = torch.cat([part.flatten() for part in anchors.values()])
        torch.testing.assert_close(joined, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("grid", [(5, 7), (8, 8), (12, 9), (17, 33), (1, 9), (9, 1), (1, 1), (3, 60)])
def test_back_projection_reads_the_same_from_any_value(grid: tuple[int, int]) -> None:
    """Weights on pooled values are the back-projected weights on the values themselves."""
    anchors = anchor_weights(pyramid_trace(grid), (0, 0))
    value = torch.randn(1, 6, *grid, dtype=torch.float64)
    projected = back_projected_map(anchors, grid)
    pooled = pyramid_pool(value, SCALES)[0]
    joined = torch.cat([part.flatten() for part in anchors.values()])
    torch.testing.assert_close(value[0].flatten(1) @ projected.flatten(), pooled @ joined, rtol=1e-9, atol=1e-12)
    assert projected.sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("scale", SCALES)
def test_back_projection_is_the_transpose_of_pooling(scale: int) -> None:
    grid, weights = (11, 13), torch.rand(scale, scale, dtype=torch.float64)
    value = torch.randn(1, 1, *grid, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad((F.adaptive_avg_pool2d(value, scale)[0, 0] * weights).sum(), value)
    torch.testing.assert_close(back_projected_map({scale: weights}, grid), gradient[0, 0])


def test_halves_are_computed_in_double_precision() -> None:
    """Affinities of stored traces reach beyond what a half can hold."""
    query, key = (torch.full((8, 3, 4), 300.0).half() for _ in range(2))
    trace = Trace("cca", 1, query, key)
    torch.testing.assert_close(criss_cross_map(trace, (1, 1))[1], torch.full((4,), 1 / 6, dtype=torch.float64))
    torch.testing.assert_close(dense_map(trace, (1, 1)), torch.full((3, 4), 1 / 12, dtype=torch.float64))


def test_a_weight_too_small_for_single_precision_is_kept() -> None:
    query, key = torch.ones(1, 1, 2).half(), torch.tensor([[[0.0, 150.0]]]).half()
    expected = torch.tensor([[0.0, 150.0]], dtype=torch.float64).softmax(1)
    assert expected.float()[0, 0] == 0
    for weights in (
        dense_map(Trace("nl", 1, query, key), (0, 0)),
        criss_cross_map(Trace("cca", 1, query, key), (0, 0)),
    ):
        assert_is(weights, expected, (1, 2))


def test_traces_stay_as_they_are() -> None:
    first, second = cross_trace((4, 5), 1), cross_trace((4, 5), 2)
    copies = [tensor.clone() for trace in (first, second) for tensor in (trace.query, trace.key)]
    composed_criss_cross_map(first, second, (2, 2))
    kept = [tensor for trace in (first, second) for tensor in (trace.query, trace.key)]
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(kept, copies, strict=True))


@pytest.mark.parametrize(
    ("point", "size", "grid", "cell"),
    [
        ((0, 0), (480, 360), (45, 60), (0, 0)),
        ((479, 359), (480, 360), (45, 60), (44, 59)),
        ((7, 8), (480, 360), (45, 60), (1, 0)),
        ((8, 7), (480, 360), (45, 60), (0, 1)),
        ((0, 0), (1, 1), (45, 60), (22, 30)),
        ((4, 4), (5, 5), (1, 1), (0, 0)),
        ((2, 0), (5, 3), (2, 2), (0, 1)),
        ((999, 0), (1000, 1), (1, 60), (0, 59)),
        ((0, 999), (1, 1000), (60, 1), (59, 0)),
    ],
)
def test_cell_of(point: tuple[int, int], size: tuple[int, int], grid: tuple[int, int], cell: tuple[int, int]) -> None:
    assert cell_of(*point, *size, grid) == cell


@pytest.mark.parametrize(("width", "height"), [(1, 1), (7, 5), (60, 45), (481, 359), (101, 3)])
@pytest.mark.parametrize("grid", [(1, 1), (5, 3), (45, 60)])
def test_cells_cover_the_grid_evenly(width: int, height: int, grid: tuple[int, int]) -> None:
    rows = [cell_of(0, y, width, height, grid)[0] for y in range(height)]
    columns = [cell_of(x, 0, width, height, grid)[1] for x in range(width)]
    for found, count in ((rows, grid[0]), (columns, grid[1])):
        assert found == sorted(found)
        assert 0 <= found[0] <= found[-1] < count
        assert len(set(found)) == min(count, len(found))
        # Mirrored too, but for pixels on the border of two cells, which fall into the second.
        assert all(0 <= one - (count - 1 - other) <= 1 for one, other in zip(found, found[::-1], strict=True))
