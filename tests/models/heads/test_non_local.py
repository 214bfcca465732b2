from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from models.heads.fcn import FCNHead
from models.heads.non_local import NonLocalBlock, NonLocalHead

Randomize = Callable[[nn.Module], None]


@pytest.mark.parametrize(("height", "width"), [(7, 5), (1, 9), (1, 1)])
def test_trace_rebuilds_the_output(height: int, width: int, randomize: Randomize) -> None:
    head = NonLocalHead(12, 16, 5).eval().double()
    randomize(head)
    x = torch.randn(2, 16, height, width, dtype=torch.float64)
    out, (trace,) = head.attend(x)
    affinity = trace.scale * trace.query.flatten(2).mT @ trace.key.flatten(2)
    context = head.nl_block.g(x).flatten(2) @ affinity.softmax(-1).mT
    rebuilt = x + head.nl_block.conv_out(context.unflatten(2, trace.grid))
    assert (trace.block, trace.step, trace.pool_scales) == ("nl", 1, ())
    torch.testing.assert_close(rebuilt, out)
    assert not torch.allclose(out, x)


def test_scale_is_the_root_of_the_inner_channels() -> None:
    _, (trace,) = NonLocalHead(12, 16, 5, inner_channels=4).eval()({"c4": torch.randn(1, 12, 3, 4)})
    assert trace.query.shape == trace.key.shape == (1, 4, 3, 4)
    assert trace.scale == 0.5


def test_query_is_theta_and_key_is_phi() -> None:
    block = NonLocalBlock(16, 8).eval()
    x = torch.randn(1, 16, 3, 4)
    _, trace = block(x)
    torch.testing.assert_close(trace.query, block.theta(x))
    torch.testing.assert_close(trace.key, block.phi(x))


def test_a_fresh_block_leaves_a_plain_fcn_head() -> None:
    head = NonLocalHead(12, 16, 5).eval()
    plain = FCNHead(12, 16, 5).eval()
    plain.load_state_dict(head.state_dict(), strict=False)
    features = {"c4": torch.randn(1, 12, 5, 4)}
    torch.testing.assert_close(head(features)[0], plain(features)[0])


def test_every_position_reaches_every_other(randomize: Randomize) -> None:
    head = NonLocalHead(12, 16, 5).eval().double()
    randomize(head)
    x = torch.randn(1, 16, 5, 6, dtype=torch.float64)
    changed = x.clone()
    changed[0, :, 1, 2] += 1
    assert not torch.isclose(head.attend(x)[0], head.attend(changed)[0], rtol=0, atol=1e-12).all(1).any()


def test_a_module_in_half_precision_runs(randomize: Randomize) -> None:
    head = NonLocalHead(12, 16, 5).eval()
    randomize(head)
    features = torch.randn(1, 12, 9, 7)
    expected = head({"c4": features})[0]
    got = head.bfloat16()({"c4": features.bfloat16()})[0]
    assert (got.float() - expected).norm() <= 4 * torch.finfo(torch.bfloat16).eps * expected.norm()
