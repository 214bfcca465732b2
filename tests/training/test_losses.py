"""The losses against their definitions, spelled out pixel by pixel."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from training.data import IGNORE
from training.losses import cross_entropy, lovasz_softmax, resize

# Two masks of 2 x 3 pixels; no pixel is of class 3.
MASKS = torch.tensor([[[0, 0, 1], [2, 1, IGNORE]], [[IGNORE, 0, 2], [2, 2, 0]]])
BLANK = torch.full_like(MASKS, IGNORE)
WEIGHTS = torch.tensor([0.5, 3, 1, 2])


def new_logits() -> Tensor:
    return (2 * torch.randn(2, 4, 2, 3, generator=torch.Generator().manual_seed(0))).requires_grad_()


def labelled_pixels(logits: Tensor, masks: Tensor) -> list[tuple[int, Tensor]]:
    """Class id and probabilities [K] of each."""
    pixels = zip(masks.flatten().tolist(), logits.softmax(1).movedim(1, -1).flatten(0, 2), strict=True)
    return [(label, probabilities) for label, probabilities in pixels if label != IGNORE]


def jaccard_loss(truth: set[int], wrong: set[int]) -> float:
    """1 - IoU of a class whose pixels are `truth`, where exactly the pixels `wrong` are answered wrongly."""
    return 1 - len(truth - wrong) / len(truth | wrong)


def lovasz_by_definition(logits: Tensor, masks: Tensor) -> Tensor:
    """The extension of `jaccard_loss` as an integral: over a threshold above which an error makes a pixel wrong."""
    pixels = labelled_pixels(logits, masks)
    losses = []
    for label in sorted({label for label, _ in pixels}):
        truth = {index for index, (true, _) in enumerate(pixels) if true == label}
        errors = [(float(true == label) - probabilities[label]).abs() for true, probabilities in pixels]
        loss = torch.zeros(())
        for low, high in pairwise([torch.zeros(()), *sorted(errors)]):
            loss = loss + (high - low) * jaccard_loss(truth, {i for i, error in enumerate(errors) if error >= high})
        losses.append(loss)
    return torch.stack(losses).mean()


def answer(ids: Tensor, sureness: float = 100) -> Tensor:
    """Logits [B, 4, H, W] of a network sure of `ids`."""
    return sureness * F.one_hot(ids, 4).movedim(-1, 1).float()


def gradient(loss: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(loss, logits)[0]


def test_resized_logits_are_float32_at_the_masks_size() -> None:
    resized = resize(torch.tensor([[[[0.0, 1.0]]]], dtype=torch.bfloat16), torch.zeros(1, 2, 4))
    assert resized.dtype == torch.float32
    assert resized.tolist() == [[[[0, 0.25, 0.75, 1]] * 2]]


def test_cross_entropy_is_the_weighted_mean_over_labelled_pixels() -> None:
    logits = new_logits()
    pixels = labelled_pixels(logits, MASKS)
    total = sum(-WEIGHTS[label] * probabilities[label].log() for label, probabilities in pixels)
    expected = total / sum(WEIGHTS[label] for label, _ in pixels)
    assert len(pixels) == 10
    torch.testing.assert_close(cross_entropy(logits, MASKS, WEIGHTS), expected)


def test_lovasz_softmax_is_its_definition_and_so_is_its_gradient() -> None:
    logits = new_logits()
    got, expected = lovasz_softmax(logits, MASKS), lovasz_by_definition(logits, MASKS)
    torch.testing.assert_close(got, expected)
    slope = gradient(expected, logits)
    torch.testing.assert_close(gradient(got, logits), slope)
    assert slope.abs().max() > 0.01


@pytest.mark.parametrize(
    ("truth", "ids", "loss"),
    [
        ([0, 0, 0, 1], [0, 0, 1, 1], 1 - (2 / 3 + 1 / 2) / 2),
        ([0, 0, 1, IGNORE], [0, 1, 1, 2], 1 - (1 / 2 + 1 / 2) / 2),
        ([0, 0, 1, 1], [0, 3, 1, 1], 1 - (1 / 2 + 1) / 2),  # class 3 is answered, but not there
        ([0, 0, 1, 1], [1, 1, 0, 0], 1),
        ([2, 2, 2, 2], [2, 2, 2, 2], 0),
        ([0, 1, 2, 3], [0, 1, 2, 3], 0),
    ],
)
def test_lovasz_softmax_of_a_sure_answer_is_one_minus_the_mean_iou(
    truth: list[int], ids: list[int], loss: float
) -> None:
    got = lovasz_softmax(answer(torch.tensor([[ids]])), torch.tensor([[truth]]))
    assert got.item() == pytest.approx(loss, abs=1e-6)


def test_a_step_against_lovasz_softmax_s_gradient_lowers_it() -> None:
    logits = answer(torch.roll(MASKS.clamp(max=3), 1, 2), sureness=1).requires_grad_()
    before = lovasz_softmax(logits, MASKS)
    with torch.no_grad():
        assert lovasz_softmax(logits - 0.1 * gradient(before, logits), MASKS) < before


def losses(logits: Tensor, masks: Tensor) -> list[Tensor]:
    return [cross_entropy(logits, masks, WEIGHTS), lovasz_softmax(logits, masks)]


def test_unlabelled_pixels_have_no_say() -> None:
    logits = new_logits()
    unlabelled = (MASKS == IGNORE)[:, None]
    for loss, other in zip(losses(logits, MASKS), losses(logits + 9 * unlabelled * logits, MASKS), strict=True):
        assert torch.equal(loss, other)
        assert (gradient(loss, logits).any(1, keepdim=True) != unlabelled).all()


def test_where_nothing_is_labelled_loss_and_gradient_are_zero() -> None:
    logits = new_logits()
    for loss in losses(logits, BLANK):
        assert loss.item() == 0
        assert not gradient(loss, logits).any()


def test_lovasz_softmax_stays_in_float32_under_autocast() -> None:
    logits = new_logits()
    with torch.autocast("cpu", torch.bfloat16):
        got = lovasz_softmax(logits, MASKS)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, lovasz_softmax(logits, MASKS))
