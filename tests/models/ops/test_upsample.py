from __future__ import annotations

import weakref

import pytest
import torch

from models.ops import upsample
from models.ops.upsample import Size, upsample_argmax, upsample_argmax_reference
from tests.models.ops.margins import margins

# Logits, network input, original: up and up, up and down, nothing to do, one row, one column, one pixel.
CASES = [
    ((12, 16), (45, 60), (90, 121)),
    ((12, 16), (45, 60), (31, 23)),
    ((9, 7), (9, 7), (9, 7)),
    ((9, 7), (33, 25), (33, 25)),
    ((9, 7), (33, 25), (33, 61)),
    ((9, 7), (33, 25), (70, 25)),
    ((9, 7), (4, 3), (50, 2)),
    ((1, 8), (1, 30), (1, 77)),
    ((8, 1), (30, 1), (77, 1)),
    ((1, 1), (1, 1), (5, 4)),
    ((5, 6), (17, 20), (1, 1)),
]


@pytest.mark.parametrize("block_elements", [1, 500, 1 << 22])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("grid", "input_size", "original"), CASES)
def test_blockwise_matches_reference(
    grid: Size,
    input_size: Size,
    original: Size,
    align_corners: bool,
    block_elements: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(upsample.BLOCK_ELEMENTS, "cpu", block_elements)
    monkeypatch.setattr(upsample, "MIN_ROWS", 1)
    monkeypatch.setattr(upsample, "CHUNK_ELEMENTS", 4 * block_elements)
    logits = 3 * torch.randn(5, *grid)
    ids, confidence = upsample_argmax(logits, input_size, original, align_corners=align_corners)
    wanted_ids, wanted_confidence = upsample_argmax_reference(logits, input_size, original, align_corners=align_corners)
    assert ids.shape == confidence.shape == original
    assert ids.dtype == confidence.dtype == torch.uint8
    assert (margins(logits, input_size, original, align_corners)[ids != wanted_ids] <= 1e-4).all()
    assert (confidence.int() - wanted_confidence.int()).abs().max() <= 1


def test_without_torchscript_the_result_is_the_same_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA, and on a Python for which torch has none."""
    monkeypatch.setitem(upsample.BLOCK_ELEMENTS, "cpu", 5000)
    logits = 3 * torch.randn(5, 12, 16)
    fast = upsample_argmax(logits, (45, 60), (90, 121), align_corners=False)
    monkeypatch.setattr(upsample, "_decide_rows_scripted", upsample._decide_rows)
    plain = upsample_argmax(logits, (45, 60), (90, 121), align_corners=False)
    assert all(torch.equal(one, other) for one, other in zip(fast, plain, strict=True))


@pytest.mark.parametrize(("align_corners", "switch"), [(True, 9), (False, 7)])
def test_class_border_lies_where_the_ramp_crosses(align_corners: bool, switch: int) -> None:
    # Class 0 falls from 1 to 0 over two columns, class 1 is level at 0.15: they cross at 85 % of the way.
    logits = torch.stack([torch.tensor([[1.0, 0.0]]), torch.full((1, 2), 0.15)])
    ids, _ = upsample_argmax(logits, (1, 11), (1, 11), align_corners=align_corners)
    assert ids[0].tolist() == [0] * switch + [1] * (11 - switch)


def test_resizes_by_way_of_the_input_size() -> None:
    """Squeezed through one pixel, nothing but the map's mean is left of it."""
    logits = torch.tensor([[[5.0, -9.0]], [[0.0, 0.0]]])
    ids, _ = upsample_argmax(logits, (1, 1), (1, 6), align_corners=False)
    direct, _ = upsample_argmax(logits, (1, 6), (1, 6), align_corners=False)
    assert ids.tolist() == [[1] * 6]
    assert direct.tolist() != ids.tolist()


def test_confidence_is_the_softmax_probability() -> None:
    logits = torch.tensor([0.9, 0.05, 0.05]).log().view(3, 1, 1)
    _, confidence = upsample_argmax(logits, (4, 4), (4, 4), align_corners=False)
    assert confidence.unique().tolist() == [round(0.9 * 255)]


def test_255_classes_fit_the_ids() -> None:
    logits = torch.zeros(255, 2, 2)
    logits[254] = 400
    ids, confidence = upsample_argmax(logits, (4, 4), (4, 4), align_corners=False)
    assert ids.unique().tolist() == [254]
    assert confidence.unique().tolist() == [255]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_resized_in_float32(dtype: torch.dtype) -> None:
    logits = (3 * torch.randn(5, 12, 16)).to(dtype)
    ids, confidence = upsample_argmax(logits, (45, 60), (90, 121), align_corners=False)
    wanted_ids, wanted_confidence = upsample_argmax(logits.float(), (45, 60), (90, 121), align_corners=False)
    assert torch.equal(ids, wanted_ids)
    assert torch.equal(confidence, wanted_confidence)


def test_matrices_are_kept_for_the_next_image_but_for_large_ones() -> None:
    cpu = torch.device("cpu")
    usual = upsample._twice(60, 480, 1024, False, cpu)
    large = weakref.ref(upsample._twice(160, 1280, 60_000, False, cpu))
    assert upsample._twice(60, 480, 1024, False, cpu) is usual
    assert large() is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_whatever_the_network_gave_every_id_is_a_class(value: float) -> None:
    logits = torch.zeros(5, 4, 6)
    logits[2, 1, 3] = value
    ids, _ = upsample_argmax(logits, (16, 24), (20, 31), align_corners=False)
    assert ids.max() < 5
