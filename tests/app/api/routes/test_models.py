"""GET /models: what is served."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx

from models import list_models


async def test_the_list_is_the_registry(client: httpx.AsyncClient) -> None:
    models = (await client.get("/models")).json()
    assert [model["name"] for model in models] == [spec.name for spec in list_models()]
    assert [model["default"] for model in models].count(True) == 1
    assert {(model["state"], model["device"]) for model in models} == {("ready", "cpu")}


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
