"""The admin key: who has it may change what is served."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx
import pytest

from models import list_models
from tests.fakes import FakeDevice

NAME = list_models()[0].name
KEY = "hunter2, or so"
FOREIGN = "Schlüssel, 鍵"


@pytest.mark.parametrize("change", ["load", "unload"])
async def test_without_a_key_nobody_may(
    client: httpx.AsyncClient, assert_problem: Callable[..., None], change: str
) -> None:
    for headers in ({}, {"Authorization": "Bearer "}, {"Authorization": "Bearer x"}):
        reply = await client.post(f"/models/{NAME}/{change}", headers=headers)
        assert_problem(reply, 403, "admin-disabled")
        assert "SEGLENS_ADMIN_KEY" in reply.json()["detail"]


async def test_the_key_alone_opens(
    serve: Callable[..., AbstractAsyncContextManager[Any]], assert_problem: Callable[..., None]
) -> None:
    async with serve(worker=FakeDevice(), admin_key=KEY) as (_, client, _):
        for given in (None, KEY, f"Basic {KEY}", "Bearer", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", "Bearer é"):
            headers = {} if given is None else {b"Authorization": given.encode()}
            for change in ("load", "unload"):
                reply = await client.post(f"/models/{NAME}/{change}", headers=headers)
                assert_problem(reply, 401, "unauthorized")
                assert reply.headers["www-authenticate"] == "Bearer"
                assert KEY not in reply.text
        for change in ("load", "unload"):
            reply = await client.post(f"/models/{NAME}/{change}", headers={"Authorization": f"Bearer {KEY}"})
            assert reply.status_code == 200


async def test_a_key_beyond_ascii_is_sent_in_utf_8(
    serve: Callable[..., AbstractAsyncContextManager[Any]],
) -> None:
    async with serve(worker=FakeDevice(), admin_key=FOREIGN) as (_, client, _):
        for given, status in ((FOREIGN, 200), (FOREIGN[:-1], 401)):
            headers = {b"Authorization": f"Bearer {given}".encode()}
            reply = await client.post(f"/models/{NAME}/load", headers=headers)
            assert reply.status_code == status
