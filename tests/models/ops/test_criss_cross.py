from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from models.ops import criss_cross

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
SIZES = [(7, 5), (5, 7), (6, 6), (1, 9), (9, 1), (1, 1), (2, 1), (33, 17)]


def criss_cross_attention(*inputs: Tensor) -> Tensor:
    return criss_cross.criss_cross_attention(*inputs)[0]


def criss_cross_attention_reference(*inputs: Tensor) -> Tensor:
    return criss_cross.criss_cross_attention_reference(*inputs)[0]


def random_inputs(height: int, width: int, *, spread: float = 1.0) -> list[Tensor]:
    """Query, key and value in float64; `spread` widens the affinities."""
    return [
        (torch.randn(2, channels, height, width, dtype=torch.float64) * factor).requires_grad_()
        for channels, factor in ((4, spread), (4, spread), (8, 1.0))
    ]


def assert_same_with_gradients(got: Tensor, want: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(got, want)
    weight = torch.randn_like(want)
    for ours, theirs in zip(
        torch.autograd.grad(got, inputs, weight), torch.autograd.grad(want, inputs, weight), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("spread", [1.0, 6.0])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_matches_reference(height: int, width: int, spread: float) -> None:
    inputs = random_inputs(height, width, spread=spread)
    assert_same_with_gradients(criss_cross_attention(*inputs), criss_cross_attention_reference(*inputs), inputs)


@pytest.mark.parametrize("attend", [criss_cross_attention, criss_cross_attention_reference])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_matches_masked_dense_attention(
    attend: Attend, height: int, width: int, criss_cross_map: Callable[[Tensor, Tensor], Tensor]
) -> None:
    inputs = random_inputs(height, width)
    query, key, value = inputs
    dense = (value.flatten(2) @ criss_cross_map(query, key).mT).unflatten(2, (height, width))
    assert_same_with_gradients(attend(*inputs), dense, inputs)


@pytest.mark.parametrize(("height", "width"), [(3, 2), (1, 3), (3, 1), (1, 1)])
def test_gradients_match_finite_differences(height: int, width: int) -> None:
    inputs = [torch.randn(1, 2, height, width, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradcheck(criss_cross_attention, inputs)


def test_each_position_of_the_cross_counts_once() -> None:
    height, width = 4, 7
    silent = torch.zeros(1, 2, height, width)
    value = torch.zeros(1, 1, height, width)
    value[0, 0, 1, 2] = 1
    expected = torch.zeros(height, width)
    expected[1], expected[:, 2] = 1 / (height + width - 1), 1 / (height + width - 1)
    torch.testing.assert_close(criss_cross_attention(silent, silent, value)[0, 0], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("height", "width"), [(7, 5), (1, 9), (33, 17)])
def test_half_precision_costs_little_more_than_its_rounding(height: int, width: int, dtype: torch.dtype) -> None:
    exact_inputs = [tensor.detach() for tensor in random_inputs(height, width)]
    rounded_inputs = [tensor.to(dtype) for tensor in exact_inputs]
    exact = criss_cross_attention_reference(*exact_inputs)
    rounded = criss_cross_attention_reference(*(tensor.double() for tensor in rounded_inputs)).to(dtype)
    got = criss_cross_attention(*rounded_inputs)
    assert got.dtype == dtype
    assert (got.double() - exact).abs().max() <= 2 * (rounded.double() - exact).abs().max()
    assert (got.double() - exact).norm() <= 2 * (rounded.double() - exact).norm()


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("height", "width"), [*SIZES, (97, 97)])
def test_values_alone_in_bfloat16(height: int, width: int, layout: torch.memory_format) -> None:
    query, key, value = (tensor.detach().float() for tensor in random_inputs(height, width, spread=3.0))
    value = value.bfloat16().contiguous(memory_format=layout)
    exact = criss_cross.criss_cross_attention_reference(query.double(), key.double(), value.double())
    context, logsumexp = criss_cross.criss_cross_attention(query, key, value)
    assert context.dtype == torch.bfloat16
    assert logsumexp.dtype == torch.float32
    torch.testing.assert_close(logsumexp.double(), exact[1], rtol=1e-5, atol=1e-5)
    rounded = exact[0].bfloat16().double()
    # Weights, both arms' sums and the mean of them are rounded, where the result alone must be.
    assert (context.double() - exact[0]).norm() <= 2 * (rounded - exact[0]).norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_affinities_beyond_the_range_of_half(dtype: torch.dtype) -> None:
    # Signs times an integer: the affinities, up to 320,000, are exact in float32.
    query, key = (200.0 * torch.randn(1, 8, 6, 9).sign() for _ in range(2))
    value = torch.randn(1, 4, 6, 9).to(dtype)
    got = criss_cross_attention(query.to(dtype), key.to(dtype), value)
    expected = criss_cross_attention_reference(query.double(), key.double(), value.double())
    assert torch.einsum("bchw,bchg->bhwg", query, key).max() > torch.finfo(torch.float16).max
    assert (got.double() - expected).abs().max() <= 2 * torch.finfo(dtype).eps * value.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_beyond_the_range_of_half(dtype: torch.dtype) -> None:
    """Even attention on a long cross: the mean fits the type, the sum that it comes from does not."""
    silent = torch.zeros(1, 4, 97, 97, dtype=dtype)
    value = torch.full((1, 2, 97, 97), 1000.0, dtype=dtype)
    got = criss_cross_attention(silent, silent, value)
    torch.testing.assert_close(got, value, rtol=2 * torch.finfo(dtype).eps, atol=0)


def test_channels_last_gives_the_same() -> None:
    inputs = [tensor.detach() for tensor in random_inputs(7, 5)]
    got = criss_cross_attention(*(tensor.contiguous(memory_format=torch.channels_last) for tensor in inputs))
    torch.testing.assert_close(got, criss_cross_attention(*inputs))


def test_inputs_stay_as_they_are() -> None:
    inputs = [tensor.detach() for tensor in random_inputs(5, 5)]
    copies = [tensor.clone() for tensor in inputs]
    criss_cross_attention(*inputs)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(inputs, copies, strict=True))


def test_autocast_does_not_lower_the_precision() -> None:
    inputs = [tensor.detach().float() for tensor in random_inputs(7, 5, spread=4.0)]
    expected = criss_cross_attention(*inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = criss_cross_attention(*inputs)
    torch.testing.assert_close(got, expected)


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_blocks_give_what_the_reference_does(
    height: int, width: int, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    inputs = [tensor.detach().to(dtype) for tensor in random_inputs(height, width, spread=3.0)]
    exact = criss_cross.criss_cross_attention_reference(*(tensor.double() for tensor in inputs))
    got = criss_cross.criss_cross_attention(*(tensor.contiguous(memory_format=layout) for tensor in inputs))
    for ours, theirs in zip(got, exact, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)
    assert got[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize(("height", "width"), [(33, 17), (97, 97)])
def test_blocks_are_as_exact_as_the_reference_in_the_same_type(height: int, width: int) -> None:
    inputs = [tensor.detach().float() for tensor in random_inputs(height, width, spread=2.0)]
    exact = criss_cross_attention_reference(*(tensor.double() for tensor in inputs))
    ours, theirs = criss_cross_attention(*inputs), criss_cross_attention_reference(*inputs)
    assert (ours.double() - exact).norm() <= 2 * (theirs.double() - exact).norm()


@pytest.mark.filterwarnings("ignore:.torch.jit.trace:DeprecationWarning")  # OpenVINO goes through it
def test_plain_inference_takes_blocks_and_all_else_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError

    inputs = random_inputs(4, 3)
    with monkeypatch.context() as patch:
        patch.setattr(criss_cross, "_attend_at_once", refuse)
        with torch.no_grad():
            criss_cross_attention(*inputs)
        criss_cross_attention(*(tensor.detach() for tensor in inputs))
        criss_cross_attention(*(tensor.detach().bfloat16() for tensor in inputs))
    monkeypatch.setattr(criss_cross, "_attend_by_blocks", refuse)
    assert criss_cross_attention(*inputs).requires_grad
    criss_cross_attention(*(tensor.detach().half() for tensor in inputs))
    torch.jit.trace(criss_cross_attention, [tensor.detach() for tensor in inputs], check_trace=False)


@pytest.mark.parametrize("learning", [True, False])
def test_any_row_of_the_attention_follows_from_the_logsumexp(
    learning: bool, criss_cross_map: Callable[[Tensor, Tensor], Tensor]
) -> None:
    query, key, value = random_inputs(6, 9)
    with torch.set_grad_enabled(learning):
        _, logsumexp = criss_cross.criss_cross_attention(query, key, value)
    _, expected = criss_cross.criss_cross_attention_reference(query, key, value)
    torch.testing.assert_close(logsumexp.detach(), expected.detach())
    row, column = 4, 2
    along_row = (query[1, :, row, column] @ key[1, :, row] - logsumexp[1, row, column]).exp()
    attention = criss_cross_map(query, key)[1].unflatten(0, (6, 9)).unflatten(2, (6, 9))
    torch.testing.assert_close(along_row, attention[row, column, row])


class Attending(nn.Module):
    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return criss_cross_attention(query, key, value)


@pytest.mark.filterwarnings("ignore:.torch.jit.trace:DeprecationWarning")
@pytest.mark.parametrize("how", ["export", "trace"])
def test_exported_once_it_is_right_at_any_size(how: str) -> None:
    inputs = tuple(tensor.detach().float() for tensor in random_inputs(7, 5))
    if how == "export":
        sizes = {0: Dim.AUTO, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
        exported = torch.export.export(
            Attending(), inputs, dynamic_shapes=dict.fromkeys(("query", "key", "value"), sizes)
        )
        assert "diagonal" not in str(exported.graph)  # which ONNX and OpenVINO cannot write to
        attend = exported.module()
    else:
        attend = torch.jit.trace(Attending(), inputs)
        assert "diagonal" not in str(attend.graph)
    for height, width in ((7, 5), (12, 9), (2, 3)):
        inputs = tuple(tensor.detach().float() for tensor in random_inputs(height, width))
        torch.testing.assert_close(attend(*inputs), criss_cross_attention_reference(*inputs))
