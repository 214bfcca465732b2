from __future__ import annotations

from collections.abc import Callable

import numpy as np

from app.api.record import OVERHEAD, Record
from models import Trace


def test_size_and_bytes(make_record: Callable[..., Record], dense_trace: Trace) -> None:
    record = make_record(np.zeros((3, 5), np.uint8), dense_trace)
    assert record.size == (5, 3)
    assert record.nbytes == len(record.upload) + 2 * 15 + 2 * 2 * 8 * 12 * 16 + OVERHEAD
