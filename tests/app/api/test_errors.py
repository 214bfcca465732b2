"""Bad input, each kind of it: the status, the shape of the reply, and that nothing is left behind."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx
import pytest
from PIL import Image

from app import errors
from app.api.errors import STATUS, TITLES, problems, to_response
from app.errors import ServiceError
from tests.fakes import FakeDevice


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((64, 48), 80).convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()


PICTURE = jpeg()
FORM = {"content-type": "multipart/form-data; boundary=x"}
PART = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
TWO = [("image", ("a.jpg", PICTURE)), ("file", ("b.jpg", PICTURE))]

# Name: arguments of the request, status and type of the answer, and the numbers it must name.
BAD: dict[str, tuple[dict[str, Any], int, str, dict[str, Any]]] = {
    "empty body": ({}, 400, "malformed-body", {"limit": 1, "actual": 0}),
    "text as an image": ({"content": b"hello"}, 415, "unsupported-image", {"actual": 5}),
    "truncated JPEG": ({"content": PICTURE[: len(PICTURE) // 2]}, 400, "malformed-body", {}),
    "PNG signature alone": ({"content": b"\x89PNG\r\n\x1a\n"}, 415, "unsupported-image", {}),
    "wrong content type": (
        {"content": PICTURE, "headers": {"content-type": "application/json"}},
        *(415, "unsupported-image", {}),
    ),
    "SVG": (
        {"content": b"<svg xmlns='http://www.w3.org/2000/svg'/>", "headers": {"content-type": "image/svg+xml"}},
        *(415, "unsupported-image", {}),
    ),
    "form without a file": ({"data": {"note": "x"}, "files": {"other": PICTURE}}, 400, "malformed-body", {"actual": 0}),
    "field that is no file": (
        {"content": PART.replace(b'; filename="a.jpg"', b"") + b"x\r\n--x--\r\n", "headers": FORM},
        *(400, "malformed-body", {"actual": 0}),
    ),
    "two files": ({"files": TWO}, 400, "malformed-body", {"limit": 1, "actual": 2}),
    "too many files": ({"files": [("image", PICTURE)] * 5}, 400, "malformed-body", {}),
    "empty file": ({"files": {"image": ("a.jpg", b"")}}, 400, "malformed-body", {}),
    "no boundary": (
        {"content": PART, "headers": {"content-type": "multipart/form-data"}},
        *(400, "malformed-body", {}),
    ),
    "wrong boundary": (
        {"content": PART, "headers": {"content-type": "multipart/form-data; boundary=y"}},
        *(400, "malformed-body", {}),
    ),
    "part without a name": ({"content": b"--x\r\n\r\nx\r\n--x--\r\n", "headers": FORM}, 400, "malformed-body", {}),
    "unknown model": ({"content": PICTURE, "params": {"model": "unet"}}, 404, "unknown-model", {}),
    "wrong format": ({"content": PICTURE, "params": {"format": "bmp"}}, 422, "invalid-parameter", {}),
    "unknown parameter": ({"content": PICTURE, "params": {"fromat": "png"}}, 422, "invalid-parameter", {}),
    "alpha too large": (
        {"content": PICTURE, "params": {"alpha": "2"}},
        *(422, "invalid-parameter", {"limit": 1, "actual": 2}),
    ),
    "no time": (
        {"content": PICTURE, "headers": {"x-request-timeout-seconds": "-0.5"}},
        *(422, "invalid-parameter", {"limit": 0, "actual": -0.5}),
    ),
    "alpha too large to say": ({"content": PICTURE, "params": {"alpha": "1e999"}}, 422, "invalid-parameter", {}),
    "alpha not a number": ({"content": PICTURE, "params": {"alpha": "nan"}}, 422, "invalid-parameter", {}),
    "attention not a bool": ({"content": PICTURE, "params": {"attention": "maybe"}}, 422, "invalid-parameter", {}),
    "wrong Accept": ({"content": PICTURE, "headers": {"accept": "text/html"}}, 406, "not-acceptable", {}),
    "unknown result": ({"url": "/results/nope"}, 404, "result-expired", {}),
    "result, wrong format": ({"url": "/results/nope?format=bmp"}, 422, "invalid-parameter", {}),
    "unknown route": ({"url": "/segments"}, 404, "unknown-route", {}),
    "unknown route, but for a slash": ({"url": "/models/"}, 404, "unknown-route", {}),
    "missing page file": ({"url": "/web/nope.js"}, 404, "unknown-route", {}),
    **{
        f"timeout {value!r}": (
            {"content": PICTURE, "headers": {"x-request-timeout-seconds": value}},
            *(422, "invalid-parameter", {}),
        )
        for value in ("0", "-1", "nan", "inf", "soon", "")
    },
}


async def send(client: httpx.AsyncClient, arguments: dict[str, Any]) -> httpx.Response:
    if "url" in arguments:
        return await client.get(**arguments)
    return await client.post("/segment", **arguments)


@pytest.mark.parametrize("name", BAD)
async def test_bad_input(
    client: httpx.AsyncClient, assert_problem: Callable[..., None], caplog: pytest.LogCaptureFixture, name: str
) -> None:
    arguments, status, kind, numbers = BAD[name]
    assert_problem(await send(client, arguments), status, kind, **numbers)
    ours = [record for record in caplog.records if record.name.startswith("app")]
    assert not [record for record in ours if record.levelno >= logging.WARNING], "the server is not to blame"


async def test_a_refused_encoding_is_told_from_a_refused_image(
    client: httpx.AsyncClient, assert_problem: Callable[..., None]
) -> None:
    for headers, told in (({"content-encoding": "br"}, "identity"), ({"content-type": "text/plain"}, None)):
        reply = await client.post("/segment", content=PICTURE, headers=headers)
        assert_problem(reply, 415, "unsupported-image")
        assert reply.headers.get("accept-encoding") == told


# A part that never ends is dropped by the form's parser together with its temporary file, which the
# interpreter closes at once.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_form_that_breaks_off(client: httpx.AsyncClient, assert_problem: Callable[..., None]) -> None:
    reply = await client.post("/segment", content=PART + PICTURE, headers=FORM)
    assert_problem(reply, 400, "malformed-body", actual=0)


async def test_too_many_pixels(
    client: httpx.AsyncClient, huge_header: bytes, assert_problem: Callable[..., None]
) -> None:
    reply = await client.post("/segment", content=huge_header)
    assert_problem(reply, 413, "too-large", limit=40_000_000, actual=100_000_000)


async def test_too_long_a_side(
    client: httpx.AsyncClient, encoded: Callable[..., bytes], assert_problem: Callable[..., None]
) -> None:
    reply = await client.post("/segment", content=encoded(Image.new("1", (70_000, 1))))
    assert_problem(reply, 413, "too-large", limit=65_535, actual=70_000)


async def test_not_acceptable_lists_what_there_is(client: httpx.AsyncClient, posted: dict[str, Any]) -> None:
    for reply in (
        await client.post("/segment", content=PICTURE, headers={"accept": "text/html"}),
        await client.get(f"/results/{posted['id']}", headers={"accept": "text/html"}),
        await client.get(f"/attention/{posted['id']}?x=0&y=0", headers={"accept": "text/html"}),
    ):
        assert reply.status_code == 406
        assert {"application/json", "image/png", "image/jpeg"} <= set(
            reply.json()["detail"].split(" none of ")[1].split(", ")
        )


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/segment", "POST"),
        ("POST", "/models", "GET, HEAD"),
        ("PUT", "/results/x", "GET, HEAD, DELETE"),
        ("POST", "/", "GET, HEAD"),
        ("POST", "/web/app.js", "GET, HEAD"),
        ("DELETE", "/web/nope.js", "GET, HEAD"),
    ],
)
async def test_wrong_method(
    client: httpx.AsyncClient, assert_problem: Callable[..., None], method: str, path: str, allowed: str
) -> None:
    reply = await client.request(method, path)
    assert_problem(reply, 405, "method-not-allowed")
    assert set(reply.headers["allow"].split(", ")) == set(allowed.split(", "))


async def test_bad_input_leaves_nothing_behind(client: httpx.AsyncClient) -> None:
    before = (await client.get("/health")).json()
    for arguments, *_ in BAD.values():
        await send(client, arguments)
    after = (await client.get("/health")).json()
    assert after == before
    assert (after["status"], after["queue_size"]) == ("ready", 0)
    assert (await client.post("/segment", content=PICTURE)).status_code == 200


async def test_a_larger_body_is_refused_unread(
    serve: Callable[..., AbstractAsyncContextManager[Any]], assert_problem: Callable[..., None]
) -> None:
    async with serve(worker=FakeDevice(), max_body_bytes=1000) as (_, client, _):
        for reply in (
            await client.post("/segment", content=bytes(1001)),
            await client.post("/segment", content=_chunks(10, 300)),
            await client.post("/segment", files={"image": bytes(1000)}),
        ):
            assert_problem(reply, 413, "too-large", limit=1000)
            assert reply.json()["actual"] > 1000


async def test_a_body_of_just_the_limit_is_read(serve: Callable[..., AbstractAsyncContextManager[Any]]) -> None:
    async with serve(worker=FakeDevice(), max_body_bytes=len(PICTURE)) as (_, client, _):
        assert (await client.post("/segment", content=PICTURE, params={"format": "png"})).status_code == 200


async def _chunks(count: int, size: int) -> Any:
    for _ in range(count):
        yield bytes(size)


def kinds() -> list[type[ServiceError]]:
    """Every error that is raised: the leaves of the tree, and its root."""
    found = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, ServiceError)]
    return [kind for kind in found if kind is ServiceError or not kind.__subclasses__()]


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_every_error_has_a_status_and_a_title(kind: type[ServiceError]) -> None:
    reply = to_response(kind("a sentence"), "an-id")
    assert reply.status_code == STATUS[kind]
    assert reply.status_code in TITLES
    assert b'"detail":"a sentence","instance":"an-id","error":"a sentence"' in reply.body


@pytest.mark.parametrize(("kind", "logged"), [(errors.InferenceFailed, True), (errors.MalformedBody, False)])
def test_a_cause_is_logged_if_the_server_is_to_blame(
    caplog: pytest.LogCaptureFixture, kind: type[ServiceError], logged: bool
) -> None:
    try:
        raise ValueError("secret words")
    except ValueError as exc:
        error = kind("a sentence").because(exc)
    assert b"secret" not in to_response(error, "an-id").body
    found = [record.getMessage() for record in caplog.records]
    assert found == (["an-id: a sentence"] if logged else [])
    assert ("Traceback" in caplog.text and 'raise ValueError("secret words")' in caplog.text) == logged


@pytest.mark.parametrize(("seconds", "header"), [(0.01, "1"), (1.0, "1"), (1.2, "2"), (30, "30")])
def test_retry_after_is_an_integer_and_not_too_early(seconds: float, header: str) -> None:
    reply = to_response(errors.QueueFull("full", limit=1, actual=2, retry_after=seconds), "an-id")
    assert reply.headers["retry-after"] == header


def test_every_status_can_be_declared() -> None:
    assert set(problems(*TITLES)) == set(TITLES)
