"""One picture by one model, from the door of its queue to a result that is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from app.api.deadline import until
from app.api.decoding import Picture
from app.api.dependencies import Services
from app.api.record import Record
from app.engine.memory import outlive
from app.results import new_id

Value = TypeVar("Value")

LATE = 1.0  # seconds for which an answer whose mask was there in time may be late: the device has done its work


@dataclass(frozen=True)
class Order:
    """What a model is asked for.

    Attributes:
        caller: by which a refused one is known when it comes back
        deadline: by `time.monotonic`
        passes: that it is expected to take
        group: of the result's id, if there are others by the same request
    """

    model: str
    caller: str
    deadline: float
    passes: int
    group: str = ""


async def segment_picture(
    services: Services, picture: Picture, order: Order, nbytes: int, finish: Callable[[Record], Value]
) -> tuple[Record, Value]:
    """
    Args:
        nbytes: of the picture's, those that count as this order's
        finish: makes an answer of the record, on a codec thread; the order holds its place until then

    Raises:
        ServiceError: all that the engine and `Picture.prepared` raise
    """
    with services.engine.admitted(order.model, order.caller, nbytes, order.deadline, order.passes) as job:
        spec = job.payload.loaded.spec
        images = await picture.prepared(spec, order.deadline)
        segmentation = await services.engine.segment(job, images)

        def finished() -> tuple[Record, Value]:
            record = Record(new_id(order.group), spec, picture.body, segmentation)
            kept = record.nbytes <= services.results.max_bytes
            record = replace(record, segmentation=outlive(segmentation) if kept else segmentation, kept=kept)
            return record, finish(record)

        async with until(order.deadline + LATE, "the answer was ready"):
            record, value = await services.in_codec_thread(finished)
    if record.kept:
        services.results.put(record.id, record)
    return record, value
