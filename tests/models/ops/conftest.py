from __future__ import annotations

import pytest
from torch import Tensor

from models.ops import attention, criss_cross


@pytest.fixture(params=[1, 40, 1 << 18], ids="{} affinities at a time".format)
def _blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of one line, of some lines, and of all; whatever is not written reads as NaN."""
    monkeypatch.setattr(criss_cross, "LINE_ELEMENTS", request.param)
    monkeypatch.setattr(attention, "DENSE_ELEMENTS", request.param)
    empty = Tensor.new_empty
    monkeypatch.setattr(Tensor, "new_empty", lambda *args, **kwargs: empty(*args, **kwargs).fill_(float("nan")))
