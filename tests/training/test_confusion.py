"""Confusion matrix and scores against figures worked out by hand."""

from __future__ import annotations

import json
import math

import pytest
import torch

from training.data import IGNORE
from training.metrics import Scores, confusion_matrix, scores

MASK = torch.tensor([[0, 0, 1], [2, 1, IGNORE]], dtype=torch.uint8)
IDS = torch.tensor([[0, 1, 1], [2, 1, 0]], dtype=torch.uint8)


def test_confusion_counts_true_classes_in_rows_and_predicted_ones_in_columns() -> None:
    assert confusion_matrix(MASK, IDS, 3).tolist() == [[1, 1, 0], [0, 2, 0], [0, 0, 1]]


@pytest.mark.parametrize("unlabelled", [3, 11, IGNORE])
def test_confusion_leaves_out_ids_beyond_the_classes(unlabelled: int) -> None:
    mask = torch.tensor([0, unlabelled, 2], dtype=torch.uint8)
    assert confusion_matrix(mask, torch.zeros(3, dtype=torch.uint8), 3).sum() == 2


def test_pair_index_does_not_overflow_a_byte() -> None:
    mask = torch.full((5,), 99, dtype=torch.uint8)
    assert confusion_matrix(mask, mask, 100)[99, 99] == 5


def test_scores_of_a_small_case() -> None:
    result = scores(confusion_matrix(MASK, IDS, 3))
    assert result.iou == pytest.approx((50, 100 * 2 / 3, 100))
    assert result.miou == pytest.approx((50 + 100 * 2 / 3 + 100) / 3)
    assert result.accuracy == pytest.approx(80)


def test_class_that_never_occurs_is_left_out_of_the_mean() -> None:
    result = scores(torch.tensor([[3, 0, 0], [0, 0, 0], [0, 0, 5]]))
    assert math.isnan(result.iou[1])
    assert result.miou == 100
    assert result.accuracy == 100


def test_class_that_is_only_predicted_counts_as_zero() -> None:
    result = scores(torch.tensor([[3, 1], [0, 0]]))
    assert result.iou == pytest.approx((75, 0))
    assert result.miou == pytest.approx(37.5)


def test_json_has_null_for_a_class_that_never_occurs() -> None:
    written = Scores(miou=70.5, accuracy=90, iou=(41, math.nan, 100)).to_json()
    assert json.loads(written) == {"miou": 70.5, "accuracy": 90, "iou": [41, None, 100]}
    assert "NaN" not in written
