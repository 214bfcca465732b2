from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from models.heads.danet import ChannelAttention, DAHead

Randomize = Callable[[nn.Module], None]


@pytest.fixture
def head(randomize: Randomize) -> DAHead:
    head = DAHead(12, 16, 5, query_channels=4).eval().double()
    randomize(head)
    return head


@pytest.mark.parametrize(("height", "width"), [(7, 5), (1, 9), (1, 1)])
def test_trace_rebuilds_position_attention(height: int, width: int, head: DAHead) -> None:
    x = torch.randn(2, 12, height, width, dtype=torch.float64)
    _, (trace,) = head({"c4": x})
    reduced = head.pam_in_conv(x)
    attention = (trace.scale * trace.query.flatten(2).mT @ trace.key.flatten(2)).softmax(-1)
    context = head.pam.value_project(reduced).flatten(2) @ attention.mT
    rebuilt = trace.gamma * context.unflatten(2, trace.grid) + reduced
    assert (trace.block, trace.step, trace.scale, trace.pool_scales) == ("pam", 1, 1.0, ())
    torch.testing.assert_close(head.pam(reduced)[0], rebuilt)


def test_least_alike_channels_count_most() -> None:
    block = ChannelAttention().double()
    nn.init.ones_(block.gamma.scale)
    x = torch.zeros(1, 3, 1, 2, dtype=torch.float64)
    x[0, :, 0, 0] = torch.tensor([9.0, 9.0, -9.0])
    context = block(x)[0, :, 0, 0] - x[0, :, 0, 0]
    torch.testing.assert_close(context, torch.tensor([-9.0, -9.0, 9.0], dtype=torch.float64))


def test_branches_are_added(head: DAHead) -> None:
    x = torch.randn(1, 12, 5, 4, dtype=torch.float64)
    both = head({"c4": x})[0]
    positions = head.pam_out_conv(head.pam(head.pam_in_conv(x))[0])
    torch.testing.assert_close(both - positions, head.cam_out_conv(head.cam(head.cam_in_conv(x))))
    assert not torch.allclose(both, positions)


def test_fresh_attentions_add_nothing() -> None:
    head = DAHead(12, 16, 5).eval()
    x = torch.randn(1, 16, 5, 4)
    torch.testing.assert_close(head.pam(x)[0], x)
    torch.testing.assert_close(head.cam(x), x)


def test_query_channels_are_an_eighth_unless_told() -> None:
    assert DAHead(12, 16, 5).pam.query_project.out_channels == 2
    assert DAHead(12, 16, 5, query_channels=4).pam.key_project.out_channels == 4


def test_a_module_in_half_precision_runs(head: DAHead) -> None:
    head = head.float()
    features = torch.randn(1, 12, 9, 7)
    expected = head({"c4": features})[0]
    got = head.bfloat16()({"c4": features.bfloat16()})[0]
    assert (got.float() - expected).norm() <= 8 * torch.finfo(torch.bfloat16).eps * expected.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_channels_are_weighed_as_exactly_in_half_precision(dtype: torch.dtype) -> None:
    attention = ChannelAttention()
    nn.init.ones_(attention.gamma.scale)
    x = torch.randn(2, 16, 64, 64).relu().to(dtype)
    with torch.no_grad():
        exact = attention.double()(x.double())
        out = attention.to(dtype)(x)
    # Twice as much as rounding what comes out would do.
    assert (out.double() - exact).abs().max() < 2 * (exact.to(dtype).double() - exact).abs().max()
