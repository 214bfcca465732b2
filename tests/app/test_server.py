"""How the server stops, over real connections: whoever was accepted is answered first."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace

import httpx
import pytest
from PIL import Image

from app import server
from app.api.dependencies import Services
from app.main import create_app
from app.server import Server
from app.settings import Settings
from tests.fakes import FakeDevice, until
from tests.servers import Connection


@dataclass(frozen=True)
class Running:
    """A server whose device keeps what it gets until its gate is opened."""

    server: Server
    task: asyncio.Task[None]
    services: Services
    client: httpx.AsyncClient
    device: FakeDevice

    async def accepted(self) -> asyncio.Task[httpx.Response]:
        """A request whose image is on the device."""
        request = asyncio.create_task(self.post())
        await self.device.is_entered()
        return request

    async def post(self) -> httpx.Response:
        return await self.client.post("/segment", content=picture(), headers={"content-type": "image/png"})

    async def asked_to_exit(self) -> None:
        self.server.should_exit = True
        await until(lambda: self.services.engine.state == "draining")

    def images(self, outcome: str) -> float | None:
        labels = {"model": self.services.settings.default_model, "outcome": outcome}
        return self.services.metrics.registry.get_sample_value("seglens_images_total", labels)


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (48, 32), (3, 3, 3)).save(buffer, "PNG")
    return buffer.getvalue()


@asynccontextmanager
async def running(drain_timeout: float, drain_notice: float = 0) -> AsyncIterator[Running]:
    settings, device = Settings(port=0, drain_timeout=drain_timeout, drain_notice=drain_notice), FakeDevice()
    app = create_app(settings, device)
    services: Services = app.state.services
    server = Server(app, settings)
    task = asyncio.create_task(server.serve())
    try:
        await until(lambda: server.started and services.engine.state == "ready")
        device.shut()
        port = server.servers[0].sockets[0].getsockname()[1]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield Running(server, task, services, client, device)
    finally:
        device.gate.set()
        server.should_exit = True
        await asyncio.wait_for(task, 60)


def assert_not_ready(reply: httpx.Response) -> None:
    assert reply.status_code == 503
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.json()["type"] == "not-ready"
    assert reply.headers["retry-after"] == "1"


async def test_what_was_accepted_is_finished() -> None:
    async with running(drain_timeout=60) as served:
        request = await served.accepted()
        await served.asked_to_exit()
        assert not request.done()
        served.device.gate.set()
        reply = await request
        assert reply.status_code == 200
        assert reply.json()["image"] == {"width": 48, "height": 32}
        await asyncio.wait_for(served.task, 60)
        assert served.images("ok") == 1
        assert not served.services.engine.is_stuck


async def test_what_comes_while_it_drains_is_refused() -> None:
    async with running(drain_timeout=60) as served:
        request = await served.accepted()
        await served.asked_to_exit()
        assert_not_ready(await served.post())
        assert_not_ready(await served.client.get("/readyz"))
        assert (await served.client.get("/livez")).status_code == 200
        served.device.gate.set()
        assert (await request).status_code == 200


async def test_who_is_sending_its_image_is_refused_at_once() -> None:
    """It would be once it had sent all of it, and no later than that uvicorn would answer 500."""
    async with running(drain_timeout=60) as served, Connection(served.client.base_url.port or 0) as client:
        request = await served.accepted()
        client.ask(1000)
        client.writer.write(bytes(10))
        await until(lambda: served.services.reception.nbytes == 10)
        await served.asked_to_exit()
        reply = await client.reply()
        assert (reply.status, reply.problem["type"]) == (503, "not-ready")
        assert reply.headers["retry-after"] == "1"
        assert (served.services.reception.nbytes, served.images("rejected")) == (0, 1)
        served.device.gate.set()
        assert (await request).status_code == 200


async def test_an_idle_connection_is_left_to_its_client() -> None:
    async with running(drain_timeout=60) as served:
        port = served.client.base_url.port
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for pause in (5.5, 0):  # uvicorn by itself would have closed it after five seconds
            writer.write(b"GET /livez HTTP/1.1\r\nHost: here\r\n\r\n")
            await asyncio.wait_for(reader.readuntil(b"HTTP/1.1 200"), 10)  # after the body of the one before
            await asyncio.sleep(pause)
        writer.close()


async def test_a_connection_that_asks_nothing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "IDLE_TIMEOUT", 1)
    async with running(drain_timeout=60) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.client.base_url.port)
        assert await asyncio.wait_for(reader.read(), 30) == b""
        writer.close()


async def test_no_path_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Neither by uvicorn: it is the client's own text, and ids in it open results."""
    caplog.set_level("INFO")
    async with running(drain_timeout=60) as served:
        reply = await served.client.get("/results/an-id")
    assert "server" not in reply.headers
    assert "/results/{result_id} 404" in caplog.text
    assert "an-id" not in "".join(one.getMessage() for one in caplog.records if not one.name.startswith("http"))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems may have no such limit")
async def test_it_has_all_the_files_it_may_have() -> None:
    """Or a thousand idle connections would keep everyone out, probes as well."""
    import resource

    before, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most - 1, most))
    try:
        async with running(drain_timeout=60):
            assert resource.getrlimit(resource.RLIMIT_NOFILE) == (most, most)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, most))


@pytest.mark.skipif(sys.platform != "linux", reason="what is closed first is up to the system")
@pytest.mark.parametrize(("highest", "number"), [(1 << 16, 499), (400, 399)])
async def test_its_port_has_a_second_file_above_all_connections(
    monkeypatch: pytest.MonkeyPatch, highest: int, number: int
) -> None:
    import resource

    before, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (500, most))
    monkeypatch.setattr(server, "_allow_files", lambda: 500)
    monkeypatch.setattr(server, "HIGHEST_FILE", highest)
    try:
        async with running(drain_timeout=60) as served:
            port = served.server.servers[0].sockets[0]
            assert os.fstat(number).st_ino == os.fstat(port.fileno()).st_ino
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(number)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, most))


async def test_it_starts_where_files_have_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_allow_files", lambda: -1)  # as `resource` calls that
    async with running(drain_timeout=60) as served:
        assert (await served.client.get("/livez")).status_code == 200


async def test_who_goes_on_sending_holds_up_the_end_for_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SENDING_TIMEOUT", 1)
    async with running(drain_timeout=60) as served, Connection(served.client.base_url.port or 0) as client:
        client.ask(1_000_000)
        client.writer.write(b"x")
        await until(lambda: served.services.reception.nbytes == 1)
        await served.asked_to_exit()
        assert (await client.reply()).status == 503
        async with asyncio.timeout(20):
            while not served.task.done():
                client.writer.write(b"x")
                await asyncio.sleep(0.1)


async def test_what_cannot_be_finished_is_told_so() -> None:
    async with running(drain_timeout=0.3) as served:
        request = await served.accepted()
        await served.asked_to_exit()
        assert_not_ready(await request)
        await asyncio.wait_for(served.task, 60)
        assert not served.device.gate.is_set()
        assert (served.images("rejected"), served.images("ok")) == (1, 0)
        assert served.services.engine.is_stuck, "the device has the image still"


async def test_whom_the_last_answer_sets_free_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.server.STILL_LISTENING", 2)
    async with running(drain_timeout=60) as served:
        request = await served.accepted()
        await served.asked_to_exit()
        served.device.gate.set()
        assert (await request).status_code == 200
        async with httpx.AsyncClient(base_url=served.client.base_url, timeout=60) as newcomer:
            assert_not_ready(await newcomer.post("/segment", content=picture()))


async def test_a_server_that_gives_notice_takes_requests_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    async with running(drain_timeout=60, drain_notice=4) as served:
        monkeypatch.setattr("app.server.time", SimpleNamespace(monotonic=lambda: now[0]))
        served.device.gate.set()
        assert (await served.client.get("/readyz")).status_code == 200
        served.server.should_exit = True
        await until(lambda: served.server._state.leaving)
        assert_not_ready(await served.client.get("/readyz"))
        assert "seglens_ready 0.0" in (await served.client.get("/metrics")).text
        assert (await served.post()).status_code == 200
        now[0] = 4.0
        await asyncio.wait_for(served.task, 60)
        assert served.images("rejected") == 0


async def test_but_not_once_its_engine_has_ended() -> None:
    async with running(drain_timeout=60, drain_notice=60) as served:
        served.server.should_exit = True
        await until(lambda: served.server._state.leaving)
        await served.services.engine.stop(0)
        await asyncio.wait_for(served.task, 20)


@pytest.mark.parametrize("drain_notice", [0, 60])
async def test_who_asks_twice_waits_for_nothing(monkeypatch: pytest.MonkeyPatch, drain_notice: float) -> None:
    monkeypatch.setattr("app.server.STILL_LISTENING", 60)
    async with running(drain_timeout=60, drain_notice=drain_notice) as served:
        request = await served.accepted()
        served.server.should_exit = True
        await until(lambda: served.server._state.leaving)
        served.server.force_exit = True
        await asyncio.wait_for(served.task, 20)
        request.cancel()


async def test_an_idle_server_stops_and_listens_no_more() -> None:
    async with running(drain_timeout=60) as served:
        await served.asked_to_exit()
        await asyncio.wait_for(served.task, 60)
        with pytest.raises(httpx.ConnectError):
            await served.client.get("/livez")


@pytest.fixture
def handlers() -> Iterator[None]:
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_it_listens_is_kept(monkeypatch: pytest.MonkeyPatch, signum: int) -> None:
    settings = Settings(device="cpu")
    server = Server(create_app(settings), settings)
    monkeypatch.setattr(server, "run", lambda: os.kill(os.getpid(), signum))
    server.run_until_signalled()
    assert server.should_exit
