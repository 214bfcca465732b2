from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from models.heads.ann import ANNHead, AsymmetricBlock, PyramidAttention
from models.ops.attention import pyramid_pool
from models.traces import Trace

Randomize = Callable[[nn.Module], None]
SCALES = (1, 3, 6, 8)


@pytest.fixture
def head(randomize: Randomize) -> ANNHead:
    head = ANNHead((12, 20), 16, 5, inner_channels=((4, 4), (4, 4))).eval().double()
    randomize(head)
    return head


def random_features(height: int = 9, width: int = 7) -> dict[str, Tensor]:
    shapes = {"c3": (2, 12, height, width), "c4": (2, 20, height, width)}
    return {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}


def rebuild(block: AsymmetricBlock, trace: Trace, query_map: Tensor, key_map: Tensor) -> Tensor:
    """A block's output from its trace, its value and its projections."""
    attention = (trace.scale * trace.query.flatten(2).mT @ trace.key).softmax(-1)
    assert attention.shape == (2, query_map.shape[2] * query_map.shape[3], 110)
    value = pyramid_pool(block.stages[0].value_project(key_map), SCALES)
    context = block.stages[0].out_project((value @ attention.mT).unflatten(2, trace.grid))
    return block.bottleneck(torch.cat([context, query_map], dim=1))


@pytest.mark.parametrize(("height", "width"), [(9, 7), (16, 24), (1, 5), (1, 1)])
def test_traces_rebuild_both_blocks(head: ANNHead, height: int, width: int) -> None:
    features = random_features(height, width)
    context, (afnb, apnb) = head(features)
    fused = rebuild(head.fusion, afnb, features["c4"], features["c3"])
    reduced = head.bottleneck(fused)
    torch.testing.assert_close(rebuild(head.context, apnb, reduced, reduced), context)
    assert [(trace.block, trace.step) for trace in (afnb, apnb)] == [("afnb", 1), ("apnb", 1)]


def test_keys_are_pooled_after_their_projection(head: ANNHead) -> None:
    features = random_features()
    _, (afnb, apnb) = head(features)
    projected = head.fusion.stages[0].key_project(features["c3"])
    torch.testing.assert_close(afnb.key, pyramid_pool(projected, SCALES))
    assert afnb.key.shape == apnb.key.shape == (2, 4, 110)
    assert afnb.query.shape == apnb.query.shape == (2, 4, 9, 7)
    assert afnb.pool_scales == apnb.pool_scales == SCALES


def test_affinities_are_scaled_by_the_inner_channels(head: ANNHead) -> None:
    _, traces = head(random_features())
    assert [trace.scale for trace in traces] == [0.5, 0.5]


def test_apnb_shares_one_projection_and_afnb_has_two(head: ANNHead) -> None:
    shared, separate = head.context.stages[0], head.fusion.stages[0]
    assert shared.query_project is shared.key_project
    assert separate.query_project is not separate.key_project
    _, (_, apnb) = head(random_features())
    torch.testing.assert_close(apnb.key, pyramid_pool(apnb.query, SCALES))


def test_afnb_queries_stage_4_and_reads_stage_3(head: ANNHead) -> None:
    features = random_features()
    _, (trace, _) = head(features)
    _, (other_low, _) = head({**features, "c3": random_features()["c3"]})
    _, (other_high, _) = head({**features, "c4": random_features()["c4"]})
    assert torch.equal(trace.query, other_low.query)
    assert not torch.equal(trace.key, other_low.key)
    assert torch.equal(trace.key, other_high.key)
    assert not torch.equal(trace.query, other_high.query)


def test_fresh_blocks_add_nothing() -> None:
    head = ANNHead((12, 20), 16, 5).eval()
    attention = head.fusion.stages[0]
    context, *_ = attention(torch.randn(1, 20, 5, 4), torch.randn(1, 12, 5, 4))
    assert not context.any()


def test_fused_map_may_be_negative_and_context_may_not(head: ANNHead) -> None:
    features = random_features()
    assert head.fusion(features["c4"], features["c3"])[0].min() < 0
    assert head(features)[0].min() == 0


def test_inner_channels_are_half_unless_told() -> None:
    assert ANNHead((12, 20), 16, 5).context.stages[0].value_project.out_channels == 8


def test_a_module_in_half_precision_runs(head: ANNHead) -> None:
    features = {name: feature.float() for name, feature in random_features().items()}
    expected = head.float()(features)[0]
    got = head.bfloat16()({name: feature.bfloat16() for name, feature in features.items()})[0]
    assert (got.float() - expected).norm() <= 4 * torch.finfo(torch.bfloat16).eps * expected.norm()


def test_a_shared_projection_of_one_map_is_made_once(randomize: Randomize) -> None:
    block = PyramidAttention(6, 6, 6, (4, 4), shared=True).eval()
    randomize(block)
    x, calls = torch.randn(1, 6, 7, 5), []
    block.key_project.register_forward_hook(lambda *_: calls.append(1))
    once = block(x, x)
    assert len(calls) == 1
    torch.testing.assert_close(block(x, x.clone()), once)
    assert len(calls) == 3
