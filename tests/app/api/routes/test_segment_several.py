"""POST /segment with several models: one image, a result by each, and where they differ."""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from itertools import combinations
from typing import Any

import httpx
import numpy as np
import pytest

from app.api import decoding
from app.api.dependencies import Services
from app.engine.device import Ran
from app.engine.staging import Staged
from app.errors import InferenceFailed
from models import list_models
from tests.fakes import FakeDevice, until
from tests.servers import picture

NAMES = [spec.name for spec in list_models()]
ALL = {"model": ",".join(NAMES)}
STREET = picture(3)  # road all over, as a fake device sees it
Serve = Callable[..., AbstractAsyncContextManager[Any]]
Decoded = Callable[[bytes], np.ndarray[Any, Any]]


class Choosy(FakeDevice):
    """Fails whatever one model is to do."""

    def __init__(self, failing: tuple[str, ...]) -> None:
        super().__init__()
        self.failing = failing

    def run(self, key: str, staged: Staged) -> Ran:
        if key.startswith(self.failing):
            return Ran([InferenceFailed("the model failed on this image") for _ in staged.images])
        return super().run(key, staged)


def images_total(services: Services, model: str, outcome: str) -> float:
    labels = {"model": model, "outcome": outcome}
    return services.metrics.registry.get_sample_value("seglens_images_total", labels) or 0.0


def id_mask(result: dict[str, Any], decoded: Decoded) -> np.ndarray[Any, Any]:
    return decoded(base64.b64decode(result["segmentation_mask"]))


async def test_each_result_is_that_of_its_model_alone(
    client: httpx.AsyncClient, street: bytes, decoded: Decoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    decodings, decode = [], decoding.decode
    monkeypatch.setattr(decoding, "decode", lambda data, limit: decodings.append(limit) or decode(data, limit))
    reply = await client.post("/segment", content=street, params={"model": ", ".join(reversed(NAMES))})
    assert reply.status_code == 200, reply.text
    assert len(decodings) == 1
    body = reply.json()
    assert body["image"] == {"width": 240, "height": 180}
    assert body["failures"] == []
    assert [result["model"] for result in body["results"]] == NAMES[::-1]
    for result in body["results"]:
        alone = (await client.post("/segment", content=street, params={"model": result["model"]})).json()
        assert np.array_equal(id_mask(result, decoded), id_mask(alone, decoded))
        assert {"read", "decode", *result["timings_ms"]} == alone["timings_ms"].keys()
        again = (await client.get(f"/results/{result['id']}")).json()
        assert again["predictions"] == result["predictions"] == alone["predictions"]
        attention = await client.get(result["links"]["attention"], params={"x": 5, "y": 5, "format": "json"})
        assert attention.json()["model"] == result["model"]


async def test_what_is_said_of_the_whole(client: httpx.AsyncClient, street: bytes) -> None:
    reply = await client.post("/segment", content=street, params=ALL)
    body = reply.json()
    times = body["timings_ms"]
    assert times.keys() == {"read", "decode", "total"}
    assert times["total"] > max(result["timings_ms"]["forward"] for result in body["results"])
    ids = [result["id"] for result in body["results"]]
    assert len(set(ids)) == len({one.partition(".")[2] for one in ids}) == len(NAMES)
    assert len({one.partition(".")[0] for one in ids}) == 1, "a proxy knows all by one"
    assert reply.headers["x-result-id"] == ids[0]
    assert reply.headers["vary"] == "Accept"
    for result in body["results"]:
        assert f'<{result["links"]["attention"]}>; rel="attention"' in reply.headers["link"]


async def test_disagreement_is_that_of_the_masks(client: httpx.AsyncClient, street: bytes, decoded: Decoded) -> None:
    body = (await client.post("/segment", content=street, params=ALL)).json()
    masks = {result["model"]: id_mask(result, decoded) for result in body["results"]}
    found = body["disagreement"]
    differ = np.any([mask != masks[NAMES[0]] for mask in masks.values()], axis=0)
    assert 0 < found["share"] == pytest.approx(differ.mean(), abs=1e-6)
    assert np.array_equal(decoded(base64.b64decode(found["mask"])) > 0, differ)
    assert [pair["models"] for pair in found["pairs"]] == [list(pair) for pair in combinations(NAMES, 2)]
    for pair in found["pairs"]:
        first, second = (masks[name] for name in pair["models"])
        assert pair["share"] == pytest.approx((first != second).mean(), abs=1e-6)
        assert sum(one["share"] for one in pair["top"]) <= pair["share"] + 1e-5
        names = list_models()[0].classes.names
        for one in pair["top"]:
            here = (first == names.index(one["classes"][0])) & (second == names.index(one["classes"][1]))
            assert one["share"] == pytest.approx(here.mean(), abs=1e-6)


async def test_parts_and_attention_are_of_each(client: httpx.AsyncClient, street: bytes) -> None:
    query = {**ALL, "include": "rle", "attention": "false"}
    reply = await client.post("/segment", content=street, params=query)
    assert "link" not in reply.headers
    for result in reply.json()["results"]:
        assert "segmentation_mask" not in result
        assert "attention" not in result["links"]
        assert all("rle" in found for found in result["predictions"])


# --- what goes wrong


@pytest.mark.parametrize(
    ("query", "status", "kind", "said"),
    [
        ({"model": f"{NAMES[0]},nobody"}, 404, "unknown-model", "nobody"),
        ({"model": f"{NAMES[0]},"}, 404, "unknown-model", ""),
        ({"model": f"{NAMES[0]},{NAMES[0]}"}, 422, "invalid-parameter", "named 2 times"),
        ({**ALL, "format": "png"}, 422, "invalid-parameter", "png is of one model"),
        ({**ALL, "scales": "9"}, 422, "invalid-parameter", "scales"),
    ],
)
async def test_wrong_parameters(
    client: httpx.AsyncClient,
    assert_problem: Callable[..., None],
    query: dict[str, str],
    status: int,
    kind: str,
    said: str,
) -> None:
    reply = await client.post("/segment", content=STREET, params=query)
    assert_problem(reply, status, kind)
    assert said in reply.json()["detail"]


async def test_a_picture_is_not_what_several_models_give(
    client: httpx.AsyncClient, assert_problem: Callable[..., None]
) -> None:
    reply = await client.post("/segment", content=STREET, params=ALL, headers={"accept": "image/png"})
    assert_problem(reply, 406, "not-acceptable")


async def test_format_wins_over_accept(client: httpx.AsyncClient, street: bytes) -> None:
    query, headers = {**ALL, "format": "json"}, {"accept": "image/png"}
    reply = await client.post("/segment", content=street, params=query, headers=headers)
    assert (reply.status_code, reply.headers["content-type"]) == (200, "application/json")


@pytest.mark.parametrize(
    ("body", "status", "kind"), [(b"text", 415, "unsupported-image"), (b"", 400, "malformed-body")]
)
async def test_what_is_no_image(
    client: httpx.AsyncClient, assert_problem: Callable[..., None], body: bytes, status: int, kind: str
) -> None:
    assert_problem(await client.post("/segment", content=body, params=ALL), status, kind)


async def test_one_model_that_fails_fails_alone(serve: Serve) -> None:
    async with serve(worker=Choosy((NAMES[1],))) as (_, client, services):
        reply = await client.post("/segment", content=STREET, params=ALL)
        assert reply.status_code == 200
        body = reply.json()
        assert [result["model"] for result in body["results"]] == [NAMES[0], NAMES[2]]
        assert len(body["disagreement"]["pairs"]) == 1
        (failure,) = body["failures"]
        assert failure["model"] == NAMES[1]
        problem = failure["problem"]
        assert (problem["type"], problem["status"]) == ("inference-failed", 500)
        assert problem["detail"] == problem["error"]
        assert problem["instance"] == reply.headers["x-request-id"]
        assert [images_total(services, name, "ok") for name in NAMES] == [1, 0, 1]
        assert images_total(services, NAMES[1], "error") == 1


async def test_of_one_success_there_is_nothing_to_compare(serve: Serve) -> None:
    async with serve(worker=Choosy((NAMES[0], NAMES[1]))) as (_, client, _):
        body = (await client.post("/segment", content=STREET, params=ALL)).json()
        assert [result["model"] for result in body["results"]] == [NAMES[2]]
        assert len(body["failures"]) == 2
        assert body["disagreement"] is None


async def test_if_all_fail_so_does_the_request(serve: Serve, assert_problem: Callable[..., None]) -> None:
    async with serve(worker=Choosy(tuple(NAMES))) as (_, client, _):
        assert_problem(await client.post("/segment", content=STREET, params=ALL), 500, "inference-failed")


async def test_a_model_that_was_unloaded(
    serve: Serve, assert_problem: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(worker=FakeDevice()) as (_, client, services):
        await services.engine.unload(NAMES[0])
        with caplog.at_level(logging.INFO, "app.api"):
            body = (await client.post("/segment", content=STREET, params=ALL)).json()
        (line,) = (record.__dict__["fields"] for record in caplog.records if record.name == "app.api.middleware")
        assert (line["status"], line["failed"]) == (200, f"{NAMES[0]}: model-not-loaded")
        assert [result["model"] for result in body["results"]] == NAMES[1:]
        assert [failure["problem"]["type"] for failure in body["failures"]] == ["model-not-loaded"]
        for name in NAMES[1:]:
            await services.engine.unload(name)
        assert_problem(await client.post("/segment", content=STREET, params=ALL), 503, "model-not-loaded")


async def test_a_queue_with_room_for_two(serve: Serve) -> None:
    async with serve(worker=FakeDevice(), max_queue_size=2, max_passes=2) as (_, client, services):
        reply = await client.post("/segment", content=STREET, params=ALL)
        body = reply.json()
        assert [result["model"] for result in body["results"]] == NAMES[:2]
        (failure,) = body["failures"]
        assert failure["model"] == NAMES[2]
        assert failure["problem"]["type"] == "queue-full"
        assert failure["problem"]["retry_after"] > 0
        assert "retry-after" not in reply.headers
        assert services.engine.queue_size == 0


async def test_a_full_queue(serve: Serve, assert_problem: Callable[..., None]) -> None:
    device = FakeDevice(best_batch_size=1)
    async with serve(worker=device, max_queue_size=1, max_passes=1) as (_, client, services):

        def post() -> asyncio.Task[httpx.Response]:
            return asyncio.create_task(client.post("/segment", content=STREET, params={"format": "png"}))

        device.shut()
        try:
            others = [post()]
            await device.is_entered()
            others.append(post())
            await until(lambda: len(device.staged) == 2)
            others.append(post())
            await until(lambda: services.engine.queue_size == 1)
            refused = await client.post("/segment", content=STREET, params=ALL)
        finally:
            device.gate.set()
        assert_problem(refused, 429, "queue-full", limit=1, actual=2)
        assert [(await request).status_code for request in others] == [200] * 3


async def test_a_deadline_passes(held: Any, assert_problem: Callable[..., None]) -> None:
    _, client, services, device = held
    headers = {"x-request-timeout-seconds": "0.2"}
    reply = await client.post("/segment", content=STREET, params=ALL, headers=headers)
    assert_problem(reply, 504, "deadline-exceeded")
    assert [images_total(services, name, "expired") for name in NAMES] == [1, 1, 1]
    device.gate.set()


async def test_a_client_that_leaves_gives_up_all(
    held: Any, post_and_leave: Callable[..., Coroutine[Any, Any, list[dict[str, Any]]]]
) -> None:
    app, _, services, device = held
    leave = asyncio.Event()
    request = asyncio.create_task(post_and_leave(app, [{"body": STREET}], leave, query=f"model={ALL['model']}"))
    await device.is_entered()
    await until(lambda: services.engine.queue_size == 2)  # of three models, so not in one batch
    leave.set()
    assert (await request)[0]["status"] == 499
    assert services.engine.queue_size == 0
    assert [images_total(services, name, "cancelled") for name in NAMES] == [1, 1, 1]


async def test_results_that_find_no_place_are_not_linked(serve: Serve) -> None:
    async with serve(worker=FakeDevice(), max_result_bytes=1) as (_, client, _):
        reply = await client.post("/segment", content=STREET, params=ALL)
        assert not {"link", "x-result-id"} & reply.headers.keys()
        assert all(not result["links"] for result in reply.json()["results"])
