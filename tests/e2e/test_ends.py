"""How the process ends: asked to under load, it loses no request; by a fault, its supervisor is told."""

from __future__ import annotations

import asyncio
import io
import re
import select
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from subprocess import Popen

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.servers import SPEC, Connection, Reply, picture, posted
from training.scenes import draw_street

Serving = Callable[..., AbstractContextManager[tuple[str, Path, "Popen[bytes]"]]]
CLIENTS = 12
DRAIN, SENDING = 20, 5  # seconds


def street(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(draw_street(seed, 120, 90)[0]).save(buffer, "PNG")
    return buffer.getvalue()


class Load:
    """Clients that each send one image after the other, on connections of their own, until they are refused."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.enough = asyncio.Event()
        self.replies: list[Reply] = []
        self.lost: list[str] = []
        self.unconnected = 0

    async def client(self, body: bytes) -> None:
        while True:
            try:
                connection = await Connection(self.port).__aenter__()
            except ConnectionRefusedError:
                self.unconnected += 1
                return
            try:
                connection.post(body)
                reply = await connection.reply(60)
            except (OSError, EOFError, TimeoutError) as exc:
                self.lost.append(repr(exc))
                return
            finally:
                connection.hang_up()
            self.replies.append(reply)
            if len(self.replies) >= CLIENTS:
                self.enough.set()
            if reply.status != 200:
                return

    @property
    def statuses(self) -> Counter[int]:
        return Counter(reply.status for reply in self.replies)


async def probed_until_closed(port: int) -> list[tuple[float, int]]:
    """What /readyz says and when, in seconds from now, until no one listens."""
    said, started = [], time.monotonic()
    while True:
        try:
            async with Connection(port) as client:
                client.get("/readyz")
                status = (await client.reply()).status
                said.append((time.monotonic() - started, status))
        except (OSError, EOFError):
            return said
        await asyncio.sleep(0.02)


async def test_no_accepted_request_is_lost_when_it_is_asked_to_end(serving: Serving) -> None:
    with serving(drain_timeout=str(DRAIN), max_queue_size=str(CLIENTS), max_passes="1", models=SPEC.name) as (
        url,
        log,
        process,
    ):
        load = Load(httpx.URL(url).port or 0)
        bodies = [street(seed) for seed in range(CLIENTS)]
        expected = [(await posted(load.port, body)).mask for body in bodies]
        clients = [asyncio.create_task(load.client(body)) for body in bodies]
        await asyncio.wait_for(load.enough.wait(), 60)

        process.send_signal(signal.SIGTERM)
        asked = time.monotonic()
        probes = asyncio.create_task(probed_until_closed(load.port))
        await asyncio.gather(*clients)
        assert await asyncio.to_thread(process.wait, DRAIN + SENDING) == 0
        assert time.monotonic() - asked < DRAIN + SENDING

        assert load.lost == [], "sent, and never answered"
        assert set(load.statuses) <= {200, 503}
        assert load.statuses[503] + load.unconnected == CLIENTS, "each client was refused in the end"
        assert all(reply.problem["type"] == "not-ready" for reply in load.replies if reply.status == 503)
        said = await probes
        ready = [when for when, status in said if status == 200]
        assert {status for _, status in said[len(ready) :]} == {503}, "once not ready, it is never ready again"
        assert max(ready, default=0.0) < SENDING, "probes are told at once, not when all is done"
        text = log.read_text()
        assert len(re.findall(r"POST /segment 200 ", text)) == load.statuses[200] + CLIENTS
        assert (drained := re.search(r"drained: (\d+) images finished, (\d+) refused", text))
        assert drained[2] == "0"
        assert "Traceback" not in text
        masks = {mask.tobytes() for mask in expected}
        for reply in load.replies:
            assert reply.status == 503 or np.ascontiguousarray(reply.mask).tobytes() in masks


@pytest.mark.skipif(sys.platform != "linux", reason="what is closed first is up to the system")
def test_one_that_is_killed_lets_nobody_in_once_its_connections_break(serving: Serving) -> None:
    """Or who comes again at once would lose another request. Of so many connections the last takes long to break."""
    with serving("tests.e2e.failing_device", "never", status=-9) as (url, _, process), ExitStack() as stack:
        address = ("127.0.0.1", httpx.URL(url).port or 0)
        connections = [stack.enter_context(socket.create_connection(address)) for _ in range(400)]
        for connection in connections:
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert all(connection.recv(9) == b"HTTP/1.1 " for connection in connections), "all are let in"
        for connection in connections:
            while b"\r\n\r\n" not in connection.recv(4096):
                pass
            connection.setblocking(False)
        broken = select.epoll()
        for connection in connections:
            broken.register(connection, select.EPOLLRDHUP)
        process.kill()
        assert broken.poll(60)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
        broken.close()
        process.wait()


@pytest.mark.parametrize("fault", ["breaks", "ends", "stalls"])
async def test_a_fault_of_the_device_ends_the_process_with_an_error(serving: Serving, fault: str) -> None:
    with serving("tests.e2e.failing_device", fault, stall_timeout="0.5", status=1) as (url, log, process):
        port = httpx.URL(url).port or 0
        assert [(await posted(port, picture(value))).mask[0, 0] for value in (1, 2)] == [1, 2]
        replies = await asyncio.gather(*(posted(port, picture(value)) for value in range(3, 9)))
        assert {(reply.status, reply.problem["type"]) for reply in replies} <= {
            (500, "inference-failed"),
            (503, "not-ready"),
        }
        assert replies[0].status == 500
        assert await asyncio.to_thread(process.wait, 60) == 1
        assert "the engine failed" in log.read_text()


async def test_a_model_on_its_way_to_the_device_holds_up_no_end(serving: Serving) -> None:
    with serving("tests.e2e.failing_device", "loads", admin_key="key") as (url, _, process):
        assert (await posted(httpx.URL(url).port or 0, picture(1))).mask[0, 0] == 1
        async with httpx.AsyncClient(base_url=url, timeout=60, headers={"Authorization": "Bearer key"}) as client:
            load = asyncio.create_task(client.post(f"/models/{SPEC.name}/load"))
            await asyncio.sleep(1)
            process.send_signal(signal.SIGTERM)
            assert (await load).json()["type"] == "not-ready"
        assert await asyncio.to_thread(process.wait, DRAIN) == 0
