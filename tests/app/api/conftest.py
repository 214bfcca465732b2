"""The real service, in process: one app with the bundled model for all tests, and others by `serve`."""

from __future__ import annotations

import asyncio
import io
import struct
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine, MutableMapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
import pytest_asyncio
import torch
from fastapi import FastAPI
from numpy.typing import NDArray
from PIL import Image
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.dependencies import Services
from app.api.record import Record
from app.engine.device import Device, Segmentation
from app.main import create_app
from app.settings import Settings
from app.timings import Timings
from models import Trace, list_models
from tests.fakes import FakeDevice, until
from training.scenes import draw_street

PROBLEM_MEMBERS = {"type", "title", "status", "detail", "instance", "error"}
NUMBERS = {"limit", "actual", "retry_after"}
Message = MutableMapping[str, Any]


class Served(NamedTuple):
    app: FastAPI
    client: httpx.AsyncClient
    services: Services


class Held(NamedTuple):
    app: FastAPI
    client: httpx.AsyncClient
    services: Services
    device: FakeDevice


class Seen(NamedTuple):
    """One reply of the service: what the OpenAPI document must declare."""

    method: str
    route: str
    status: int
    media_type: str


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        # The engine lives on the loop that started it, so whoever talks to it runs there too.
        if here in item.path.parents and pytest_asyncio.is_async_test(item):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)
    # It judges by what all other tests have seen.
    items.sort(key=lambda item: item.path == here / "test_openapi.py")


@pytest.fixture(scope="session")
def seen() -> set[Seen]:
    """Every reply that any test had, by route."""
    return set()


@pytest.fixture(scope="session")
def serve(seen: set[Seen]) -> Callable[..., AbstractAsyncContextManager[Served]]:
    """The service with settings and a device of one's own; with `start=False` it stays as before its lifespan."""

    @asynccontextmanager
    async def serve(*, start: bool = True, worker: Device | None = None, **settings: Any) -> AsyncIterator[Served]:
        app = create_app(Settings(**{"device": "cpu", "threads": 1, **settings}), worker)
        services: Services = app.state.services
        transport = httpx.ASGITransport(_recorded(app, seen))
        async with AsyncExitStack() as stack:
            if start:
                await stack.enter_async_context(app.router.lifespan_context(app))
            client = await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url="http://seglens"))
            if start:
                await until(lambda: services.engine.state == "ready", 60)
                assert (await client.get("/readyz")).status_code == 200
            yield Served(app, client, services)
        services.codecs.shutdown()

    return serve


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def served(serve: Callable[..., AbstractAsyncContextManager[Served]]) -> AsyncIterator[Served]:
    async with serve() as served:
        yield served


@pytest.fixture(scope="session")
def app(served: Served) -> FastAPI:
    return served.app


@pytest.fixture(scope="session")
def client(served: Served) -> httpx.AsyncClient:
    return served.client


@pytest.fixture(scope="session")
def services(served: Served) -> Services:
    return served.services


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def posted(client: httpx.AsyncClient, street: bytes) -> dict[str, Any]:
    """The JSON reply to `street`, whose result stays in the store."""
    reply = await client.post("/segment", content=street)
    assert reply.status_code == 200
    body: dict[str, Any] = reply.json()
    return body


@pytest.fixture(scope="session")
def street() -> bytes:
    """A PNG of a drawn scene, 240 wide and 180 high."""
    return _encoded(Image.fromarray(draw_street(1, 240, 180)[0]))


@pytest.fixture(scope="session")
def encoded() -> Callable[..., bytes]:
    """`encoded(image, format="PNG", **options)`: the bytes of a Pillow image."""
    return _encoded


@pytest.fixture(scope="session")
def decoded() -> Callable[[bytes], NDArray[np.uint8]]:
    return lambda content: np.array(Image.open(io.BytesIO(content)))


@pytest.fixture(scope="session")
def huge_header() -> bytes:
    """A PNG that announces 10,000 x 10,000 pixels in under 100 bytes."""
    small = _encoded(Image.new("RGB", (1, 1)))
    header = b"IHDR" + struct.pack(">II", 10_000, 10_000) + small[24:29]
    return small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]


@pytest.fixture(scope="session")
def assert_problem() -> Callable[..., None]:
    """`assert_problem(reply, status, type, **numbers)`: RFC 9457, with every member in its place."""

    def assert_problem(reply: httpx.Response, status: int, kind: str, **numbers: float) -> None:
        assert reply.status_code == status, reply.text
        assert reply.headers["content-type"] == "application/problem+json"
        problem = reply.json()
        assert PROBLEM_MEMBERS <= set(problem) <= PROBLEM_MEMBERS | NUMBERS
        assert (problem["type"], problem["status"]) == (kind, status)
        assert problem["title"]
        assert problem["title"] != "Error"
        assert problem["detail"] == problem["error"] != ""
        assert problem["instance"] == reply.headers["x-request-id"]
        assert "Traceback" not in reply.text
        assert '.py"' not in reply.text
        assert ("retry-after" in reply.headers) == ("retry_after" in problem)
        for name, value in numbers.items():
            assert problem[name] == value, problem

    return assert_problem


@pytest.fixture
def make_record() -> Callable[..., Record]:
    """A result made by hand: `make_record(mask, *traces, confidence=255)`, its picture all green."""

    def make_record(mask: NDArray[np.uint8], *traces: Trace, confidence: int = 255) -> Record:
        upload = _encoded(Image.new("RGB", mask.shape[::-1], (0, 200, 0)))
        segmentation = Segmentation(mask, np.full_like(mask, confidence), traces, Timings({"forward": 0.5}))
        return Record("made-by-hand", list_models()[0], upload, segmentation)

    return make_record


@pytest.fixture
def pyramid_traces() -> tuple[Trace, ...]:
    """What ANN leaves: AFNB and APNB over a grid of 12 x 16, 110 anchors each."""
    generator = torch.Generator().manual_seed(0)
    return tuple(
        Trace(
            block,
            1,
            torch.randn(8, 12, 16, generator=generator).half(),
            torch.randn(8, 110, generator=generator).half(),
            scale=8**-0.5,
            pool_scales=(1, 3, 6, 8),
        )
        for block in ("afnb", "apnb")
    )


@pytest.fixture
def dense_trace() -> Trace:
    """What Non-local leaves, over a grid of 12 x 16."""
    query, key = torch.randn(2, 8, 12, 16, generator=torch.Generator().manual_seed(1)).half()
    return Trace("nl", 1, query, key, scale=8**-0.5)


@pytest.fixture
def position_trace() -> Trace:
    """What DANet leaves, over a grid of 12 x 16."""
    query, key = torch.randn(2, 8, 12, 16, generator=torch.Generator().manual_seed(2)).half()
    return Trace("pam", 1, query, key, gamma=torch.tensor(0.4))


@pytest_asyncio.fixture(loop_scope="session")
async def held(serve: Callable[..., AbstractAsyncContextManager[Served]]) -> AsyncIterator[Held]:
    """The service in front of a device that keeps what it gets until its gate is opened, and takes four at a time."""
    device = FakeDevice()
    async with serve(worker=device) as served:
        device.shut()
        try:
            yield Held(*served, device)
        finally:
            device.gate.set()


@pytest.fixture(scope="session")
def post_and_leave() -> Callable[..., Coroutine[Any, Any, list[Message]]]:
    """`post_and_leave(app, chunks, leave, query="")`: POST /segment by a client that hangs up once `leave` is set.

    Chunks announced but not sent make it hang up in the middle of its upload.
    """

    async def post_and_leave(
        app: ASGIApp, chunks: list[Message], leave: asyncio.Event, query: str = ""
    ) -> list[Message]:
        sent: list[Message] = []
        waiting = iter(chunks)

        async def receive() -> Message:
            if chunk := next(waiting, None):
                return {"type": "http.request", **chunk}
            await leave.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            sent.append(message)

        path = {"path": "/segment", "raw_path": b"/segment", "root_path": "", "query_string": query.encode()}
        scope = {"type": "http", "http_version": "1.1", "method": "POST", "scheme": "http", "headers": [], **path}
        await app(scope, receive, send)
        return sent

    return post_and_leave


def _encoded(image: Image.Image, image_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def _recorded(app: ASGIApp, seen: set[Seen]) -> ASGIApp:
    async def recorded(scope: Scope, receive: Receive, send: Send) -> None:
        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                kind = dict(message["headers"]).get(b"content-type", b"").decode().partition(";")[0]
                route = getattr(scope.get("route"), "path", "")
                seen.add(Seen(scope["method"], route, message["status"], kind))
            await send(message)

        await app(scope, receive, noting)

    return recorded
