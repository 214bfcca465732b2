"""Servers to talk to over real connections, and clients that see when each byte comes."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.api.dependencies import Services
from app.engine.device import Device
from app.main import create_app
from app.server import Server
from app.settings import Settings
from models import list_models
from models.transforms import Preprocessing
from tests.fakes import until

# The default model, but for its input: images 8 pixels high, and up to 512 wide, keep the size they have.
AS_IS = Preprocessing(scale=(512, 8), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
SPEC = replace(list_models()[0], preprocessing=AS_IS)
PATIENCE = 60.0  # seconds


@dataclass(frozen=True)
class Listening:
    """A server on this event loop."""

    server: Server
    task: asyncio.Task[None]
    services: Services
    port: int

    def images(self, outcome: str) -> float:
        return self.value("images_total", model=SPEC.name, outcome=outcome) or 0.0

    def value(self, name: str, **labels: str) -> float | None:
        return self.services.metrics.registry.get_sample_value(f"seglens_{name}", labels)


@asynccontextmanager
async def listening(device: Device, **settings: Any) -> AsyncIterator[Listening]:
    """The service on that device, ready; shut down in order afterwards."""
    chosen = Settings(**{"port": 0, "drain_timeout": 10.0, **settings})
    app = create_app(chosen, device, [SPEC])
    services: Services = app.state.services
    server = Server(app, chosen)
    task = asyncio.create_task(server.serve())
    try:
        await until(lambda: server.started and services.engine.state == "ready")
        yield Listening(server, task, services, server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        await asyncio.wait_for(task, PATIENCE)


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def problem(self) -> dict[str, Any]:
        body: dict[str, Any] = json.loads(self.content)
        return body

    @property
    def mask(self) -> NDArray[np.uint8]:
        return np.array(Image.open(io.BytesIO(self.content)))


@dataclass
class Connection:
    """One client, who sends what it likes when it likes, and may hang up."""

    port: int
    reader: asyncio.StreamReader = field(init=False)
    writer: asyncio.StreamWriter = field(init=False)

    async def __aenter__(self) -> Connection:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        return self

    async def __aexit__(self, *error: object) -> None:
        self.hang_up()

    def hang_up(self) -> None:
        self.writer.transport.abort()

    def ask(self, length: int, headers: Mapping[str, str] | None = None) -> None:
        """The head of a POST with a body of so many bytes, which is yet to be sent."""
        lines = {"Host": "seglens", "Content-Type": "image/png", "Content-Length": str(length), **(headers or {})}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self.writer.write(f"POST /segment?format=png HTTP/1.1\r\n{head}\r\n".encode())

    def get(self, path: str) -> None:
        self.writer.write(f"GET {path} HTTP/1.1\r\nHost: seglens\r\n\r\n".encode())

    def post(self, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.ask(len(body), headers)
        self.writer.write(body)

    async def reply(self, seconds: float = PATIENCE) -> Reply:
        async with asyncio.timeout(seconds):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            pairs = [line.partition(": ") for line in head[1:] if line]
            headers = {name.lower(): value for name, _, value in pairs}
            content = await self.reader.readexactly(int(headers["content-length"]))
        return Reply(int(head[0].split()[1]), headers, content)


def picture(value: int, width: int = 12, height: int = 8) -> bytes:
    """A PNG whose every pixel is of that value, and so its mask by a fake device."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (value,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


async def posted(port: int, body: bytes, headers: Mapping[str, str] | None = None) -> Reply:
    """The reply to an image that is sent whole, by a client that stays."""
    async with Connection(port) as client:
        client.post(body, headers)
        return await client.reply()
