"""One upload, decoded once for however many models."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from app.api import decoding
from app.api.decoding import Picture
from app.api.dependencies import Services
from app.api.schemas import SegmentQuery
from app.errors import DeadlineExceeded, InferenceFailed, InvalidParameter, TooLarge, UnsupportedImage
from app.imaging import encode_rgb
from app.timings import Timings
from models import list_models
from tests.fakes import FakeDevice, until

NAMES = "nonlocal-mobilenetv2-camvid,ccnet-mobilenetv2-camvid"


@pytest.fixture
def decoded_times(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of each decoding."""
    times: list[int] = []

    def decode(data: bytes, max_pixels: int) -> Any:
        times.append(len(data))
        return original(data, max_pixels)

    original = decoding.decode
    monkeypatch.setattr(decoding, "decode", decode)
    return times


def soon() -> float:
    return time.monotonic() + 20


async def test_models_that_ask_together_share_a_decoding(
    services: Services, street: bytes, decoded_times: list[int]
) -> None:
    timings = Timings()
    picture = Picture(services, street, SegmentQuery(), timings)
    found = await asyncio.gather(*(picture.prepared(spec, soon()) for spec in list_models()))
    assert decoded_times == [len(street)]
    assert [len(images) for images in found] == [1] * len(list_models())
    assert timings.stages["decode"] > 0
    await picture.prepared(list_models()[0], soon())  # whoever comes late is answered too
    assert len(decoded_times) == 2


async def test_what_is_no_image_is_told_to_all(services: Services) -> None:
    picture = Picture(services, b"no image", SegmentQuery(), Timings())
    found = await asyncio.gather(*(picture.prepared(spec, soon()) for spec in list_models()), return_exceptions=True)
    assert [type(error) for error in found] == [UnsupportedImage] * len(list_models())


async def test_passes_that_no_queue_has_room_for_are_never_made(
    services: Services, street: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "prepare", lambda *_: pytest.fail("it was resized"))
    query = SegmentQuery.model_validate({"scales": ",".join(["2"] * 64), "flip": "true"})  # 472 MB
    with pytest.raises(InvalidParameter, match=r"bytes with its passes; the limit is 268435456"):
        await Picture(services, street, query, Timings()).prepared(list_models()[0], soon())


async def test_an_empty_queue_takes_a_picture_larger_than_its_limit(serve: Any) -> None:
    body = encode_rgb(np.full((32, 48, 3), 3, dtype=np.uint8))  # of class 3, for a fake
    limit = len(body) - 1
    async with serve(worker=FakeDevice(), max_queue_bytes=limit) as (_, client, _):
        assert (await client.post("/segment", content=body)).status_code == 200
        refused = await client.post("/segment?flip=true", content=body)
    assert (refused.status_code, refused.json()["limit"]) == (422, limit)


async def test_too_many_pixels(services: Services, huge_header: bytes) -> None:
    with pytest.raises(TooLarge):
        await Picture(services, huge_header, SegmentQuery(), Timings()).prepared(list_models()[0], soon())


async def test_too_many_passes(services: Services, street: bytes) -> None:
    query = SegmentQuery(mode="slide", scales=",".join(["2"] * 200))
    with pytest.raises(InvalidParameter):
        await Picture(services, street, query, Timings()).prepared(list_models()[0], soon())


async def test_who_gives_up_takes_it_from_no_one_else(
    services: Services, street: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, original = threading.Event(), decoding.decode

    def decode(data: bytes, max_pixels: int) -> Any:
        assert gate.wait(20)
        return original(data, max_pixels)

    monkeypatch.setattr(decoding, "decode", decode)
    picture, (first, second, *_) = Picture(services, street, SegmentQuery(), Timings()), list_models()
    patient = asyncio.create_task(picture.prepared(second, soon()))
    with pytest.raises(DeadlineExceeded):
        await picture.prepared(first, time.monotonic() + 0.05)
    gate.set()
    assert len(await patient) == 1


@pytest.fixture
def no_collector() -> Iterator[None]:
    """What is still there is held by something, or by itself."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def no_log() -> Iterator[None]:
    """Pytest keeps logged errors, with their tracebacks. By `disable` alone: loggers remember whether they log."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


async def no_picture_is_left() -> None:
    # A thread may not have let go of the last yet.
    await until(lambda: not any(isinstance(held, Picture) for held in gc.get_objects()), seconds=10)


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize(
    ("share", "query", "status"),
    [
        (1, "", 200),
        (1, f"?model={NAMES}", 200),
        (1, f"?flip=true&scales={','.join(['2'] * 64)}", 422),  # too many bytes for the queue, once it is decoded
        (0.9, "", 400),
        (0.5, "", 400),
        (0.1, "", 400),
        (0, "", 415),
    ],
)
async def test_no_picture_waits_for_the_collector_of_garbage(
    client: httpx.AsyncClient, street: bytes, share: float, query: str, status: int
) -> None:
    body = street[: round(share * len(street))] or b"no image"
    for _ in range(3):
        reply = await client.post(f"/segment{query}", content=body)
        assert reply.status_code == status, reply.text
    await no_picture_is_left()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("query", ["", f"?model={NAMES}"])
async def test_no_picture_is_left_by_who_has_no_time(
    client: httpx.AsyncClient, street: bytes, monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    gate = threading.Event()
    monkeypatch.setattr(decoding, "decode", lambda *_: gate.wait(60))
    try:
        reply = await client.post(f"/segment{query}", content=street, headers={"x-request-timeout-seconds": "0.1"})
    finally:
        gate.set()
    assert reply.status_code == 504
    await no_picture_is_left()


@pytest.mark.usefixtures("no_collector", "no_log")
@pytest.mark.parametrize("query", ["", f"?model={NAMES}"])
async def test_no_picture_is_left_by_a_bug(
    client: httpx.AsyncClient, street: bytes, monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(decoding, "decode", fail)
    reply = await client.post(f"/segment{query}", content=street)
    assert reply.status_code == 500
    await no_picture_is_left()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("failing", [1, 2])
async def test_no_picture_is_left_by_models_that_fail(
    client: httpx.AsyncClient, services: Services, street: bytes, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    async def segment(job: Any, images: Any) -> Any:
        if job.model in NAMES.split(",")[:failing]:
            raise InferenceFailed("it failed")
        return await whole(job, images)

    whole = services.engine.segment
    monkeypatch.setattr(services.engine, "segment", segment)
    reply = await client.post(f"/segment?model={NAMES}", content=street)
    assert reply.status_code == (200 if failing == 1 else 500)
    await no_picture_is_left()


@pytest.mark.usefixtures("no_collector")
async def test_no_picture_is_left_by_a_model_that_is_not_there(serve: Any) -> None:
    body = encode_rgb(np.full((32, 48, 3), 3, dtype=np.uint8))  # of class 3, for a fake
    async with serve(worker=FakeDevice(), models=NAMES.split(",")[1]) as (_, client, _):
        reply = await client.post(f"/segment?model={NAMES}", content=body)
        assert [len(reply.json()[part]) for part in ("results", "failures")] == [1, 1], reply.text
        await no_picture_is_left()
