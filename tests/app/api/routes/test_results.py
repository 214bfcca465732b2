"""/results/{id}: every format again, deletion, and results that are gone."""

from __future__ import annotations

import base64
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx
import pytest

from app.api.dependencies import Services
from tests.fakes import FakeDevice, until


async def test_json_again_is_the_reply_to_the_post(client: httpx.AsyncClient, posted: dict[str, Any]) -> None:
    again = (await client.get(f"/results/{posted['id']}")).json()
    assert set(again.pop("timings_ms")) < set(posted["timings_ms"])
    assert again == {name: value for name, value in posted.items() if name != "timings_ms"}


@pytest.mark.parametrize("image_format", ["png", "palette", "color", "overlay", "confidence", "geojson", "npz"])
async def test_files_again_are_those_of_the_post(
    client: httpx.AsyncClient, street: bytes, posted: dict[str, Any], image_format: str
) -> None:
    params = {"format": image_format, "alpha": "0.3"}
    again = await client.get(f"/results/{posted['id']}", params=params)
    first = await client.post("/segment", content=street, params=params)
    assert again.content == first.content
    assert again.headers["vary"] == "Accept"


async def test_coco_again_is_that_of_the_post(client: httpx.AsyncClient, street: bytes) -> None:
    first = await client.post("/segment", content=street, params={"format": "coco"})
    again = await client.get(f"/results/{first.headers['x-result-id']}", params={"format": "coco"})
    assert again.content == first.content
    assert again.headers["content-type"] == "application/json"


async def test_json_again_has_the_parts_that_are_wanted(client: httpx.AsyncClient, posted: dict[str, Any]) -> None:
    again = (await client.get(f"/results/{posted['id']}", params={"include": "polygons, rle"})).json()
    assert "segmentation_mask" not in again
    assert all({"rle", "polygons"} <= found.keys() for found in again["predictions"])


@pytest.mark.parametrize(
    "media_type",
    ["image/png", "image/jpeg", "image/webp", "application/json", "application/geo+json", "application/x-npz"],
)
async def test_accept_decides(client: httpx.AsyncClient, posted: dict[str, Any], media_type: str) -> None:
    reply = await client.get(f"/results/{posted['id']}", headers={"accept": media_type})
    assert (reply.status_code, reply.headers["content-type"]) == (200, media_type)


async def test_no_second_forward_pass(client: httpx.AsyncClient, services: Services, posted: dict[str, Any]) -> None:
    def passes() -> float | None:
        labels = {"model": posted["model"]}
        return services.metrics.registry.get_sample_value("seglens_batch_size_count", labels)

    before = passes()
    reply = await client.get(posted["links"]["mask"])
    assert reply.content == base64.b64decode(posted["segmentation_mask"])
    assert passes() == before


async def test_deleted(client: httpx.AsyncClient, street: bytes, assert_problem: Callable[..., None]) -> None:
    path = f"/results/{(await client.post('/segment', content=street)).json()['id']}"
    deleted = await client.delete(path)
    assert (deleted.status_code, deleted.content) == (204, b"")
    assert_problem(await client.get(path), 404, "result-expired")
    assert_problem(await client.delete(path), 404, "result-expired")


async def test_hits_and_misses_are_counted(
    client: httpx.AsyncClient, services: Services, posted: dict[str, Any]
) -> None:
    def counts() -> list[float]:
        value = services.metrics.registry.get_sample_value
        return [value("seglens_results_total", {"outcome": outcome}) or 0 for outcome in ("hit", "miss")]

    hits, misses = counts()
    await client.get(f"/results/{posted['id']}")
    await client.get("/results/unknown")
    assert counts() == [hits + 1, misses + 1]


async def test_an_old_result_is_gone(
    serve: Callable[..., AbstractAsyncContextManager[Any]], street: bytes, assert_problem: Callable[..., None]
) -> None:
    async with serve(result_ttl=1e-6) as (_, client, _):
        posted = (await client.post("/segment", content=street)).json()
        links = {**posted["links"], "attention": posted["links"]["attention"] + "?x=0&y=0"}
        for path in links.values():
            assert_problem(await client.get(path), 404, "result-expired")


async def test_an_old_result_goes_though_no_one_asks(
    serve: Callable[..., AbstractAsyncContextManager[Any]], street: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.main.SWEEP_INTERVAL", 0.01)
    async with serve(worker=FakeDevice(), result_ttl=0.1) as (_, client, services):
        assert (await client.post("/segment", content=street, params={"format": "png"})).status_code == 200
        await until(lambda: not services.results._items)


async def test_a_result_that_finds_no_place_is_not_linked(
    serve: Callable[..., AbstractAsyncContextManager[Any]], street: bytes
) -> None:
    """It is larger than the whole store: its mask is answered, and nothing promises more."""
    async with serve(max_result_bytes=1) as (_, client, _):
        reply = await client.post("/segment", content=street)
        assert reply.status_code == 200
        promised = [
            reply.headers.get("link"),
            reply.headers.get("x-result-id"),
            *(reply.json().get("links") or {}).values(),
        ]
        assert not any(promised)


async def test_an_idle_server_lets_go_of_what_is_old(
    serve: Callable[..., AbstractAsyncContextManager[Any]], street: bytes
) -> None:
    async with serve(worker=FakeDevice(), result_ttl=0.05) as (_, client, services):
        assert (await client.post("/segment", content=street, params={"format": "png"})).status_code == 200
        await until(lambda: not services.results._items)
