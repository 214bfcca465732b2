from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from models.heads.ccnet import CCHead, CrissCrossAttention
from models.heads.fcn import FCNHead

Map = Callable[[Tensor, Tensor], Tensor]
SIZES = [(7, 5), (6, 6), (1, 9), (9, 1), (1, 1)]


def open_block(channels: int = 16, query_channels: int = 4, gamma: float = 0.7) -> CrissCrossAttention:
    """A block whose gamma isn't 0: with 0 it would be an identity."""
    block = CrissCrossAttention(channels, query_channels).eval().double()
    nn.init.constant_(block.gamma.scale, gamma)
    return block


def open_head(recurrence: int = 2) -> CCHead:
    head = CCHead(12, 16, 5, query_channels=4, recurrence=recurrence).eval().double()
    nn.init.constant_(head.cca.gamma.scale, 0.7)
    return head


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_pass_is_gamma_times_masked_attention_plus_input(height: int, width: int, criss_cross_map: Map) -> None:
    block = open_block()
    x = torch.randn(2, 16, height, width, dtype=torch.float64)
    value = block.value_conv(x).flatten(2)
    context = value @ criss_cross_map(block.query_conv(x), block.key_conv(x)).mT
    torch.testing.assert_close(block(x)[0], 0.7 * context.unflatten(2, (height, width)) + x)


@pytest.mark.parametrize("recurrence", [1, 2, 3])
def test_recurrence_repeats_the_same_block(recurrence: int) -> None:
    head = open_head(recurrence)
    x = torch.randn(1, 16, 5, 4, dtype=torch.float64)
    before, expected = x, x
    for _ in range(recurrence):
        before, expected = expected, head.cca(expected)[0]
    torch.testing.assert_close(head.attend(x)[0], expected)
    assert not torch.allclose(before, expected)


def test_recurrence_costs_no_parameters() -> None:
    assert open_head(1).state_dict().keys() == open_head(3).state_dict().keys()


def test_one_pass_reaches_the_cross_and_two_reach_everything() -> None:
    x = torch.randn(1, 16, 5, 6, dtype=torch.float64)
    changed = x.clone()
    changed[0, :, 1, 2] += 1
    once, twice = (
        ~torch.isclose(head.attend(x)[0], head.attend(changed)[0], rtol=0, atol=1e-12).all(1)[0]
        for head in (open_head(1), open_head(2))
    )
    cross = torch.zeros(5, 6, dtype=torch.bool)
    cross[1], cross[:, 2] = True, True
    assert torch.equal(once, cross)
    assert twice.all()


def test_traces_rebuild_the_output(criss_cross_map: Map) -> None:
    head = open_head(2)
    x = torch.randn(2, 16, 7, 5, dtype=torch.float64)
    out, traces = head.attend(x)
    rebuilt = x
    for trace in traces:
        attention = criss_cross_map(trace.scale * trace.query, trace.key)
        context = head.cca.value_conv(rebuilt).flatten(2) @ attention.mT
        rebuilt = 0.7 * context.unflatten(2, trace.grid) + rebuilt
    assert [(trace.block, trace.step, trace.scale) for trace in traces] == [("cca", 1, 1.0), ("cca", 2, 1.0)]
    assert not torch.allclose(traces[0].query, traces[1].query)
    torch.testing.assert_close(rebuilt, out)


def test_gamma_0_leaves_a_plain_fcn_head() -> None:
    head = CCHead(12, 16, 5).eval()
    plain = FCNHead(12, 16, 5).eval()
    plain.load_state_dict(head.state_dict(), strict=False)
    features = {"c4": torch.randn(1, 12, 5, 4)}
    torch.testing.assert_close(head(features)[0], plain(features)[0])


def test_gamma_is_learned_from_0() -> None:
    head = CCHead(12, 16, 5)
    head({"c4": torch.randn(2, 12, 5, 4)})[0].square().sum().backward()
    gamma = head.cca.gamma.scale
    assert gamma.item() == 0
    assert gamma.grad is not None
    assert gamma.grad != 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_module_in_half_precision_runs(dtype: torch.dtype) -> None:
    head = open_head().float()
    features = {"c4": torch.randn(1, 12, 9, 7)}
    expected = head(features)[0]
    got = head.to(dtype)({"c4": features["c4"].to(dtype)})[0]
    assert got.dtype == dtype
    assert (got.float() - expected).norm() <= 4 * torch.finfo(dtype).eps * expected.norm()


def test_query_channels_are_an_eighth_unless_told() -> None:
    assert CCHead(12, 16, 5).cca.query_conv.out_channels == 2
    assert CCHead(12, 16, 5, query_channels=4).cca.key_conv.out_channels == 4
