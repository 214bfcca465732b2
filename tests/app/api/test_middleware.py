"""What every request passes through: ids, counts, and the last resort."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from app.api.middleware import RequestMiddleware
from app.metrics import Metrics


@pytest.mark.parametrize("given", ["a", "A-b_c.9", "x" * 64])
@pytest.mark.parametrize("path", ["/health", "/nowhere", "/results/none"])
async def test_a_valid_id_comes_back(client: httpx.AsyncClient, given: str, path: str) -> None:
    reply = await client.get(path, headers={"x-request-id": given})
    assert reply.headers["x-request-id"] == given


@pytest.mark.parametrize("given", [None, "", "x" * 65, "two words", "a/b", '"', "ü", "a\tb", "a;b"])
async def test_any_other_is_replaced(client: httpx.AsyncClient, given: str | None) -> None:
    headers = [] if given is None else [(b"x-request-id", given.encode("latin-1"))]
    ids = {(await client.get("/health", headers=headers)).headers["x-request-id"] for _ in range(2)}
    assert len(ids) == 2
    assert all(len(found) == 32 and found.isalnum() for found in ids)


@pytest.fixture
async def broken(serve: Callable[..., AbstractAsyncContextManager[Any]]) -> AsyncIterator[Any]:
    """An app of which two routes have bugs: one before it answers, one midway."""
    async with serve(start=False) as served:
        app: FastAPI = served.app

        @app.get("/broken/{name}", include_in_schema=False)
        async def raises(name: str) -> None:
            raise RuntimeError("secret words")

        @app.get("/midway", include_in_schema=False)
        async def midway() -> StreamingResponse:
            async def chunks() -> AsyncIterator[bytes]:
                yield b"half"
                raise RuntimeError("secret words")

            return StreamingResponse(chunks())

        yield served


async def test_a_bug_is_answered_without_its_traceback(
    broken: Any, assert_problem: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    reply = await broken.client.get("/broken/some-name", headers={"x-request-id": "mine"})
    assert_problem(reply, 500, "internal-error")
    assert reply.json()["instance"] == "mine"
    assert "secret" not in reply.text
    assert "secret words" in caplog.text
    assert "mine: unexpected error" in caplog.text
    labels = {"method": "GET", "route": "/broken/{name}"}
    value = broken.services.metrics.registry.get_sample_value
    assert value("seglens_http_requests_total", {**labels, "status": "500"}) == 1
    assert value("seglens_http_request_duration_seconds_count", labels) == 1


async def test_what_kind_of_error_it_was_is_logged(broken: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "app"):
        replies = [
            await broken.client.get(path)
            for path in ("/results/x", "/nowhere", "/results/x?alpha=2", "/readyz", "/broken/x")
        ]
    lines = [record.__dict__["fields"] for record in caplog.records if record.name == "app.api.middleware"]
    traceback = lines.pop(-2)
    assert traceback == {"request_id": replies[-1].headers["x-request-id"]}
    assert [line["error"] for line in lines] == [reply.json()["type"] for reply in replies]


async def test_a_bug_midway_is_left_to_the_server(broken: Any) -> None:
    """The status is out: only breaking the connection tells the client."""
    with pytest.raises(RuntimeError, match="secret"):
        await broken.client.get("/midway")


async def test_a_request_is_logged_in_one_line(client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "app"):
        await client.get("/health?secret=1", headers={"x-request-id": "mine"})
    (line,) = [record.getMessage() for record in caplog.records if record.name == "app.api.middleware"]
    assert line.startswith("mine GET /health 200 ")
    assert "secret" not in line


async def test_a_head_is_counted_as_one(client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "app"):
        assert (await client.head("/health")).status_code == 200
    assert " HEAD /health 200 " in caplog.text
    assert (
        'seglens_http_requests_total{method="HEAD",route="/health",status="200"} 1.0'
        in (await client.get("/metrics")).text
    )


async def test_a_client_writes_no_line_of_the_log(client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "app"):
        await client.get("/%0aFAKE", headers={"x-request-id": "mine"})
        await client.request("FAKE", "/health", headers={"x-request-id": "mine"})
    lines = [record.getMessage() for record in caplog.records if record.name == "app.api.middleware"]
    assert [line.split()[:4] for line in lines] == [
        ["mine", "GET", "unmatched", "404"],
        ["mine", "other", "/health", "405"],
    ]
    assert "FAKE" not in caplog.text


async def test_a_request_is_logged_with_what_became_of_it(
    client: httpx.AsyncClient, street: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "app"):
        reply = await client.post("/segment", content=street, headers={"x-request-id": "mine"})
        await client.post("/segment", content=b"none", headers={"x-request-id": "yours"})
    done, failed = (record.__dict__["fields"] for record in caplog.records if record.name == "app.api.middleware")
    body = reply.json()
    assert (done["request_id"], done["route"], done["status"]) == ("mine", "/segment", 200)
    assert (done["model"], done["batch_size"]) == (body["model"], 1)
    assert done["timings_ms"].items() >= body["timings_ms"].items() - {("encode", body["timings_ms"].get("encode"))}
    assert done["duration_ms"] >= sum(
        value for name, value in done["timings_ms"].items() if name in ("decode", "forward")
    )
    assert (failed["request_id"], failed["status"], failed["model"]) == ("yours", 415, body["model"])
    assert failed["error"] == "unsupported-image"
    assert "error" not in done
    assert done["passes"] == 1
    assert list(failed["timings_ms"]) == ["read", "decode"], "what was done before it failed"
    assert "batch_size" not in failed


TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.mark.parametrize(
    ("given", "logged"), [(f"00-{TRACE}-00f067aa0ba902b7-00", TRACE), (f"00-{TRACE}", None), (None, None)]
)
async def test_the_callers_trace_is_logged(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture, given: str | None, logged: str | None
) -> None:
    with caplog.at_level(logging.INFO, "app"):
        reply = await client.get("/health", headers={} if given is None else {"traceparent": given})
    (line,) = (record.__dict__["fields"] for record in caplog.records if record.name == "app.api.middleware")
    assert line.get("trace_id") == logged
    assert line["request_id"] == reply.headers["x-request-id"]


async def test_ids_of_results_are_not_logged(
    client: httpx.AsyncClient, posted: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "app"):
        for path in posted["links"].values():
            await client.get(path)
        await client.get(f"/results/{posted['id']}/nowhere")
    assert "/results/{result_id}" in caplog.text
    assert posted["id"] not in caplog.text


async def test_other_protocols_pass() -> None:
    passed: list[object] = []

    async def inner(*arguments: object) -> None:
        passed.extend(arguments)

    async def receive() -> dict[str, Any]:
        return {}

    async def send(message: object) -> None: ...

    scope = {"type": "lifespan"}
    await RequestMiddleware(inner, Metrics())(scope, receive, send)
    assert passed == [scope, receive, send]
