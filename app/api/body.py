"""The image in a request's body: raw, or as a file of a form."""

from __future__ import annotations

from contextlib import aclosing

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.types import Message, Receive

from app.errors import MalformedBody, TooLarge, UnsupportedEncoding, UnsupportedImage

IMAGE_TYPES = ("image/jpeg", "image/png", "image/webp", "image/bmp", "image/tiff", "image/gif")
# What `curl --data-binary` says of a body if it is told nothing; no real form is sent that way with a picture.
CURL_TYPE = "application/x-www-form-urlencoded"
RAW_TYPES = (*IMAGE_TYPES, "application/octet-stream", CURL_TYPE)
FORM_TYPE = "multipart/form-data"
FIELDS = ("image", "file")

# For the OpenAPI document: FastAPI can't tell from a handler that reads the stream itself.
OPENAPI_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            **{media_type: {"schema": {"type": "string", "format": "binary"}} for media_type in RAW_TYPES},
            FORM_TYPE: {
                "schema": {
                    "type": "object",
                    "properties": {"image": {"type": "string", "format": "binary"}},
                    "required": ["image"],
                }
            },
        },
    }
}


def announced_bytes(request: Request, max_bytes: int) -> int:
    """The length of the body as its header has it, or 0.

    Raises:
        TooLarge: more than `max_bytes`
    """
    length = request.headers.get("content-length", "")
    announced = int(length) if length.isdecimal() else 0
    if announced > max_bytes:
        raise _too_large(announced, max_bytes)
    return announced


async def read_image(request: Request, max_bytes: int) -> bytes:
    """The bytes of the one image in a request.

    Raises:
        MalformedBody: empty, a broken form, or not exactly one image in it
        TooLarge: more than `max_bytes`, by its announcement or by count
        UnsupportedImage: a content type that we don't read
        UnsupportedEncoding: a content encoding
    """
    announced_bytes(request, max_bytes)
    encoding = ", ".join(request.headers.getlist("content-encoding"))
    if {token.strip().lower() for token in encoding.split(",")} - {"", "identity"}:
        raise UnsupportedEncoding(f"content encoding {encoding!r}; images are compressed, send them as they are")
    limited = Request(request.scope, _limited(request, max_bytes))
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type == FORM_TYPE:
        body = await _read_form(limited)
    elif content_type in ("", *RAW_TYPES) or content_type.startswith("image/"):  # the bytes tell which image
        body = await limited.body()
    else:
        raise UnsupportedImage(f"content type {content_type!r}; we read {', '.join((*RAW_TYPES, FORM_TYPE))}")
    if not body:
        raise MalformedBody("the body is empty; send an image", limit=1, actual=0)
    return body


class _Form(MultiPartParser):
    """Takes a part for a file by `filename*` too, which is all that old clients say where a name is beyond ASCII.

    RFC 7578 forbids it, but urllib3 did so before 1.25, and with it Python's requests.
    """

    def on_headers_finished(self) -> None:
        disposition = self._current_part.content_disposition or b""
        # Nobody asks for the name itself.
        self._current_part.content_disposition = disposition.replace(b"filename*=", b"filename=")
        super().on_headers_finished()


async def _read_form(request: Request) -> bytes:
    try:
        async with aclosing(request.stream()) as stream:
            form = await _Form(request.headers, stream, max_files=4, max_fields=16).parse()
    except (MultiPartException, UnicodeError) as exc:
        raise MalformedBody(f"a broken form: {exc}") from None
    try:
        files = [value for name, value in form.multi_items() if name in FIELDS and isinstance(value, UploadFile)]
        if len(files) != 1:
            raise MalformedBody(
                f"the form has {len(files)} files named {' or '.join(FIELDS)}; send one", limit=1, actual=len(files)
            )
        return await files[0].read()
    finally:
        await form.close()


def _limited(request: Request, max_bytes: int) -> Receive:
    received = 0

    async def receive() -> Message:
        nonlocal received
        message = await request.receive()
        received += len(message.get("body", b""))
        if received > max_bytes:
            raise _too_large(received, max_bytes)
        return message

    return receive


def _too_large(actual: int, limit: int) -> TooLarge:
    return TooLarge(f"the body has {actual} bytes or more; the limit is {limit}", limit=limit, actual=actual)
