from __future__ import annotations

import numpy as np
import pytest

from benchmarks.rounding import differences


def test_the_share_of_a_cell_s_weight_that_is_elsewhere() -> None:
    exact = np.array([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0], [0.2, 0.3, 0.5]])
    rounded = np.array([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0], [0.2, 0.3, 0.5]])
    found = differences([rounded, exact], [exact, exact])
    assert found["cells"] == 6
    assert found["elsewhere, most"] == 1.0
    assert found["elsewhere, 95th percentile"] == pytest.approx(
        np.percentile([0.25, 1.0, 0.0, 0.0, 0.0, 0.0], 95), abs=1e-4
    )
    assert found["another is heaviest"] == pytest.approx(1 / 6, abs=1e-4)
