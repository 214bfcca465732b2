"""The probes, in each state of the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx
import pytest

from app import __version__
from models import list_models
from tests.fakes import FakeDevice, until


async def test_ready(client: httpx.AsyncClient) -> None:
    for path, text in (("/livez", "alive"), ("/readyz", "ready")):
        reply = await client.get(path)
        assert (reply.status_code, reply.text) == (200, text)
        assert reply.headers["content-type"].startswith("text/plain")


async def test_health(client: httpx.AsyncClient, posted: dict[str, Any]) -> None:
    health = (await client.get("/health")).json()
    assert health.pop("results") >= 1
    assert health == {
        "status": "ready",
        "version": __version__,
        "device": "cpu",
        "models": [spec.name for spec in list_models()],
        "queue_size": 0,
    }


async def test_loading_and_draining_are_alive_but_not_ready(
    serve: Callable[..., AbstractAsyncContextManager[Any]], assert_problem: Callable[..., None]
) -> None:
    async with serve(start=False) as (_, client, services):
        for state in ("loading", "draining"):
            assert (await client.get("/livez")).status_code == 200
            assert (await client.get("/health")).json()["status"] == state
            assert_problem(await client.get("/readyz"), 503, "not-ready", retry_after=1)
            await services.engine.stop(0.1)


async def test_an_engine_that_cannot_load_is_not_alive(
    serve: Callable[..., AbstractAsyncContextManager[Any]],
    street: bytes,
    assert_problem: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serve(start=False) as (_, client, services):
        monkeypatch.setattr(services.engine._worker, "load", lambda spec, key: 1 / 0)
        failed = asyncio.Event()
        services.engine.start(on_failure=failed.set)
        await asyncio.wait_for(failed.wait(), 60)
        assert_problem(await client.get("/livez"), 500, "inference-failed")
        assert_problem(await client.get("/readyz"), 503, "not-ready")
        assert_problem(await client.post("/segment", content=street), 503, "not-ready")
        assert (await client.get("/health")).json()["status"] == "failed"
        await services.engine.stop(0.1)


async def test_an_engine_whose_device_stalls_is_not_alive(
    serve: Callable[..., AbstractAsyncContextManager[Any]],
    street: bytes,
    assert_problem: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.engine.engine.WATCH_INTERVAL", 0.01)
    device, failed = FakeDevice(), asyncio.Event()
    async with serve(start=False, worker=device, stall_timeout=0.1) as (_, client, services):
        services.engine.start(on_failure=failed.set)
        await until(lambda: services.engine.state == "ready")
        device.shut()
        try:
            requests = [asyncio.create_task(client.post("/segment", content=street)) for _ in range(3)]
            for reply in await asyncio.gather(*requests):
                assert_problem(reply, 500, "inference-failed")
            assert failed.is_set()
            assert_problem(await client.get("/livez"), 500, "inference-failed")
            assert_problem(await client.get("/readyz"), 503, "not-ready")
        finally:
            device.gate.set()
            await services.engine.stop(0.1)
