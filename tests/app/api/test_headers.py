"""The headers that the OpenAPI document declares are those that answers have."""

from __future__ import annotations

from typing import Any

import httpx

from app.api.headers import TIMINGS, declare

# Of every server's answers: no program that is generated from the document would read them.
COMMON = {"content-type", "content-length", "vary"}


async def test_answers_have_the_headers_declared_and_no_others(client: httpx.AsyncClient, street: bytes) -> None:
    document = (await client.get("/openapi.json")).json()
    segmented = await client.post("/segment", content=street)
    path = f"/attention/{segmented.headers['x-result-id']}"
    looked_at = await client.get(path, params={"x": 1, "y": 1})
    again = await client.get(path, params={"x": 1, "y": 1}, headers={"If-None-Match": looked_at.headers["etag"]})
    replies = {
        "/segment": segmented,
        "/attention/{result_id}": looked_at,
        "/attention/{result_id}/info": await client.get(f"{path}/info"),
        "/results/{result_id}": await client.get("/results/none"),
        "/health": await client.get("/health"),
    }
    assert [reply.status_code for reply in replies.values()] == [200, 200, 200, 404, 200]
    assert again.status_code == 304
    for route, reply in [*replies.items(), ("/attention/{result_id}", again)]:
        operation = document["paths"][route]["post" if route == "/segment" else "get"]
        declared = operation["responses"][str(reply.status_code)]["headers"]
        assert {name.lower() for name in declared} == set(reply.headers) - COMMON, route


def test_what_a_status_brings_is_declared_beside_the_routes_own() -> None:
    statuses: dict[str, dict[str, Any]] = {"200": {"headers": TIMINGS}, "401": {}, "404": {}, "429": {}, "503": {}}
    declare({"paths": {"/segment": {"post": {"responses": statuses}}}})
    assert {status: sorted(reply["headers"]) for status, reply in statuses.items()} == {
        "200": ["Server-Timing", "X-Request-ID"],
        "401": ["WWW-Authenticate", "X-Request-ID"],
        "404": ["X-Request-ID"],
        "429": ["Retry-After", "X-Request-ID"],
        "503": ["Retry-After", "X-Request-ID"],
    }
    assert statuses["429"]["headers"]["Retry-After"]["schema"] == {"type": "integer"}
