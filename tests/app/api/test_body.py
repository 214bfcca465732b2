"""Reading the one image of a request, without an app."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import Request

from app.api.body import OPENAPI_BODY, RAW_TYPES, announced_bytes, read_image
from app.errors import MalformedBody, ServiceError, TooLarge, UnsupportedImage

FORM = "multipart/form-data; boundary=x"


def request_of(*chunks: bytes, content_type: str = "", **headers: str) -> Request:
    """A request whose body comes in these chunks; more are never asked for."""
    waiting = list(chunks)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

    named = {"content-type": content_type, **{name.replace("_", "-"): value for name, value in headers.items()}}
    encoded = [(name.encode(), value.encode()) for name, value in named.items() if value]
    return Request({"type": "http", "method": "POST", "headers": encoded}, receive)


def part(name: str, body: bytes, filename: str = "a.png") -> bytes:
    header = f'--x\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\n\r\n'
    return header.encode() + body + b"\r\n"


@pytest.mark.parametrize(("length", "expected"), [("", 0), ("0", 0), ("12", 12), ("-1", 0), ("1.5", 0), ("x", 0)])
def test_announced(length: str, expected: int) -> None:
    assert announced_bytes(request_of(b"", content_length=length), 100) == expected


@pytest.mark.parametrize("content_type", ["", *RAW_TYPES, "IMAGE/PNG", "image/png ; a=b", "image/jpg", "image/svg+xml"])
async def test_raw(content_type: str) -> None:
    assert await read_image(request_of(b"ab", b"", b"c", content_type=content_type), 3) == b"abc"


@pytest.mark.parametrize("field", ["image", "file"])
async def test_form(field: str) -> None:
    body = part("other", b"no") + part(field, b"abc") + b"--x--\r\n"
    assert await read_image(request_of(body[:70], body[70:], content_type=FORM), 1000) == b"abc"


@pytest.mark.parametrize("plain", [b"", b'filename="a.png"; '])
async def test_form_of_an_old_client(plain: bytes) -> None:
    """Which names a file beyond ASCII as no form may, and urllib3 before 1.25 did."""
    named = part("image", b"abc").replace(b'filename="a.png"', plain + b"filename*=utf-8''stra%C3%9Fe.png")
    assert await read_image(request_of(named + b"--x--\r\n", content_type=FORM), 1000) == b"abc"


@pytest.mark.parametrize("content_type", ["text/plain", "application/json", "images/png", "multipart/mixed"])
async def test_other_types_are_named(content_type: str) -> None:
    with pytest.raises(UnsupportedImage, match=content_type):
        await read_image(request_of(b"abc", content_type=content_type), 3)


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "br", "gzip, identity"])
async def test_a_compressed_body_is_refused_by_its_encoding(encoding: str) -> None:
    with pytest.raises(UnsupportedImage, match=f"content encoding '{encoding}'"):
        await read_image(request_of(b"abc", content_encoding=encoding), 1000)
    assert await read_image(request_of(b"abc", content_encoding="Identity , identity"), 1000) == b"abc"


async def test_an_announced_length_is_believed_before_a_byte_is_read() -> None:
    with pytest.raises(TooLarge) as caught:
        await read_image(request_of(content_length="4"), 3)
    assert (caught.value.limit, caught.value.actual) == (3, 4)


@pytest.mark.parametrize("length", ["", "2", "-1", "much"])
async def test_bytes_are_counted_whatever_is_announced(length: str) -> None:
    with pytest.raises(TooLarge) as caught:
        await read_image(request_of(b"ab", b"cd", b"never read", content_length=length), 3)
    assert (caught.value.limit, caught.value.actual) == (3, 4)


@pytest.mark.parametrize(
    ("chunks", "content_type", "error"),
    [
        ([b""], "", MalformedBody),
        ([b"--x--\r\n"], FORM, MalformedBody),
        ([part("image", b"a") + part("image", b"b") + b"--x--\r\n"], FORM, MalformedBody),
        ([part("image", b"") + b"--x--\r\n"], FORM, MalformedBody),
        ([part("image", b"abc" * 400) + b"--x--\r\n"], FORM, TooLarge),
        ([part("image", b"abc") + b"--x--\r\n"], FORM + "; charset=undefined", MalformedBody),
    ],
)
async def test_not_one_image(chunks: list[bytes], content_type: str, error: type[ServiceError]) -> None:
    with pytest.raises(error):
        await read_image(request_of(*chunks, content_type=content_type), 1000)


def test_every_type_is_in_the_openapi_document() -> None:
    content: dict[str, Any] = OPENAPI_BODY["requestBody"]["content"]  # type: ignore[assignment]
    assert set(content) == {*RAW_TYPES, "multipart/form-data"}
