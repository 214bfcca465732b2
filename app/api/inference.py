"""How a request wants its image looked at, where it is not as the model was evaluated."""

from __future__ import annotations

import math
from dataclasses import replace

from app.api.schemas import SegmentQuery
from app.errors import InvalidParameter
from models.windows import Inference

MIN_SCALE, MAX_SCALE = 0.25, 2.0


def choose_inference(query: SegmentQuery, usual: Inference) -> Inference:
    """
    Raises:
        InvalidParameter: scales that are no numbers, or beyond the limits
    """
    if query.mode is None and query.scales is None and query.flip is None:
        return usual
    return replace(
        usual,
        mode=query.mode or usual.mode,
        scales=usual.scales if query.scales is None else _parse(query.scales),
        flip=usual.flip if query.flip is None else query.flip,
    )


def _parse(scales: str) -> tuple[float, ...]:
    return tuple(_scale(text.strip()) for text in scales.split(","))


def _scale(text: str) -> float:
    try:
        scale = float(text)
    except ValueError:
        raise InvalidParameter(f"scales: {text!r} is no number; they are given as in 0.5,1,1.5") from None
    if math.isnan(scale) or scale < MIN_SCALE:
        raise InvalidParameter(f"scales: {text} is below {MIN_SCALE}", limit=MIN_SCALE)
    if scale > MAX_SCALE:
        raise InvalidParameter(f"scales: {text} is above {MAX_SCALE}", limit=MAX_SCALE, actual=min(scale, 1e9))
    return scale
