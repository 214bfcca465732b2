from __future__ import annotations

import pytest

from app.api.inference import choose_inference
from app.api.schemas import SegmentQuery
from app.errors import InvalidParameter
from models.windows import WHOLE, Inference

USUAL = Inference("slide", crop=(769, 769), stride=(513, 513), scales=(1.0, 1.5), flip=True)


def test_what_a_request_does_not_say_is_as_the_model_has_it() -> None:
    assert choose_inference(SegmentQuery(), USUAL) == USUAL
    assert choose_inference(SegmentQuery(), WHOLE) == WHOLE


def test_what_it_says_wins() -> None:
    query = SegmentQuery(mode="whole", scales="0.5, 1,2", flip=False)
    assert choose_inference(query, USUAL) == Inference("whole", (769, 769), (513, 513), (0.5, 1.0, 2.0), flip=False)


@pytest.mark.parametrize("scales", ["", "1,", "one", "1;2", "0.24", "nan", "-1", "2.01", "inf", "1,1e300"])
def test_scales_that_are_none_of_ours(scales: str) -> None:
    with pytest.raises(InvalidParameter, match=r"^scales: "):
        choose_inference(SegmentQuery(scales=scales), WHOLE)
