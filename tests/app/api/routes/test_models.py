"""GET /models: what is served."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest

from models import CheckpointError, list_models
from models.fused import can_fuse, has_bfloat16
from tests.fakes import FakeDevice

ADMIN = {"admin_key": "secret"}
KEY = {"Authorization": "Bearer secret"}


async def test_the_list_is_the_registry(client: httpx.AsyncClient) -> None:
    models = (await client.get("/models")).json()
    assert [model["name"] for model in models] == [spec.name for spec in list_models()]
    assert [model["default"] for model in models].count(True) == 1
    assert {(model["state"], model["device"]) for model in models} == {("ready", "cpu")}


@pytest.mark.parametrize("asked", ["auto", "float32"])
async def test_the_precision_is_that_of_the_weights_that_serve(
    serve: Callable[..., AbstractAsyncContextManager[Any]], asked: str
) -> None:
    first, second = (spec.name for spec in list_models()[:2])
    async with serve(precision=asked, models=first) as (_, client, _):
        told = {model["name"]: model["precision"] for model in (await client.get("/models")).json()}
    lower = asked == "auto" and can_fuse() and has_bfloat16()
    assert told[first] == ("mixed" if lower else "float32")
    assert told[second] is None, "of one that is not loaded nobody knows"


async def test_one_model_is_described_as_in_the_list(client: httpx.AsyncClient) -> None:
    for model in (await client.get("/models")).json():
        assert (await client.get(f"/models/{model['name']}")).json() == model


async def test_classes_and_palette(client: httpx.AsyncClient) -> None:
    for spec in list_models():
        model = (await client.get(f"/models/{spec.name}")).json()
        assert [found["id"] for found in model["classes"]] == list(range(len(spec.classes.names)))
        assert [found["name"] for found in model["classes"]] == list(spec.classes.names)
        assert [tuple(found["color"]) for found in model["classes"]] == list(spec.classes.palette)
        assert model["input_rule"].endswith("640x480 (long side x short side), each side rounded to a multiple of 16")
        assert (model["licence"], model["source"]) == (spec.licence, spec.source)


async def test_unknown_model_names_those_there_are(
    client: httpx.AsyncClient, assert_problem: Callable[..., None]
) -> None:
    reply = await client.get("/models/unet")
    assert_problem(reply, 404, "unknown-model")
    assert list_models()[0].name in reply.json()["detail"]


async def test_models_are_listed_while_they_load(serve: Callable[..., AbstractAsyncContextManager[Any]]) -> None:
    async with serve(start=False) as (_, client, _):
        assert {model["state"] for model in (await client.get("/models")).json()} == {"loading"}


# --- load and unload


async def test_a_model_goes_and_comes_back(
    serve: Callable[..., AbstractAsyncContextManager[Any]], street: bytes, assert_problem: Callable[..., None]
) -> None:
    name, other = (spec.name for spec in list_models()[:2])
    async with serve(worker=FakeDevice(), **ADMIN) as (_, client, _):
        reply = await client.post(f"/models/{other}/unload", headers=KEY)
        assert (reply.status_code, reply.json()["state"]) == (200, "available")
        assert reply.json() == (await client.get(f"/models/{other}")).json()
        assert other not in (await client.get("/health")).json()["models"]
        assert_problem(
            await client.post("/segment", params={"model": other, "format": "png"}, content=street),
            503,
            "model-not-loaded",
        )
        assert (
            await client.post("/segment", params={"model": name, "format": "png"}, content=street)
        ).status_code == 200
        reply = await client.post(f"/models/{other}/load", headers=KEY)
        assert (reply.status_code, reply.json()["state"], reply.json().get("reason")) == (200, "ready", None)
        assert (
            await client.post("/segment", params={"model": other, "format": "png"}, content=street)
        ).status_code == 200


async def test_the_log_says_which_model_came_or_went(
    serve: Callable[..., AbstractAsyncContextManager[Any]], caplog: pytest.LogCaptureFixture
) -> None:
    name, device = list_models()[1].name, FakeDevice()
    async with serve(worker=device, **ADMIN) as (_, client, _):
        with caplog.at_level(logging.INFO, "app.api"):
            for path in (f"{name}/unload", f"{name}/load", "made-up/unload", "made-up/load"):
                await client.post(f"/models/{path}", headers=KEY)
            device.error = CheckpointError("new.pth: holds NaN or infinite weights")
            await client.post(f"/models/{name}/load", headers=KEY)
    lines = [record.__dict__["fields"] for record in caplog.records if record.name == "app.api.middleware"]
    assert [line.get("model") for line in lines] == [name, name, None, None, name]


async def test_a_failed_load_says_why_and_leaves_the_old_one_serving(
    serve: Callable[..., AbstractAsyncContextManager[Any]], street: bytes, assert_problem: Callable[..., None]
) -> None:
    device, name = FakeDevice(), list_models()[0].name
    async with serve(worker=device, **ADMIN) as (_, client, _):
        device.error = CheckpointError("new.pth: holds NaN or infinite weights")
        reply = await client.post(f"/models/{name}/load", headers=KEY)
        assert_problem(reply, 422, "load-failed")
        assert reply.json()["detail"] == f"{name} could not be loaded: new.pth: holds NaN or infinite weights"
        device.error = None
        model = (await client.get(f"/models/{name}")).json()
        assert (model["state"], model["reason"]) == ("ready", "new.pth: holds NaN or infinite weights")
        assert (await client.post("/segment?format=png", content=street)).status_code == 200


async def test_what_cannot_be_changed_is_named(
    serve: Callable[..., AbstractAsyncContextManager[Any]], assert_problem: Callable[..., None]
) -> None:
    async with serve(worker=FakeDevice(), **ADMIN) as (_, client, services):
        for change in ("load", "unload"):
            assert_problem(await client.post(f"/models/unet/{change}", headers=KEY), 404, "unknown-model")
        await services.engine.stop(0.1)
        for change in ("load", "unload"):
            reply = await client.post(f"/models/{list_models()[0].name}/{change}", headers=KEY)
            assert_problem(reply, 503, "not-ready")


# --- the folder


async def test_a_file_that_is_no_model_is_listed_with_the_reason(
    serve: Callable[..., AbstractAsyncContextManager[Any]], tmp_path: Path, assert_problem: Callable[..., None]
) -> None:
    (tmp_path / "broken.pth").write_bytes(b"no tensors")
    async with serve(worker=FakeDevice(), model_dir=tmp_path, **ADMIN) as (_, client, _):
        assert [model["name"] for model in (await client.get("/models")).json() if model["state"] == "ready"] == [
            spec.name for spec in list_models()
        ]
        model = (await client.get("/models/broken")).json()
        assert model["state"] == "failed"
        assert model["reason"] == f"{tmp_path / 'broken.pth'}: not a torch checkpoint"
        reply = await client.post("/models/broken/load", headers=KEY)
        assert_problem(reply, 422, "load-failed")
        assert "not a torch checkpoint" in reply.json()["detail"]


async def test_only_what_is_named_is_loaded_at_the_start(
    serve: Callable[..., AbstractAsyncContextManager[Any]], tmp_path: Path
) -> None:
    shutil.copyfile(list_models()[0].weights, tmp_path / "mine.safetensors")
    async with serve(worker=FakeDevice(), model_dir=tmp_path, models="mine", default_model="mine") as (_, client, _):
        states = {model["name"]: model["state"] for model in (await client.get("/models")).json()}
        assert states == {**{spec.name: "available" for spec in list_models()}, "mine": "ready"}
