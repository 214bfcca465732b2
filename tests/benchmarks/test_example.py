"""The README's picture can be drawn again."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import example
from training.scenes import draw_street


def test_the_picture_is_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(example, "RESULT", tmp_path / "example.jpg")
    monkeypatch.setattr("sys.argv", ["example"])
    example.main()
    picture = np.array(Image.open(example.RESULT)).astype(int)
    street, _ = draw_street(example.SEED)
    height, width = street.shape[:2]
    assert picture.shape == (2 * height, 2 * width, 3)
    assert np.abs(picture[:height, :width] - street).mean() < 8  # but for JPEG
    parts = [picture[top : top + height, left : left + width] for top in (0, height) for left in (0, width)]
    assert all((np.abs(one - other) > 60).any() for one, other in pairwise(parts))  # beyond what JPEG does
