"""What follows from the totals against the plain matrix in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.attention_maps import one_cell
from models.attention_totals import (
    criss_cross_looking_at,
    criss_cross_map_to,
    dense_looked_at,
    dense_looking_at,
    dense_map_to,
    pyramid_map_to,
    totals_of,
)
from models.heads.ann import ANNHead
from models.heads.ccnet import CCHead
from models.heads.danet import DAHead
from models.heads.fcn import Head
from models.heads.non_local import NonLocalHead
from models.traces import Block, Trace

GRIDS = [(5, 7), (7, 5), (6, 6), (1, 9), (9, 1), (1, 1), (2, 3)]
Plain = Callable[[Trace], Tensor]


def trace_of(block: Block, grid: tuple[int, int], spread: float = 1.0) -> Trace:
    query, key = torch.randn(2, 4, *grid).half()
    return Trace(block, 1, query * spread, key, scale=1.5)


def cells(grid: tuple[int, int]) -> list[tuple[int, int]]:
    return [(row, column) for row in range(grid[0]) for column in range(grid[1])]


def assert_is(got: Tensor, expected: Tensor, grid: tuple[int, int], rtol: float = 1e-9) -> None:
    assert got.shape == grid
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, expected.view(grid), rtol=rtol, atol=1e-300)


@pytest.mark.parametrize("spread", [1.0, 20.0])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("block", ["cca", "nl"])
def test_who_looks_at_a_cell_is_a_column(
    block: Block, grid: tuple[int, int], spread: float, plain_attention: Plain
) -> None:
    trace = trace_of(block, grid, spread)
    totals, map_to = totals_of(trace), criss_cross_map_to if block == "cca" else dense_map_to
    for expected, cell in zip(plain_attention(trace).T, cells(grid), strict=True):
        assert_is(map_to(trace, totals, cell), expected, grid)


@pytest.mark.parametrize("grid", GRIDS)
def test_who_looks_at_a_cross(grid: tuple[int, int], plain_attention: Plain) -> None:
    trace = trace_of("cca", grid)
    attention, totals = plain_attention(trace), totals_of(trace)
    for row, column in cells(grid):
        on_cross = torch.zeros(grid, dtype=torch.float64)
        on_cross[row], on_cross[:, column] = torch.rand(grid[1]).double(), torch.rand(grid[0]).double()
        seen = criss_cross_looking_at(trace, totals, on_cross, (row, column))
        assert_is(seen, attention @ on_cross.flatten(), grid)
        alone = criss_cross_looking_at(trace, totals, one_cell((row, column), grid), (row, column))
        assert_is(alone, criss_cross_map_to(trace, totals, (row, column)), grid)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("grid", GRIDS)
def test_dense_products(grid: tuple[int, int], share: float, plain_attention: Plain) -> None:
    trace = trace_of("nl", grid)
    given = torch.rand(grid).double() * (torch.rand(grid) < share)
    attention = plain_attention(trace)
    assert_is(dense_looked_at(trace, given), given.flatten() @ attention, grid)
    assert_is(dense_looking_at(trace, totals_of(trace), given), attention @ given.flatten(), grid)


@pytest.mark.parametrize("block", ["cca", "nl", "pam"])
def test_the_networks_own_totals_are_taken_where_they_are_as_exact(
    block: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trace_of("nl" if block == "pam" else block, (4, 5))
    trace = replace(made, block=block, logsumexp=totals_of(made).float() + 1)
    assert torch.equal(totals_of(trace), totals_of(made))
    monkeypatch.setattr("models.attention_totals.MOST_EXACT", 0)
    assert trace.logsumexp is not None
    assert torch.equal(totals_of(trace), trace.logsumexp.double())


@pytest.mark.parametrize(
    "head",
    [CCHead(24, 32, 5), NonLocalHead(24, 32, 5), DAHead(24, 32, 5), ANNHead((12, 24), 32, 5)],
    ids=lambda head: type(head).__name__,
)
@torch.inference_mode()
def test_heads_hand_on_what_each_image_s_softmax_divided_by(head: Head) -> None:
    _, traces = head.eval()({"c3": torch.randn(2, 12, 7, 9), "c4": torch.randn(2, 24, 7, 9)})
    for one in (trace.of_image(index) for trace in traces for index in range(2)):
        assert one.logsumexp is not None
        made = totals_of(replace(one, logsumexp=None))
        torch.testing.assert_close(one.logsumexp.double(), made, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spread", [1.0, 30.0])
def test_a_class_by_the_networks_own_totals(
    spread: float, plain_attention: Plain, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trace_of("nl", (12, 15), spread)
    trace = replace(made, logsumexp=totals_of(made).float())
    monkeypatch.setattr("models.attention_totals.MOST_EXACT", 0)
    monkeypatch.setattr("models.attention_totals.TILE", 7)
    given = torch.rand(12, 15).double() * (torch.rand(12, 15) < 0.4)
    expected = given.flatten() @ plain_attention(made)
    rtol = 1e-5 if spread == 1.0 else 1e-4
    torch.testing.assert_close(dense_looked_at(trace, given).flatten(), expected, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("spread", [1.0, 30.0])
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("grid", GRIDS)
def test_who_looks_at_a_cell_through_a_pyramid(
    grid: tuple[int, int], exact: bool, spread: float, plain_attention: Plain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the totals of the network's own softmax in single precision, where those are taken."""
    scales = (1, 2, 3)
    query, key = torch.randn(4, *grid).half() * spread, torch.randn(4, 14).half()
    made = Trace("apnb", 1, query, key, scale=1.5, pool_scales=scales)
    trace = replace(made, logsumexp=totals_of(made).float())
    if not exact:
        monkeypatch.setattr("models.attention_totals.MOST_EXACT", 0)
    monkeypatch.setattr("models.attention_totals.CELLS", 8)
    totals, attention, rtol = totals_of(trace), plain_attention(made), 1e-9 if exact else 1e-4
    for expected, cell in zip(attention.T, cells(grid), strict=True):
        got = pyramid_map_to(trace, totals, cell)
        torch.testing.assert_close(got.flatten(), expected, rtol=rtol, atol=1e-300 if exact else 1e-9)
    weights = (1.5 * query.double().flatten(1).T @ key.double()).softmax(1).split([1, 4, 9], dim=1)
    for level, through in zip(scales, weights, strict=True):
        pooled = F.adaptive_avg_pool2d(one_cell(cell, grid)[None], level).flatten()
        got = pyramid_map_to(trace, totals, cell, level).flatten()
        torch.testing.assert_close(got, through @ pooled, rtol=rtol, atol=1e-300 if exact else 1e-9)


def test_position_attention_is_dense() -> None:
    trace = trace_of("nl", (5, 6))
    assert torch.equal(totals_of(replace(trace, block="pam")), totals_of(trace))


@pytest.mark.parametrize("spread", [1.0, 30.0])  # logits of up to 300
def test_large_ones_in_single_precision(spread: float, plain_attention: Plain, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more cells each way than a tile has, in tiles that don't come out even."""
    grid = (12, 15)
    for name, value in (("MOST_EXACT", 0), ("TILE", 7), ("ROWS", 11)):
        monkeypatch.setattr(f"models.attention_totals.{name}", value)
    rtol = 1e-5 if spread == 1.0 else 1e-4
    crosses, dense = trace_of("cca", grid, spread), trace_of("nl", grid, spread)
    for trace, map_to in ((crosses, criss_cross_map_to), (dense, dense_map_to)):
        totals, attention = totals_of(trace), plain_attention(trace)
        assert_is(map_to(trace, totals, (5, 6)), attention[:, 5 * 15 + 6], grid, rtol)
    given = torch.rand(grid).double() * (torch.rand(grid) < 0.4)
    torch.testing.assert_close(
        dense_looked_at(dense, given).flatten(), given.flatten() @ attention, rtol=rtol, atol=1e-6
    )
    torch.testing.assert_close(
        dense_looking_at(dense, totals, given).flatten(), attention @ given.flatten(), rtol=rtol, atol=1e-6
    )


def test_traces_stay_as_they_are() -> None:
    for block in ("cca", "nl"):
        trace = replace(trace_of(block, (4, 5)), query=torch.randn(4, 4, 5), key=torch.randn(4, 4, 5))
        copies = trace.query.clone(), trace.key.clone()
        totals = totals_of(trace)
        kept = totals.clone()
        if block == "cca":
            criss_cross_looking_at(trace, totals, criss_cross_map_to(trace, totals, (2, 2)), (2, 2))
        else:
            dense_looking_at(trace, totals, dense_map_to(trace, totals, (2, 2)))
            dense_looked_at(trace, totals)
        assert all(torch.equal(*pair) for pair in ((trace.query, copies[0]), (trace.key, copies[1]), (totals, kept)))
