"""Two hundred clients over real connections, half of whom hang up: the others never notice."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack

import pytest

from tests.fakes import FakeDevice, until
from tests.servers import Connection, Listening, listening, picture, posted

CLIENTS = 200
VALUES = [20 + number for number in range(CLIENTS)]  # none of these fails on the fake device


async def connected(stack: AsyncExitStack, served: Listening) -> list[Connection]:
    return [await stack.enter_async_context(Connection(served.port)) for _ in VALUES]


def images_run(device: FakeDevice) -> int:
    return sum(len(batch) for batch in device.batches)


async def assert_right(client: Connection, value: int) -> None:
    reply = await client.reply()
    assert reply.status == 200, reply.content
    assert reply.mask.shape == (8, 12)
    assert (reply.mask == value).all(), "another client's mask"


async def assert_all_is_free(served: Listening) -> None:
    await until(lambda: served.services.engine.queue_size == 0)
    reply = await posted(served.port, picture(7))
    assert (reply.status, reply.mask[0, 0]) == (200, 7)


@pytest.mark.parametrize("slots", [1, 2])
async def test_clients_that_leave_while_they_wait_are_not_run(slots: int) -> None:
    device = FakeDevice(slots, best_batch_size=8)
    async with AsyncExitStack() as stack:
        served = await stack.enter_async_context(listening(device, max_queue_size=CLIENTS, max_passes=1))
        stack.callback(lambda: device.gate.set())
        device.shut()
        clients = await connected(stack, served)
        for client, value in zip(clients, VALUES, strict=True):
            client.post(picture(value))
        # A full batch is taken ahead of those on the device; the rest waits, or is decoded still.
        await until(lambda: (len(device.batches), len(device.staged)) == (slots, slots + 1))
        staged = sum(len(batch) for batch in device.staged)
        await until(lambda: served.services.engine.queue_size == CLIENTS - staged)
        on_device = images_run(device)

        for client in clients[::2]:
            client.hang_up()
        await until(lambda: served.images("cancelled") == CLIENTS / 2)
        device.gate.set()
        for client, value in list(zip(clients, VALUES, strict=True))[1::2]:
            await assert_right(client, value)
        assert images_run(device) <= CLIENTS / 2 + on_device
        assert (served.images("ok"), served.images("cancelled")) == (CLIENTS / 2, CLIENTS / 2)
        await assert_all_is_free(served)


async def test_a_client_that_has_asked_for_more_leaves_like_any_other() -> None:
    device = FakeDevice()
    async with listening(device) as served, Connection(served.port) as first, Connection(served.port) as client:
        device.shut()
        first.post(picture(5))
        await device.is_entered()
        client.post(picture(6))
        client.get("/livez")
        client.post(picture(7))
        await until(lambda: served.services.engine.queue_size == 1)
        client.hang_up()
        await until(lambda: served.images("cancelled") == 1)
        device.gate.set()
        await assert_right(first, 5)
        assert images_run(device) == 1
        assert served.images("ok") == 1


async def test_clients_that_leave_at_any_moment_harm_no_one() -> None:
    """While they upload, while they are decoded, in the queue, on the device, and while they are answered."""
    device, chance = FakeDevice(2, best_batch_size=4), random.Random(1)
    device.seconds_each = 0.002 / 96
    async with AsyncExitStack() as stack:
        served = await stack.enter_async_context(listening(device, max_queue_size=CLIENTS, max_passes=1))
        clients = await connected(stack, served)

        async def leaves(client: Connection, value: int) -> None:
            body = picture(value)
            client.ask(len(body))
            client.writer.write(body[: len(body) // 2])
            await asyncio.sleep(chance.uniform(0, 0.1))
            client.writer.write(body[len(body) // 2 :])
            await asyncio.sleep(chance.uniform(0, 0.2))
            client.hang_up()

        async def stays(client: Connection, value: int) -> None:
            await asyncio.sleep(chance.uniform(0, 0.1))
            client.post(picture(value))
            await assert_right(client, value)

        await asyncio.gather(
            *((leaves if value % 2 else stays)(client, value) for client, value in zip(clients, VALUES, strict=True))
        )
        await until(lambda: served.services.engine.queue_size == 0)
        await until(lambda: served.images("ok") + served.images("cancelled") >= CLIENTS / 2)
        assert served.images("ok") >= CLIENTS / 2
        assert served.images("error") == served.images("expired") == served.images("rejected") == 0
        await assert_all_is_free(served)
