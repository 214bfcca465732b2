from __future__ import annotations

from math import ceil

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim
from torch.profiler import ProfilerActivity, profile

from models.ops.attention import (
    dense_attention,
    dense_attention_reference,
    pooling_matrix,
    pyramid_pool,
    pyramid_pool_reference,
)

SCALE = 0.3  # not the default of torch's attention, 4**-0.5 here
CASES = [(7, 5, 11), (1, 9, 3), (9, 1, 4), (1, 1, 1), (17, 13, 110)]


def random_inputs(height: int, width: int, keys: int) -> list[Tensor]:
    shapes = (2, 4, height, width), (2, 4, keys), (2, 6, keys)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def window_means(x: Tensor, scale: int) -> Tensor:
    """Adaptive average pooling, window by window: i * n // k up to ceil((i + 1) * n / k)."""
    height, width = x.shape[2:]
    cells = [
        x[
            ...,
            row * height // scale : ceil((row + 1) * height / scale),
            column * width // scale : ceil((column + 1) * width / scale),
        ].mean((2, 3))
        for row in range(scale)
        for column in range(scale)
    ]
    return torch.stack(cells, dim=2)


@pytest.mark.parametrize(("height", "width", "keys"), CASES)
def test_dense_attention_matches_reference(height: int, width: int, keys: int) -> None:
    inputs = random_inputs(height, width, keys)
    (got, _), (want, _) = dense_attention(*inputs, SCALE), dense_attention_reference(*inputs, SCALE)
    torch.testing.assert_close(got, want)
    weight = torch.randn_like(want)
    for ours, theirs in zip(
        torch.autograd.grad(got, inputs, weight), torch.autograd.grad(want, inputs, weight), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_reference_is_the_sum_that_the_paper_writes() -> None:
    query, key, value = (tensor.detach() for tensor in random_inputs(3, 2, 5))
    got, total = dense_attention_reference(query, key, value, 0.3)
    weights = torch.stack([(0.3 * (query[1, :, 2, 0] @ key[1, :, anchor])).exp() for anchor in range(5)])
    torch.testing.assert_close(got[1, :, 2, 0], (value[1] * weights).sum(1) / weights.sum())
    torch.testing.assert_close(total[1, 2, 0], weights.sum().log())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("height", "width", "keys"), [(7, 5, 11), (17, 13, 110)])
def test_half_precision_costs_little_more_than_its_rounding(
    height: int, width: int, keys: int, dtype: torch.dtype
) -> None:
    exact_inputs = [tensor.detach() for tensor in random_inputs(height, width, keys)]
    rounded_inputs = [tensor.to(dtype) for tensor in exact_inputs]
    exact, _ = dense_attention_reference(*exact_inputs, SCALE)
    rounded, total = dense_attention_reference(*(tensor.double() for tensor in rounded_inputs), SCALE)
    rounded = rounded.to(dtype)
    got, _ = dense_attention(*rounded_inputs, SCALE)
    query, key, _ = rounded_inputs
    _, logsumexp = dense_attention(query, key, key, SCALE)
    assert logsumexp is not None
    torch.testing.assert_close(logsumexp.double(), total, rtol=1e-5, atol=1e-4)  # of the same halves
    assert got.dtype == dtype
    assert (got.double() - exact).abs().max() <= 2 * (rounded.double() - exact).abs().max()
    assert (got.double() - exact).norm() <= 2 * (rounded.double() - exact).norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_affinities_beyond_the_range_of_half(dtype: torch.dtype) -> None:
    # Signs times an integer, and a scale whose root is exact: the affinities, up to 360,000, are exact in float32.
    query, key = 300.0 * torch.randn(1, 16, 4, 3).sign(), 300.0 * torch.randn(1, 16, 5).sign()
    value = torch.randn(1, 6, 5).to(dtype)
    query, key = query.to(dtype), key.to(dtype)
    got, _ = dense_attention(query, key, value, 0.25)
    expected, _ = dense_attention_reference(query.double(), key.double(), value.double(), 0.25)
    assert torch.einsum("bchw,bcs->bhws", query.float(), key.float()).max() > torch.finfo(torch.float16).max
    assert (got.double() - expected).abs().max() <= 2 * torch.finfo(dtype).eps * value.abs().max()


def test_channels_last_gives_the_same() -> None:
    query, key, value = (tensor.detach() for tensor in random_inputs(7, 5, 11))
    got = dense_attention(query.contiguous(memory_format=torch.channels_last), key, value, SCALE)
    for mine, plain in zip(got, dense_attention(query, key, value, SCALE), strict=True):
        torch.testing.assert_close(mine, plain)


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("height", "width", "keys"), CASES)
def test_blocks_give_what_the_reference_does(height: int, width: int, keys: int, dtype: torch.dtype) -> None:
    inputs = [tensor.detach().to(dtype) for tensor in random_inputs(height, width, keys)]
    exact = dense_attention_reference(*(tensor.double() for tensor in inputs), SCALE)
    for got, expected in zip(dense_attention(*inputs, SCALE), exact, strict=True):
        assert got is not None
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("height", "width", "keys"), CASES)
def test_the_fused_kernel_tells_its_totals(height: int, width: int, keys: int) -> None:
    query, key, _ = (tensor.detach() for tensor in random_inputs(height, width, keys))
    got, want = dense_attention(query, key, key, SCALE), dense_attention_reference(query, key, key, SCALE)
    for mine, exact in zip(got, want, strict=True):
        torch.testing.assert_close(mine, exact)


def test_torch_keeps_the_totals_where_gradients_are_wanted() -> None:
    query, key, _ = random_inputs(3, 2, 5)
    context, logsumexp = dense_attention(query, key, key, SCALE)
    assert context.requires_grad
    assert logsumexp is None


@pytest.mark.parametrize("channels", [4, 6])
def test_no_map_of_all_pairs_is_made(channels: int) -> None:
    """Neither with as many channels in the values as in the keys, nor with more."""
    query, key, value = torch.randn(1, 4, 96, 96), torch.randn(1, 4, 96 * 96), torch.randn(1, channels, 96 * 96)
    with torch.inference_mode(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        dense_attention(query, key, value, SCALE)
    largest = max(event.cpu_memory_usage for event in profiler.events())
    assert 0 < largest < 4 * (96 * 96) ** 2 / 8


@pytest.mark.parametrize(("height", "width"), [(16, 24), (33, 25), (7, 5), (1, 9), (9, 1), (1, 1)])
def test_pyramid_pool_lists_window_means_coarse_to_fine(height: int, width: int) -> None:
    x = torch.randn(2, 3, height, width, dtype=torch.float64)
    pooled = pyramid_pool(x, (1, 3, 6, 8))
    assert pooled.shape == (2, 3, 110)
    torch.testing.assert_close(pooled, torch.cat([window_means(x, scale) for scale in (1, 3, 6, 8)], dim=2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("height", "width"), [(16, 24), (7, 5), (1, 9), (97, 33)])
def test_pooling_costs_no_more_than_rounding_once(height: int, width: int, dtype: torch.dtype) -> None:
    x = (1000 * torch.randn(2, 3, height, width)).to(dtype)
    want = pyramid_pool_reference(x.double(), (1, 3, 6, 8))
    got = pyramid_pool(x, (1, 3, 6, 8))
    assert got.dtype == dtype
    assert (got.double() - want).norm() <= max(2 * (want.to(dtype).double() - want).norm(), 1e-6 * want.norm())


@pytest.mark.parametrize("size", [1, 5, 8, 97, 128])
def test_a_pooling_matrix_does_what_torch_does(size: int) -> None:
    line = torch.randn(2, 3, size, dtype=torch.float64)
    expected = torch.cat([F.adaptive_avg_pool1d(line, scale) for scale in (1, 3, 6, 8)], dim=2)
    torch.testing.assert_close(line @ pooling_matrix(size, 1, 3, 6, 8).T, expected)


@pytest.mark.filterwarnings("ignore:.torch.jit.trace:DeprecationWarning")  # OpenVINO goes through it
@pytest.mark.filterwarnings("ignore:torch.tensor results are registered as constants")  # the scales, which are
def test_pooling_traced_is_products_too() -> None:
    traced = torch.jit.trace(lambda x: pyramid_pool(x, (1, 3, 6, 8)), torch.randn(2, 4, 12, 17))
    assert "adaptive" not in str(traced.graph)
    x = torch.randn(2, 4, 12, 17)
    torch.testing.assert_close(traced(x), pyramid_pool_reference(x, (1, 3, 6, 8)))


def test_pooling_exported_once_is_right_at_any_size() -> None:
    class Pooling(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return pyramid_pool(x, (1, 3, 6, 8))

    sizes = {0: Dim.AUTO, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    program = torch.export.export(Pooling(), (torch.randn(2, 4, 12, 17),), dynamic_shapes={"x": sizes})
    assert "adaptive" not in str(program.graph)
    for height, width in ((12, 17), (5, 97), (33, 8), (2, 3)):
        x = torch.randn(2, 4, height, width)
        torch.testing.assert_close(program.module()(x), pyramid_pool_reference(x, (1, 3, 6, 8)))
