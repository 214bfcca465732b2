"""Bodies on their way in are counted, and given up on every path."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx
import pytest
from fastapi import Request

from app.api.body import read_image
from app.api.dependencies import Services
from app.api.reception import Reception
from app.errors import MalformedBody, NotReady, QueueFull, ServiceError, TooLarge, UnsupportedImage
from app.metrics import Metrics
from tests.fakes import FakeDevice, until

PNG = {"format": "png"}


def request_of(*chunks: bytes, content_type: str = "") -> Request:
    """A request whose body comes in these chunks."""
    waiting = list(chunks)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

    return Request({"type": "http", "method": "POST", "headers": [(b"content-type", content_type.encode())]}, receive)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def reception(metrics: Metrics) -> Reception:
    return Reception(100, metrics)


async def test_what_has_come_counts_until_the_body_is_there(reception: Reception) -> None:
    with reception.receiving(request_of(b"a" * 30, b"b" * 30), 60, ["m"]) as coming:
        assert reception.nbytes == 0
        assert len(await read_image(coming, 1000)) == 60
        assert reception.nbytes == 60
        with pytest.raises(QueueFull, match="101 bytes") as caught, reception.receiving(request_of(), 41, ["m"]):
            pass
        assert (caught.value.limit, caught.value.actual, caught.value.retry_after) == (100, 101, 1.0)
        with reception.receiving(request_of(), 40, ["m"]):
            assert reception.nbytes == 60
    assert reception.nbytes == 0


async def test_who_announces_much_and_sends_nothing_keeps_nobody_out(reception: Reception) -> None:
    with reception.receiving(request_of(), 100, ["m"]), reception.receiving(request_of(b"a" * 99), 99, ["m"]) as coming:
        assert len(await read_image(coming, 1000)) == 99


async def test_a_body_finds_no_room_as_it_comes(reception: Reception) -> None:
    with reception.receiving(request_of(b"a" * 50), 50, ["m"]) as other:
        await read_image(other, 1000)
        with reception.receiving(request_of(b"a" * 30, b"b" * 20), 0, ["m"]) as coming:
            assert len(await read_image(coming, 1000)) == 50
            assert reception.nbytes == 100
        with (
            pytest.raises(QueueFull, match="101 bytes"),
            reception.receiving(request_of(b"a" * 30, b"b" * 21, b"never read"), 0, ["m"]) as coming,
        ):
            await read_image(coming, 1000)
        assert reception.nbytes == 50


async def test_a_lone_body_may_have_any_size(reception: Reception) -> None:
    with reception.receiving(request_of(b"a" * 300), 200, ["m"]) as coming:
        assert len(await read_image(coming, 1000)) == 300
        assert reception.nbytes == 300
    assert reception.nbytes == 0


@pytest.mark.parametrize(
    ("chunks", "content_type", "error"),
    [
        ([b"a" * 40], "", TooLarge),
        ([b"--x--\r\n"], "multipart/form-data; boundary=x", MalformedBody),
        ([b"a"], "text/plain", UnsupportedImage),
    ],
)
async def test_a_body_that_is_given_up_holds_nothing(
    reception: Reception, chunks: list[bytes], content_type: str, error: type[ServiceError]
) -> None:
    request = request_of(*chunks, content_type=content_type)
    with pytest.raises(error), reception.receiving(request, 20, ["m"]) as coming:
        await read_image(coming, 30)
    assert reception.nbytes == 0


@pytest.mark.parametrize(
    ("is_stopped", "is_cancelled", "error"),
    [(True, False, NotReady), (False, True, asyncio.CancelledError), (True, True, asyncio.CancelledError)],
)
async def test_a_body_that_has_yet_to_come_is_refused_when_the_server_ends(
    reception: Reception, metrics: Metrics, is_stopped: bool, is_cancelled: bool, error: type[BaseException]
) -> None:
    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}

    async def wait() -> None:
        with reception.receiving(Request({"type": "http", "headers": []}, receive), 0, ["m"]) as coming:
            await read_image(coming, 1000)

    task = asyncio.create_task(wait())
    await asyncio.sleep(0.001)
    if is_stopped:
        reception.stop()
    if is_cancelled:
        task.cancel()
    with pytest.raises(error):
        await asyncio.wait_for(task, 10)
    rejected = metrics.registry.get_sample_value("seglens_images_total", {"model": "m", "outcome": "rejected"})
    assert rejected == (1 if error is NotReady else None)


async def test_one_that_has_come_is_not(reception: Reception) -> None:
    with reception.receiving(request_of(b"a"), 1, ["m"]) as coming:
        await read_image(coming, 1000)
    reception.stop()
    await asyncio.sleep(0)  # where it would be told so


async def test_clients_that_trickle_are_refused_beyond_the_limit(
    serve: Callable[..., AbstractAsyncContextManager[Any]], street: bytes, assert_problem: Callable[..., None]
) -> None:
    body, gate = street + bytes(2 << 20), asyncio.Event()  # what comes after a PNG's end is not looked at
    limit, announced = 3 * len(body), {"content-length": str(len(body))}

    async def slowly() -> Any:
        yield body[:-100]
        await gate.wait()
        yield body[-100:]

    async with serve(worker=FakeDevice(), max_queue_bytes=limit) as (_, client, services):
        slow = [client.post("/segment", content=slowly(), headers=announced, params=PNG) for _ in range(3)]
        stays, *leave = [asyncio.create_task(request) for request in slow]
        await until(lambda: services.reception.nbytes == limit - 300)
        reply = await client.post("/segment", content=street)
        assert_problem(reply, 429, "queue-full", limit=limit, actual=limit - 300 + len(street), retry_after=1)
        assert refused(services) == (1, 1)
        for task in leave:
            task.cancel()
        await until(lambda: services.reception.nbytes == len(body) - 100)
        gate.set()
        assert (await stays).status_code == 200
        assert services.reception.nbytes == 0


async def test_it_counts_no_more_once_its_job_is_let_in(held: Any, street: bytes) -> None:
    _, client, services, device = held
    request: asyncio.Task[httpx.Response] = asyncio.create_task(client.post("/segment", content=street, params=PNG))
    await device.is_entered()
    assert services.reception.nbytes == 0
    device.gate.set()
    assert (await request).status_code == 200


async def test_a_client_that_hangs_up_midway_holds_nothing(
    serve: Callable[..., AbstractAsyncContextManager[Any]],
    post_and_leave: Callable[..., Coroutine[Any, Any, list[dict[str, Any]]]],
) -> None:
    async with serve(worker=FakeDevice()) as (app, _, services):
        leave = asyncio.Event()
        upload = asyncio.create_task(post_and_leave(app, [{"body": b"half of", "more_body": True}], leave))
        await until(lambda: services.reception.nbytes == 7)
        leave.set()
        assert (await upload)[0]["status"] == 499
        assert services.reception.nbytes == 0


def refused(services: Services) -> tuple[float | None, float | None]:
    """Images of the default model, by what became of them and by the reason."""
    model, value = services.settings.default_model, services.metrics.registry.get_sample_value
    return (
        value("seglens_images_total", {"model": model, "outcome": "rejected"}),
        value("seglens_rejected_total", {"model": model, "reason": "queue-full"}),
    )
