"""One upload, decoded once for however many models."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from app.api import decoding
from app.api.decoding import Picture
from app.api.dependencies import Services
from app.api.schemas import SegmentQuery
from app.errors import DeadlineExceeded, InvalidParameter, TooLarge, UnsupportedImage
from app.timings import Timings
from models import list_models


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
