"""POST /segment when it can't be answered at once: deadlines, a full queue, no engine, clients that leave."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx
import pytest

from app.api.dependencies import Services
from tests.fakes import FakeDevice, until

PNG = {"format": "png"}


def images_total(services: Services, outcome: str) -> float:
    labels = {"model": services.settings.default_model, "outcome": outcome}
    return services.metrics.registry.get_sample_value("seglens_images_total", labels) or 0.0


async def test_a_deadline_that_cannot_be_met(
    client: httpx.AsyncClient, street: bytes, assert_problem: Callable[..., None]
) -> None:
    reply = await client.post("/segment", content=street, headers={"x-request-timeout-seconds": "0.001"})
    kinds = {429: "deadline-unreachable", 504: "deadline-exceeded"}
    assert_problem(reply, reply.status_code, kinds[reply.status_code])


@pytest.mark.parametrize("others", [0, 1], ids=["on the device", "in the queue"])
async def test_a_deadline_passes_while_the_device_is_busy(
    held: Any, street: bytes, assert_problem: Callable[..., None], others: int
) -> None:
    _, client, _, device = held
    waiting = [asyncio.create_task(client.post("/segment", content=street, params=PNG)) for _ in range(others)]
    if others:
        await device.is_entered()
    asked = time.monotonic()
    reply = await client.post("/segment", content=street, headers={"x-request-timeout-seconds": "0.3"})
    assert_problem(reply, 504, "deadline-exceeded")
    assert 0.3 <= time.monotonic() - asked < 10, "the device would hold it for longer"
    device.gate.set()
    assert [(await request).status_code for request in waiting] == [200] * others


async def test_a_client_may_not_ask_for_more_time_than_the_setting(
    serve: Callable[..., AbstractAsyncContextManager[Any]], street: bytes, assert_problem: Callable[..., None]
) -> None:
    async with serve(worker=FakeDevice(), request_timeout=0.001) as (_, client, _):
        reply = await client.post("/segment", content=street, headers={"x-request-timeout-seconds": "60"})
        assert_problem(reply, 504, "deadline-exceeded")


async def test_a_body_that_does_not_come_in_time(
    serve: Callable[..., AbstractAsyncContextManager[Any]], assert_problem: Callable[..., None]
) -> None:
    async def endless() -> Any:
        yield b"x"
        await asyncio.Event().wait()

    async with serve(worker=FakeDevice()) as (_, client, _):
        reply = await client.post("/segment", content=endless(), headers={"x-request-timeout-seconds": "0.05"})
        assert_problem(reply, 504, "deadline-exceeded")
        assert "body" in reply.json()["detail"]


async def test_a_deadline_passes_while_an_image_is_decoded(
    client: httpx.AsyncClient,
    street: bytes,
    assert_problem: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate = threading.Event()
    monkeypatch.setattr("app.api.decoding.prepare", lambda *arguments: gate.wait(60))
    try:
        reply = await client.post("/segment", content=street, headers={"x-request-timeout-seconds": "0.1"})
    finally:
        gate.set()
    assert_problem(reply, 504, "deadline-exceeded")
    assert "decoded" in reply.json()["detail"]


async def test_a_deadline_passes_while_the_answer_is_encoded(
    client: httpx.AsyncClient,
    services: Services,
    street: bytes,
    assert_problem: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.api.segmenting.LATE", 0.1)
    gate, results = threading.Event(), len(services.results)
    monkeypatch.setattr("app.api.routes.segment.render_file", lambda *arguments: gate.wait(60))
    try:
        headers = {"x-request-timeout-seconds": "1"}
        reply = await client.post("/segment", content=street, params=PNG, headers=headers)
    finally:
        gate.set()
    assert_problem(reply, 504, "deadline-exceeded")
    assert "answer" in reply.json()["detail"]
    assert services.engine.queue_size == 0
    assert len(services.results) == results


async def test_more_passes_than_any_image_may_need_take_no_place(
    held: Any, street: bytes, assert_problem: Callable[..., None]
) -> None:
    async def unread() -> Any:
        pytest.fail("the body of a request that can't be served was read")
        yield b""

    _, client, services, _ = held
    limit = services.settings.max_passes
    for count in (limit + 1, 400):
        reply = await client.post("/segment", content=unread(), params={"scales": ",".join(["1"] * count)})
        assert_problem(reply, 422, "invalid-parameter", limit=limit, actual=count)
    assert services.engine.queue_size == 0


@pytest.mark.parametrize("name", ["model", "scales"])
async def test_lists_without_end_are_refused_at_once(
    client: httpx.AsyncClient, street: bytes, assert_problem: Callable[..., None], name: str
) -> None:
    reply = await client.post("/segment", content=street, params={name: ",".join(map(str, range(10, 6000)))})
    assert_problem(reply, 422, "invalid-parameter")
    assert name in reply.json()["detail"]
    assert "2000 characters" in reply.json()["detail"]


async def test_a_full_queue(
    serve: Callable[..., AbstractAsyncContextManager[Any]], street: bytes, assert_problem: Callable[..., None]
) -> None:
    async def unread() -> Any:
        pytest.fail("the body of a request without a place was read")
        yield b""

    device = FakeDevice()
    async with serve(worker=device, max_batch_size=2, max_queue_size=2, max_passes=2) as (_, client, services):

        def post(count: int) -> list[asyncio.Task[httpx.Response]]:
            return [asyncio.create_task(client.post("/segment", content=street, params=PNG)) for _ in range(count)]

        device.shut()
        try:
            accepted = post(1)
            await device.is_entered()
            accepted += post(2)
            await until(lambda: len(device.staged) == 2)
            accepted += post(2)
            await until(lambda: services.engine.queue_size == 2)
            refused = await client.post("/segment", content=unread())
            hopeless = await client.post("/segment", content=unread(), headers={"content-length": str(1 << 40)})
        finally:
            device.gate.set()
        assert_problem(refused, 429, "queue-full", limit=2, actual=3)
        assert_problem(hopeless, 413, "too-large", limit=services.settings.max_body_bytes, actual=1 << 40)
        assert int(refused.headers["retry-after"]) >= refused.json()["retry_after"] > 0
        assert [reply.status_code for reply in await asyncio.gather(*accepted)] == [200] * 5


@pytest.mark.parametrize("stopped", [False, True], ids=["loading", "draining"])
async def test_not_ready(
    serve: Callable[..., AbstractAsyncContextManager[Any]],
    street: bytes,
    assert_problem: Callable[..., None],
    stopped: bool,
) -> None:
    async with serve(start=False) as (_, client, services):
        if stopped:
            await services.engine.stop(0.1)
        reply = await client.post("/segment", content=street)
        assert_problem(reply, 503, "not-ready", retry_after=1)
        assert ("draining" if stopped else "loading") in reply.json()["detail"]
        assert images_total(services, "rejected") == 1


async def test_a_model_that_is_not_loaded_is_counted_as_refusing(
    serve: Callable[..., AbstractAsyncContextManager[Any]], street: bytes, assert_problem: Callable[..., None]
) -> None:
    async with serve(worker=FakeDevice()) as (_, client, services):
        await services.engine.unload(services.settings.default_model)
        assert_problem(await client.post("/segment", content=street), 503, "model-not-loaded")
        assert images_total(services, "rejected") == 1


@pytest.mark.parametrize("body", [[], [{"body": b"half of", "more_body": True}]], ids=["at once", "midway"])
async def test_a_client_that_leaves_while_it_uploads(
    serve: Callable[..., AbstractAsyncContextManager[Any]],
    post_and_leave: Callable[..., Coroutine[Any, Any, list[dict[str, Any]]]],
    body: list[dict[str, Any]],
) -> None:
    async with serve(worker=FakeDevice()) as (app, _, services):
        leave = asyncio.Event()
        leave.set()
        sent = await post_and_leave(app, body, leave)
        # No bug of ours: the metrics must not show an internal error.
        assert sent[0]["status"] == 499
        labels = {"method": "POST", "route": "/segment", "status": "499"}
        assert services.metrics.registry.get_sample_value("seglens_http_requests_total", labels) == 1


@pytest.mark.parametrize("which", ["running", "waiting"])
async def test_a_client_that_leaves_is_not_noticed_by_others(
    held: Any,
    post_and_leave: Callable[..., Coroutine[Any, Any, list[dict[str, Any]]]],
    street: bytes,
    which: str,
) -> None:
    app, client, services, device = held
    leave = asyncio.Event()
    leaves = post_and_leave(app, [{"body": street}], leave)
    stays = client.post("/segment", content=street, params=PNG)
    tasks: list[asyncio.Task[Any]] = []
    for request in (leaves, stays) if which == "running" else (stays, leaves):
        tasks.append(asyncio.create_task(request))
        await (device.is_entered() if len(tasks) == 1 else until(lambda: services.engine.queue_size == 1))
    leaver, stayer = tasks if which == "running" else tasks[::-1]
    leave.set()
    assert (await leaver)[0]["status"] == 499
    assert images_total(services, "cancelled") == 1
    assert services.engine.queue_size == (1 if which == "running" else 0)
    device.gate.set()
    assert (await stayer).status_code == 200
    assert len(device.batches) == (2 if which == "running" else 1)


async def test_a_client_that_leaves_while_its_image_is_decoded_frees_its_place(
    held: Any,
    post_and_leave: Callable[..., Coroutine[Any, Any, list[dict[str, Any]]]],
    street: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app, _, services, device = held
    gate, leave = threading.Event(), asyncio.Event()
    monkeypatch.setattr("app.api.decoding.prepare", lambda *arguments: gate.wait(60))
    try:
        request = asyncio.create_task(post_and_leave(app, [{"body": street}], leave))
        await until(lambda: services.engine.queue_size == 1)
        leave.set()
        assert (await request)[0]["status"] == 499
        assert services.engine.queue_size == 0
        assert images_total(services, "cancelled") == 1
    finally:
        gate.set()
    assert device.staged == []
