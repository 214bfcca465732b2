"""The OpenAPI document declares what the service really answers: this runs last, and knows what the others saw."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest_asyncio


@pytest_asyncio.fixture(loop_scope="session")
async def document(client: httpx.AsyncClient) -> dict[str, Any]:
    found: dict[str, Any] = (await client.get("/openapi.json")).json()
    return found


async def test_every_reply_seen_is_declared(document: dict[str, Any], seen: set[Any]) -> None:
    missing = []
    for method, route, status, media_type in sorted(seen):
        operation = document["paths"].get(route, {}).get(method.lower())
        if operation is None:  # a route outside the document, or a method that the route refuses
            continue
        declared = operation["responses"].get(str(status))
        if declared is None or (media_type and media_type not in declared.get("content", {})):
            missing.append(f"{method} {route}: {status} {media_type}")
    assert missing == []


async def test_every_error_declared_is_a_problem(document: dict[str, Any]) -> None:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            for status, reply in operation["responses"].items():
                if int(status) >= 400:
                    assert list(reply["content"]) == ["application/problem+json"], f"{method} {path} {status}"


async def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    names = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert "Problem" in names
    assert names - set(document["components"]["schemas"]) == set()


async def test_every_operation_is_described(document: dict[str, Any]) -> None:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"], f"{method} {path}"
            for parameter in operation.get("parameters", []):
                assert parameter["schema"], parameter["name"]


async def test_the_body_of_segment_is_declared(document: dict[str, Any]) -> None:
    content = document["paths"]["/segment"]["post"]["requestBody"]["content"]
    assert {"image/jpeg", "image/png", "multipart/form-data", "application/octet-stream"} <= set(content)
