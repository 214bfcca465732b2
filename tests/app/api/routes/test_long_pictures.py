"""Pictures longer than a format can hold: WebP ends at 16,383 pixels, JPEG as libjpeg writes it at 65,500."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio
from PIL import Image

from app.api.record import Record
from models import Trace
from tests.fakes import FakeDevice
from tests.servers import picture

LONG = 16_384
ASKED = {"/segment": {"format": "overlay"}, "/results/long": {"format": "overlay"}, "/attention/long": {"class": "0"}}


@pytest_asyncio.fixture(loop_scope="session")
async def faked(
    serve: Callable[..., AbstractAsyncContextManager[Any]], make_record: Callable[..., Record], dense_trace: Trace
) -> AsyncIterator[tuple[httpx.AsyncClient, FakeDevice]]:
    """A service that keeps the result `long`."""
    device = FakeDevice()
    async with serve(worker=device) as (_, client, services):
        services.results.put("long", replace(make_record(np.zeros((8, LONG), np.uint8), dense_trace), id="long"))
        yield client, device


async def ask(client: httpx.AsyncClient, path: str, accept: str, width: int = LONG) -> httpx.Response:
    upload = {"content": picture(0, width)} if path == "/segment" else {}
    method = "POST" if upload else "GET"
    return await client.request(method, path, params=ASKED[path], headers={"accept": accept}, **upload)


@pytest.mark.parametrize("path", ASKED)
@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("image/webp, image/png;q=0.5", "image/png"),
        ("image/webp, image/jpeg;q=0.5", "image/jpeg"),
        ("image/webp, image/*;q=0.1", "image/png"),
        ("image/jpeg", "image/jpeg"),
    ],
)
async def test_another_format_that_is_accepted_takes_its_place(
    faked: tuple[httpx.AsyncClient, FakeDevice], path: str, accept: str, media_type: str
) -> None:
    client, _ = faked
    reply = await ask(client, path, accept)
    assert (reply.status_code, reply.headers["content-type"]) == (200, media_type), reply.text
    found = Image.open(io.BytesIO(reply.content))
    assert (found.mode, found.size, Image.MIME[found.format or ""]) == ("RGB", (LONG, 8), media_type)


@pytest.mark.parametrize("path", ASKED)
async def test_nothing_else_is_accepted(
    faked: tuple[httpx.AsyncClient, FakeDevice], assert_problem: Callable[..., None], path: str
) -> None:
    client, device = faked
    device.staged.clear()
    reply = await ask(client, path, "image/webp")
    assert_problem(reply, 406, "not-acceptable", limit=16_383, actual=LONG)
    assert not device.staged, "it is refused before the pass"


async def test_the_longest_of_each_is_what_it_says(
    faked: tuple[httpx.AsyncClient, FakeDevice], assert_problem: Callable[..., None]
) -> None:
    client, _ = faked
    for media_type, limit in (("image/webp", 16_383), ("image/jpeg", 65_500)):
        reply = await ask(client, "/segment", media_type, limit)
        assert (reply.status_code, reply.headers["content-type"]) == (200, media_type)
        assert Image.open(io.BytesIO(reply.content)).size == (limit, 8)
        reply = await ask(client, "/segment", media_type, limit + 1)
        assert_problem(reply, 406, "not-acceptable", limit=limit, actual=limit + 1)


async def test_what_is_no_picture_of_that_size_is_as_it_was(faked: tuple[httpx.AsyncClient, FakeDevice]) -> None:
    client, _ = faked
    webp = {"accept": "image/webp"}
    small = await client.get("/attention/long", params={"class": "0", "size": "map"}, headers=webp)
    assert (small.status_code, small.headers["content-type"]) == (200, "image/webp")
    for wanted, media_type in (("json", "application/json"), ("palette", "image/png")):
        reply = await client.get("/results/long", params={"format": wanted}, headers=webp)
        assert (reply.status_code, reply.headers["content-type"]) == (200, media_type)
