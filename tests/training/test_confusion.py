"""Confusion matrix and scores against figures worked out by hand, and the matrix as a picture."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from training.confusion import CELL, MARGIN, Scores, confusion_matrix, draw, scores
from training.data import IGNORE

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


def test_json_has_null_where_nothing_is_labelled() -> None:
    written = scores(torch.zeros(2, 2, dtype=torch.int64)).to_json()
    assert json.loads(written) == {"miou": None, "accuracy": None, "iou": [None, None]}


def brightness(picture: Image.Image) -> list[list[int]]:
    """Of each cell, beside its text."""
    corners = range(MARGIN + 3, picture.width, CELL)
    brightness: list[list[int]] = np.asarray(picture.convert("L"))[np.ix_(corners, corners)].tolist()
    return brightness


@pytest.mark.parametrize("count", [2, 11])
def test_picture_has_room_for_names_and_cells(count: int) -> None:
    picture = draw(torch.eye(count), [f"class {index}" for index in range(count)])
    assert picture.size == (MARGIN + CELL * count, MARGIN + CELL * count)
    margins = [picture.crop((0, MARGIN, MARGIN, picture.height)), picture.crop((MARGIN, 0, picture.width, MARGIN))]
    assert all(np.asarray(margin).min() < 100 for margin in margins)


def test_perfect_predictor_s_picture_is_dark_on_the_diagonal_alone() -> None:
    cells = brightness(draw(torch.diag(torch.tensor([5, 1000, 1])), ["a", "b", "c"]))
    assert all(cells[row][column] == 255 for row in range(3) for column in range(3) if row != column)
    assert max(cells[index][index] for index in range(3)) < 90


def test_cells_darken_with_their_share_of_the_row() -> None:
    cells = brightness(draw(torch.tensor([[1, 9, 90], [10, 90, 900], [0, 0, 0]]), ["a", "b", "c"]))
    assert 255 > cells[0][0] > cells[0][1] > cells[0][2]
    assert cells[1] == cells[0]
    assert cells[2] == [255] * 3
