"""The OpenAPI document declares what the service really answers: this runs last, and knows what the others saw."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from jsonschema import Draft202012Validator

from models import list_models

# What the other tests bring about, at the least.
LEAST = {
    "POST /segment": {200, 400, 404, 406, 413, 415, 422, 429, 503, 504},
    "GET /results/{result_id}": {200, 404, 406, 422},
    "DELETE /results/{result_id}": {204, 404},
    "GET /attention/{result_id}": {200, 304, 404, 406, 422, 429},
    "GET /attention/{result_id}/info": {200, 404, 422},
    "GET /models": {200},
    "GET /models/{name}": {200, 404},
    "POST /models/{name}/load": {200, 401, 403, 404, 422, 503},
    "POST /models/{name}/unload": {200, 401, 403, 404, 503},
    "GET /livez": {200, 500},
    "GET /readyz": {200, 503},
    "GET /health": {200},
    "GET /metrics": {200},
}


@pytest_asyncio.fixture(loop_scope="session")
async def document(client: httpx.AsyncClient) -> dict[str, Any]:
    found: dict[str, Any] = (await client.get("/openapi.json")).json()
    return found


@pytest.fixture
def all_ran(request: pytest.FixtureRequest) -> None:
    """Skips where only some of the tests beside this file run, which then have seen little."""
    files = set(Path(__file__).parent.rglob("test_*.py"))
    chosen = {item.path for item in request.session.items}
    if files - chosen or request.config.getoption("keyword") or request.config.getoption("lf", default=False):
        pytest.skip("judges by what all tests under tests/app/api have seen, and not all of them run")


@pytest.mark.usefixtures("all_ran")
async def test_every_kind_of_reply_was_seen(seen: set[Any]) -> None:
    """Else the next test would say nothing."""
    found: dict[str, set[int]] = {}
    for method, route, status, _ in seen:
        found.setdefault(f"{method} {route}", set()).add(status)
    missing = {key: statuses - found.get(key, set()) for key, statuses in LEAST.items()}
    assert {key: statuses for key, statuses in missing.items() if statuses} == {}


@pytest.mark.usefixtures("all_ran")
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


QUERIES = {
    "/segment": [
        {},
        {"include": ""},
        {"include": "rle,polygons"},
        {"format": "coco"},
        {"model": ",".join(spec.name for spec in list_models()[:2])},
    ],
    "/results/{result_id}": [{}, {"include": ""}, {"include": "rle,polygons"}, {"format": "coco"}],
    "/attention/{result_id}": [
        {"x": "1", "y": "1"},
        {"x": "1", "y": "1", "weights": "false"},
        {"x": "1", "y": "1", "direction": "to"},
        {"class": "road"},
    ],
    "/attention/{result_id}/info": [{}],
    "/models": [{}],
    "/health": [{}],
}


@pytest.mark.parametrize("model", [spec.name for spec in list_models()])
@pytest.mark.parametrize("path", QUERIES)
async def test_json_has_all_that_is_declared_of_it(
    document: dict[str, Any], client: httpx.AsyncClient, street: bytes, path: str, model: str
) -> None:
    """A client that is generated from the document looks for each member that is said to be there."""
    made = (await client.post("/segment", content=street, params={"model": model})).json()["id"]
    operation = document["paths"][path]["post" if path == "/segment" else "get"]
    schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
    checker = Draft202012Validator({**schema, "components": document["components"]})
    for query in QUERIES[path]:
        if path == "/segment":
            reply = await client.post(path, content=street, params={"model": model, **query})
        else:
            wanted = {"format": "json"} if path == "/attention/{result_id}" else {}
            reply = await client.get(path.format(result_id=made), params={**wanted, **query})
        assert reply.status_code == 200, reply.text
        checker.validate(reply.json())


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
