"""The kernel, on a CUDA device if there is one, and else interpreted on the CPU (tests/conftest.py asks for that)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.ops import upsample
from models.ops.upsample import Size, upsample_argmax, upsample_argmax_reference
from tests.models.ops.margins import margins

kernels = pytest.importorskip("models.ops.upsample_triton", reason="no Triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CASES = [
    ((6, 8), (23, 30), (45, 61)),
    ((6, 8), (23, 30), (16, 12)),
    ((9, 7), (9, 7), (9, 7)),
    ((9, 7), (33, 25), (33, 31)),
    ((1, 8), (1, 30), (1, 77)),
    ((8, 1), (30, 1), (77, 1)),
    ((1, 1), (1, 1), (5, 4)),
    ((5, 6), (17, 20), (1, 1)),
]


@pytest.fixture(autouse=True)
def _small_blocks_of_poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks even of small maps, the last not full; whatever is not written reads as 111, which is no class."""
    monkeypatch.setattr(kernels, "BLOCK", 16)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: empty(*args, **kwargs).fill_(111))


def run(logits: Tensor, input_size: Size, original: Size, *, align_corners: bool) -> tuple[Tensor, Tensor]:
    axes = [
        upsample._twice(*lengths, align_corners, torch.device(DEVICE)).taps
        for lengths in zip(logits.shape[1:], input_size, original, strict=True)
    ]
    ids, confidence = kernels.upsample_argmax_triton(logits.to(DEVICE), *axes)
    return ids.cpu(), confidence.cpu()


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("grid", "input_size", "original"), CASES)
def test_kernel_matches_the_definition(grid: Size, input_size: Size, original: Size, align_corners: bool) -> None:
    logits = 3 * torch.randn(5, *grid)
    ids, confidence = run(logits, input_size, original, align_corners=align_corners)
    wanted_ids, wanted_confidence = upsample_argmax_reference(logits, input_size, original, align_corners=align_corners)
    assert ids.shape == confidence.shape == original
    assert (margins(logits, input_size, original, align_corners)[ids != wanted_ids] <= 1e-4).all()
    assert (confidence.int() - wanted_confidence.int()).abs().max() <= 1


def test_channels_last_and_half_precision_logits() -> None:
    logits = (3 * torch.randn(1, 5, 6, 8)).half().contiguous(memory_format=torch.channels_last)[0]
    got = run(logits, (23, 30), (45, 61), align_corners=False)
    expected = run(logits.float().contiguous(), (23, 30), (45, 61), align_corners=False)
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))


def test_255_classes_fit_the_ids() -> None:
    logits = torch.zeros(255, 2, 2)
    logits[254] = 400
    ids, confidence = run(logits, (4, 4), (4, 4), align_corners=False)
    assert ids.unique().tolist() == [254]
    assert confidence.unique().tolist() == [255]


def test_a_first_resize_that_shrinks_takes_more_cells_than_the_kernel_has() -> None:
    assert upsample._twice(90, 7, 30, False, torch.device("cpu")).taps is None


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="no CUDA device")
def test_cuda_takes_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upsample, "decide", None)
    ids, _ = upsample_argmax(torch.randn(5, 6, 8, device=DEVICE), (23, 30), (45, 61), align_corners=False)
    assert ids.device.type == "cuda"
