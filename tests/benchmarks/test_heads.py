"""What the heads' costs are counted with, on operations whose cost is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from benchmarks.heads import (
    PLAIN,
    Cost,
    Part,
    attention_parts,
    blocks_of,
    costs,
    count_flops,
    count_parameters,
    head_parts,
    paper_heads,
    peak_memory,
    ratios,
)
from models.heads.ann import ANNHead
from models.heads.ccnet import CCHead
from models.heads.fcn import FCNHead, Head
from models.heads.non_local import NonLocalHead

CPU = torch.device("cpu")
META = torch.device("meta")


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def small_heads() -> dict[str, Head]:
    heads: dict[str, Head] = {
        "fcn": FCNHead(24, 32, 5),
        "ccnet": CCHead(24, 32, 5),
        "ann": ANNHead((16, 24), 32, 5),
        "nonlocal": NonLocalHead(24, 32, 5),
    }
    for head in heads.values():
        head.eval()
    return heads


def small_attention(height: int, width: int) -> dict[str, Part]:
    return attention_parts(blocks_of(small_heads()), torch.randn(1, 32, height, width))


def test_a_multiply_add_counts_as_two() -> None:
    conv, x = nn.Conv2d(6, 10, 1), torch.randn(2, 6, 5, 7)
    assert count_flops(lambda: conv(x)) == 2 * (2 * 5 * 7) * 6 * 10


def test_fused_attention_is_counted_too() -> None:
    block = small_heads()["nonlocal"].get_submodule("nl_block")
    x = torch.randn(1, 32, 9, 7).contiguous(memory_format=torch.channels_last)
    projections, products = 4 * 63 * 32 * 16, 2 * 63 * 63 * 16
    assert count_flops(lambda: block(x)) == 2 * (projections + products)


def test_flops_at_ccnet_s_own_setting() -> None:
    """16.5 GFLOPs for two passes are the paper's (arXiv 1811.11721); its Non-local block is another than this one."""
    blocks, x = blocks_of(paper_heads()), torch.randn(1, 512, 97, 97)
    assert count_flops(attention_parts(blocks, x)["ccnet"].run) / 1e9 == pytest.approx(16.5, abs=0.05)
    blocks["nonlocal"].to(META)
    projections, products = 4 * 97**2 * 512 * 256, 2 * 97**4 * 256
    assert count_flops(attention_parts(blocks, x.to(META))[PLAIN].run) == 2 * (projections + products)


def test_peak_memory_of_a_product_is_its_result() -> None:
    a = torch.randn(300, 200)
    assert peak_memory(lambda: a @ a.mT, CPU) == 4 * 300 * 300


@pytest.mark.parametrize(("run", "maps"), [(Tensor.relu_, 0), (Tensor.relu, 1), (lambda x: x.relu().relu().relu(), 2)])
def test_peak_memory_is_what_lives_at_once(run: Callable[[Tensor], Tensor], maps: int) -> None:
    x = torch.randn(1000)
    assert peak_memory(lambda: run(x), CPU) == maps * x.nbytes


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_peak_memory_on_cuda_is_what_lives_at_once() -> None:
    x = torch.randn(1024, device="cuda")
    assert peak_memory(lambda: x.relu().relu().relu(), x.device) == 2 * x.nbytes


def test_only_the_plain_block_keeps_the_attention_map() -> None:
    parts = small_attention(24, 32)
    attention_map = 4 * (24 * 32) ** 2
    assert peak_memory(parts[PLAIN].run, CPU) > attention_map
    for name in ("ccnet", "ann"):
        assert peak_memory(parts[name].run, CPU) < attention_map


@pytest.mark.parametrize("name", ["ccnet", "ann"])
def test_attention_of_both_papers_gains_as_the_map_grows(name: str) -> None:
    shares = []
    for side in (16, 32, 64):
        parts = small_attention(side, side)
        shares.append(count_flops(parts[name].run) / count_flops(parts["nonlocal"].run))
    assert 1 > shares[0] > shares[1] > shares[2]


def test_two_passes_of_criss_cross_attention() -> None:
    heads, x = small_heads(), torch.randn(1, 32, 12, 16)
    block = heads["ccnet"].get_submodule("cca")
    assert count_flops(attention_parts(blocks_of(heads), x)["ccnet"].run) == 2 * count_flops(lambda: block(x))


def test_attention_is_what_a_head_has_beyond_the_control() -> None:
    heads, features = small_heads(), {"c3": torch.randn(1, 16, 12, 16), "c4": torch.randn(1, 24, 12, 16)}
    whole, attention = head_parts(heads, features), small_attention(12, 16)
    for name in ("ccnet", "nonlocal"):
        assert whole[name].parameters - whole["fcn"].parameters == attention[name].parameters
        assert count_flops(whole[name].run) - count_flops(whole["fcn"].run) == count_flops(attention[name].run)


def test_a_head_goes_without_its_classifier() -> None:
    heads = small_heads()
    features = {"c3": torch.randn(1, 16, 2, 2), "c4": torch.randn(1, 24, 2, 2)}
    for name, part in head_parts(heads, features).items():
        assert part.parameters == count_parameters(heads[name]) - (32 + 1) * 5


def test_costs_and_their_ratios() -> None:
    parts = small_attention(8, 8)
    table = costs(parts, 1, CPU)
    assert list(table) == list(parts)
    assert all(cost.seconds > 0 and cost.flops > 0 and cost.peak_bytes > 0 for cost in table.values())
    plain, other = Cost(1, 400, 2.0, 1000), Cost(1, 100, 1.0, 50)
    assert ratios({"ccnet": other, "ann": plain, PLAIN: plain}) == {
        "ccnet": {"flops": 0.25, "seconds": 0.5, "peak_bytes": 0.05},
        "ann": {"flops": 1.0, "seconds": 1.0, "peak_bytes": 1.0},
    }
