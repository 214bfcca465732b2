"""The kernels, on a CUDA device if there is one, and else interpreted on the CPU (tests/conftest.py asks for that)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from models.ops import criss_cross
from models.ops.criss_cross import criss_cross_attention_reference

kernels = pytest.importorskip("models.ops.criss_cross_triton", reason="no Triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = [(7, 5), (1, 9), (9, 1), (1, 1), (2, 1), (16, 3), (19, 18)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _small_blocks_of_poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks even of small maps, the last of each not full; whatever is not written reads as NaN."""
    for name, size in (("BLOCK_QUERIES", 16), ("BLOCK_KEYS", 16), ("BLOCK_VALUES", 16)):
        monkeypatch.setattr(kernels, name, size)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: empty(*args, **kwargs).fill_(float("nan")))


def random_inputs(height: int, width: int, *, spread: float = 1.0, values: int = 24) -> list[Tensor]:
    """In float64: six channels of query and key, no power of two, and values that fill a block and a half."""
    channels = (6, spread), (6, spread), (values, 1.0)
    return [torch.randn(2, size, height, width, dtype=torch.float64) * factor for size, factor in channels]


def attend(inputs: list[Tensor], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    on_device = (x.to(DEVICE, dtype).contiguous(memory_format=torch.channels_last) for x in inputs)
    return [x.cpu() for x in kernels.criss_cross_attention_triton(*on_device)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_no_further_from_exact_than_torch_in_the_same_type(height: int, width: int, dtype: torch.dtype) -> None:
    inputs = [x.to(dtype) for x in random_inputs(height, width, spread=1.5)]
    exact, exact_sum = criss_cross_attention_reference(*(x.double() for x in inputs))
    torchs, _ = criss_cross._attend_at_once(*inputs)
    got, logsumexp = attend(inputs, dtype)
    assert got.dtype == dtype
    assert got.is_contiguous(memory_format=torch.channels_last)
    # The interpreter cuts a bfloat16 off where a GPU rounds, and so doubles the error.
    bound = 4 if dtype == torch.bfloat16 and DEVICE == "cpu" else 2
    rounding = torch.finfo(dtype).eps * exact.norm()
    assert (got.double() - exact).norm() <= bound * (torchs.double() - exact).norm() + 0.1 * rounding
    torch.testing.assert_close(logsumexp.double(), exact_sum, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("values", [1, 3, 16, 40])
def test_any_number_of_value_channels(values: int) -> None:
    inputs = random_inputs(5, 19, values=values)
    expected, _ = criss_cross_attention_reference(*inputs)
    got, _ = attend(inputs)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


def test_inputs_with_strides_of_their_own() -> None:
    """One channels-last, one NCHW, one a part of a larger map."""
    query, key, value = random_inputs(6, 17)
    expected, _ = criss_cross_attention_reference(query, key, value)
    larger = torch.full((2, 24, 9, 20), float("nan"))
    larger[:, :, 1:7, :17] = value.float()
    query, key = query.float().contiguous(memory_format=torch.channels_last), key.float()
    inputs = (x.to(DEVICE) for x in (query, key, larger))
    query, key, larger = inputs
    got, _ = kernels.criss_cross_attention_triton(query, key, larger[:, :, 1:7, :17])
    torch.testing.assert_close(got.cpu().double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_affinities_beyond_the_range_of_half(dtype: torch.dtype) -> None:
    query, key = (200.0 * torch.randn(1, 8, 6, 9).sign() for _ in range(2))
    value = torch.randn(1, 4, 6, 9).to(dtype)
    expected, _ = criss_cross_attention_reference(query.double(), key.double(), value.double())
    got, _ = attend([query, key, value], dtype)
    assert (got.double() - expected).abs().max() <= 4 * torch.finfo(dtype).eps * value.abs().max()


def test_rows_of_the_attention_follow_from_the_logsumexp(criss_cross_map: Callable[[Tensor, Tensor], Tensor]) -> None:
    query, key, value = random_inputs(6, 9)
    _, logsumexp = attend([query, key, value])
    along_row = (query[1, :, 4, 2] @ key[1, :, 4] - logsumexp[1, 4, 2]).exp()
    attention = criss_cross_map(query, key)[1].unflatten(0, (6, 9)).unflatten(2, (6, 9))
    torch.testing.assert_close(along_row, attention[4, 2, 4], rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("height", "width"), [(64, 128), (97, 97), (128, 256)])
def test_the_papers_sizes_with_full_blocks(
    height: int, width: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    query, key, value = (
        (torch.randn(2, size, height, width, device="cuda") * spread).to(dtype)
        for size, spread in ((64, 0.5), (64, 0.5), (512, 1.0))
    )
    exact, exact_sum = criss_cross_attention_reference(query.double(), key.double(), value.double())
    torchs, _ = criss_cross._attend_at_once(query, key, value)
    got, logsumexp = kernels.criss_cross_attention_triton(query, key, value)
    assert (got.double() - exact).norm() <= 2 * (torchs.double() - exact).norm()
    torch.testing.assert_close(logsumexp.double(), exact_sum, rtol=1e-4, atol=1e-4)
