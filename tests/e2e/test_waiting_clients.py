"""What a client that cannot be served in time is told over a real connection, and when."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import pytest
import uvicorn

from app.engine.device import Ran
from app.engine.staging import Staged
from tests.fakes import FakeDevice, until
from tests.servers import Connection, Listening, Reply, listening, picture, posted

LATE = 10.0  # seconds; without an answer of its own a client would wait for longer, for the device is held
TIMEOUT = "X-Request-Timeout-Seconds"


@asynccontextmanager
async def busy(device: FakeDevice, queue: int = 0, **settings: object) -> AsyncIterator[Listening]:
    """A server on a device that takes one image at a time and holds the first; so many wait behind the one ahead."""
    async with AsyncExitStack() as stack:
        served = await stack.enter_async_context(listening(device, max_batch_size=1, **settings))
        stack.callback(lambda: device.gate.set())
        device.shut()
        for staged, waiting in [(1, 0), *((2, count) for count in range(queue + 1))] if queue else []:
            client = await stack.enter_async_context(Connection(served.port))
            client.post(picture(1))
            await until(lambda s=staged: len(device.staged) == s)  # type: ignore[misc]
            await until(lambda w=waiting: served.services.engine.queue_size == w)  # type: ignore[misc]
        yield served


def assert_refused(reply: Reply, kind: str) -> None:
    assert (reply.status, reply.problem["type"]) == (429, kind)
    assert reply.headers["content-type"] == "application/problem+json"
    promised = reply.problem["retry_after"]
    assert promised > 0
    assert int(reply.headers["retry-after"]) == max(1, math.ceil(promised))


# --- deadlines


async def assert_expires(client: Connection, send: Callable[[], None], seconds: float) -> Reply:
    before = time.monotonic()
    send()
    reply = await client.reply()
    assert (reply.status, reply.problem["type"]) == (504, "deadline-exceeded")
    assert seconds <= time.monotonic() - before < seconds + LATE
    return reply


@pytest.mark.parametrize("queue", [0, 3], ids=["on the device", "in the queue"])
async def test_a_deadline_passes_while_the_device_is_busy(queue: int) -> None:
    async with busy(FakeDevice(), queue) as served, Connection(served.port) as client:
        await assert_expires(client, lambda: client.post(picture(2), {TIMEOUT: "0.4"}), 0.4)
        assert served.images("expired") == 1
        assert served.services.engine.queue_size == queue


async def test_a_deadline_passes_while_the_body_comes() -> None:
    async with busy(FakeDevice()) as served, Connection(served.port) as client:

        def send() -> None:
            client.ask(10_000, {TIMEOUT: "0.4"})
            client.writer.write(b"\x89PNG")

        reply = await assert_expires(client, send, 0.4)
        assert "body" in reply.problem["detail"]


async def test_a_deadline_passes_while_the_image_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    monkeypatch.setattr("app.api.decoding.prepare", lambda *arguments: gate.wait(30))
    async with busy(FakeDevice()) as served, Connection(served.port) as client:
        try:
            await assert_expires(client, lambda: client.post(picture(2), {TIMEOUT: "0.4"}), 0.4)
            assert served.services.engine.queue_size == 0
        finally:
            gate.set()


# --- refusals


async def test_a_full_queue_refuses_before_the_body_is_sent() -> None:
    async with busy(FakeDevice(), 3, max_queue_size=3, max_passes=1) as served, Connection(served.port) as client:
        client.ask(1_000_000)
        assert_refused(await client.reply(), "queue-full")
        assert served.images("rejected") == 1


@pytest.mark.parametrize("protocol", ["httptools", "h11"])
@pytest.mark.parametrize("headers", [{}, {"Connection": "close"}], ids=["keep-alive", "close"])
async def test_a_client_that_sends_its_body_all_the_same_reads_the_refusal(
    monkeypatch: pytest.MonkeyPatch, protocol: str, headers: dict[str, str]
) -> None:
    if protocol == "httptools":
        pytest.importorskip("httptools")
    monkeypatch.setattr("app.server.uvicorn.Config", partial(uvicorn.Config, http=protocol))
    async with busy(FakeDevice(), 3, max_queue_size=3, max_passes=1) as served, Connection(served.port) as client:
        client.post(bytes(8_000_000), headers)
        assert_refused(await client.reply(), "queue-full")


async def test_a_client_that_waits_to_be_told_to_go_on_is_refused_without_sending() -> None:
    async with busy(FakeDevice(), 3, max_queue_size=3, max_passes=1) as served, Connection(served.port) as client:
        client.ask(1_000_000, {"Expect": "100-continue"})
        assert_refused(await client.reply(), "queue-full")


async def test_a_refused_connection_can_be_used_again() -> None:
    device = FakeDevice()
    async with busy(device, 3, max_queue_size=3, max_passes=1) as served, Connection(served.port) as client:
        client.post(picture(2))
        assert_refused(await client.reply(), "queue-full")
        device.gate.set()
        await until(lambda: served.services.engine.queue_size == 0)
        client.post(picture(2))
        assert (await client.reply()).mask[0, 0] == 2


async def test_an_image_that_turns_out_to_take_too_long_is_refused() -> None:
    device = FakeDevice()
    device.seconds_each = 0.01 / 64
    async with busy(device) as served, Connection(served.port) as client:
        device.gate.set()
        small, large = picture(2, 8), picture(3, 512)  # 0.01 s on the device, and 0.64 s
        for _ in range(8):
            assert (await posted(served.port, small)).status == 200
        device.shut()
        held = asyncio.create_task(posted(served.port, small))
        await device.is_entered()
        client.post(large, {TIMEOUT: "0.4"})
        reply = await client.reply()
        assert_refused(reply, "deadline-unreachable")
        assert reply.problem["actual"] > reply.problem["limit"]
        device.gate.set()
        assert (await held).status == 200
        client.post(large, {TIMEOUT: "10"})
        assert (await client.reply()).mask.shape == (8, 512)


# --- who comes back


async def test_who_comes_back_when_it_was_told_finds_its_place() -> None:
    device = FakeDevice()
    async with busy(device, 3, max_queue_size=3, max_passes=1) as served, Connection(served.port) as client:
        name = {"X-Request-ID": "comes-back"}
        asked = time.monotonic()
        client.post(picture(2), name)
        refused = await client.reply()
        assert_refused(refused, "queue-full")
        assert refused.problem["instance"] == "comes-back"
        await device.goes_on_to_the_next()  # there is one place now
        await until(lambda: served.services.engine.queue_size == 2)
        await asyncio.sleep(asked + refused.problem["retry_after"] - time.monotonic() + 0.05)
        for _ in range(3):
            assert_refused(await posted(served.port, picture(3)), "queue-full")
        client.post(picture(2), name)
        await until(lambda: served.services.engine.queue_size == 3)
        device.gate.set()
        reply = await client.reply()
        assert (reply.status, reply.mask[0, 0]) == (200, 2)
        assert [3] not in device.batches


async def test_a_place_is_not_kept_for_ever_for_who_does_not_come_back() -> None:
    device = FakeDevice()
    async with busy(device, 3, max_queue_size=3, max_passes=1) as served:
        told = (await posted(served.port, picture(2), {"X-Request-ID": "does-not-come"})).problem["retry_after"]
        await device.goes_on_to_the_next()
        await until(lambda: served.services.engine.queue_size == 2)
        await asyncio.sleep(told + 2.1)
        accepted = asyncio.create_task(posted(served.port, picture(3)))
        await until(lambda: served.services.engine.queue_size == 3)
        device.gate.set()
        assert (await accepted).status == 200


# --- the event loop


async def test_the_probes_answer_while_two_passes_hold_the_cpu() -> None:
    asked_enough = threading.Event()

    class Computing(FakeDevice):
        """Whose passes are Python, and never let go of the interpreter by themselves."""

        def run(self, model: str, staged: Staged) -> Ran:
            self.entered.set()
            until = time.monotonic() + 30
            while not asked_enough.is_set() and time.monotonic() < until:
                pass
            return super().run(model, staged)

    device = Computing(slots=2, best_batch_size=1)
    async with listening(device) as served, Connection(served.port) as client:
        passes = [asyncio.create_task(posted(served.port, picture(value))) for value in (1, 2)]
        await device.is_entered()
        for _ in range(3):
            client.get("/livez")
            assert (await client.reply()).status == 200
        assert not any(one.done() for one in passes)
        asked_enough.set()
        assert [(await one).status for one in passes] == [200, 200]
