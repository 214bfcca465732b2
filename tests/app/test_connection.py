"""How long, and how large, the head of a request may be, and who takes no answer: over real connections to uvicorn."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any
from unittest.mock import Mock, call

import pytest
import uvicorn
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.server import ServerState

from app.connection import MAX_HEAD_BYTES, MAX_WAITING, SILENCE, Connection, _Answering
from tests.fakes import until

GET = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"
Opened = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the length of the body; a path is how many seconds that takes, a query sizes of more in parts.

    At /stay it answers nobody, until the client has left.
    """
    while scope["path"] == "/stay":
        if (await receive())["type"] == "http.disconnect":
            return
    length, more = 0, scope["method"] == "POST"
    start = {"type": "http.response.start", "status": 200}
    if is_early := (b"tell", b"at once") in scope["headers"]:
        await send({**start, "headers": [(b"content-length", b"3")]})
    while more:
        message = await receive()
        length, more = length + len(message["body"]), message["more_body"]
    await asyncio.sleep(float(scope["path"].strip("/") or 0))
    added = [value for name, value in scope["headers"] if name == b"add"]
    parts = [
        b"".join([b"%d" % length, *added]),
        *(bytes(int(size)) for size in scope["query_string"].split(b",") if size),
    ]
    if not is_early:
        await send({**start, "headers": [(b"content-length", b"%d" % sum(map(len, parts)))]})
    for index, part in enumerate(parts, 1):
        await send({"type": "http.response.body", "body": part, "more_body": index < len(parts)})
        if scope["method"] == "PUT":
            break  # before the answer is complete, if it has more parts


@pytest.fixture
def patience() -> int:
    """How long connections may be idle, in seconds."""
    return 1


ample = pytest.mark.parametrize("patience", [60])


@pytest.fixture
async def server(patience: int) -> AsyncIterator[uvicorn.Server]:
    config = uvicorn.Config(app, port=0, http=Connection, lifespan="off", log_config=None, timeout_keep_alive=patience)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    yield server
    server.should_exit = True
    await asyncio.wait_for(task, 60)


@pytest.fixture
async def opened(server: uvicorn.Server) -> AsyncIterator[Opened]:
    """A connection to a server, as its client has it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.servers[0].sockets[0].getsockname()[1])
    yield reader, writer
    writer.close()


async def answer(reader: asyncio.StreamReader) -> bytes:
    """The body of a 200."""
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
    assert head.startswith(b"HTTP/1.1 200"), head
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    return await asyncio.wait_for(reader.readexactly(length), 30)


async def is_closed(reader: asyncio.StreamReader) -> bool:
    """Whether the server closes a connection, and says nothing."""
    with suppress(ConnectionResetError):
        return await asyncio.wait_for(reader.read(), 30) == b""
    return True


@pytest.mark.parametrize("begun", [b"", b"GE", b"GET / HTTP/1.1\r\nHost: he", GET[:-1], b"\r\n"])
async def test_a_connection_without_a_whole_request_is_closed(opened: Opened, begun: bytes) -> None:
    reader, writer = opened
    writer.write(begun)
    assert await is_closed(reader)


@pytest.mark.parametrize("whole", [b"", GET, GET * 2])
async def test_a_byte_now_and_then_gives_no_more_time(opened: Opened, whole: bytes) -> None:
    reader, writer = opened
    writer.write(whole)
    for _ in range(whole.count(GET)):
        assert await answer(reader) == b"0"
    closed = asyncio.create_task(is_closed(reader))
    for byte in b"GET / HTTP/1.1\r\n" + b"x" * 10_000:
        writer.write(bytes([byte]))
        if (await asyncio.wait([closed], timeout=0.1))[0]:
            break
    assert await closed


async def test_so_is_one_whose_body_nobody_waits_for(opened: Opened) -> None:
    reader, writer = opened
    writer.write(b"GET / HTTP/1.1\r\nHost: here\r\nContent-Length: 99999\r\n\r\n")
    assert await answer(reader) == b"0"
    closed = asyncio.create_task(is_closed(reader))
    while not closed.done():
        writer.write(b"x")
        await asyncio.wait([closed], timeout=0.1)
    assert await closed


async def test_a_request_may_take_longer(opened: Opened) -> None:
    reader, writer = opened
    writer.write(GET.replace(b"/ ", b"/1.5 ", 1))
    assert await answer(reader) == b"0"
    writer.write(b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 5\r\n\r\n")
    for _ in range(5):
        await asyncio.sleep(0.4)
        writer.write(b"x")
    assert await answer(reader) == b"5"


async def test_a_head_is_sent_with_what_follows_at_once() -> None:
    """A client can't tell for certain: two packets may be read as one."""
    cycle, transport = Mock(), Mock()
    answering = _Answering(cycle, transport, asyncio.get_running_loop())
    for data in (b"head", b"body", b"more"):
        answering.write(data)
    await asyncio.sleep(0)
    assert transport.mock_calls == [call.writelines([b"head", b"body"]), call.write(b"more")]


@ample
async def test_a_head_is_sent_though_no_body_is(opened: Opened) -> None:
    reader, writer = opened
    for _ in range(2):
        writer.write(GET.replace(b"GET", b"HEAD"))
        assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)).startswith(b"HTTP/1.1 200")


@ample
async def test_nor_is_it_lost_with_the_connection(opened: Opened) -> None:
    reader, writer = opened
    writer.write(CLOSE.replace(b"GET", b"HEAD"))
    assert (await asyncio.wait_for(reader.read(), 30)).startswith(b"HTTP/1.1 200")


@ample
async def test_or_comes_later(opened: Opened) -> None:
    reader, writer = opened
    writer.write(b"POST /?1,1 HTTP/1.1\r\nHost: here\r\nContent-Length: 5\r\nTell: at once\r\n\r\n")
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
    assert head.startswith(b"HTTP/1.1 200")
    writer.write(b"12345")
    assert await asyncio.wait_for(reader.readexactly(3), 30) == b"5\0\0"


@ample
async def test_leave_to_send_comes_before_the_body_does(opened: Opened) -> None:
    reader, writer = opened
    for _ in range(2):
        writer.write(b"POST / HTTP/1.1\r\nHost: here\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30) == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"12345")
        assert await answer(reader) == b"5"


@ample
async def test_bodies_are_no_heads(opened: Opened) -> None:
    reader, writer = opened
    for _ in range(3):
        writer.write(b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 300000\r\n\r\n" + bytes(300_000))
        assert await answer(reader) == b"300000"


@ample
async def test_a_large_head_is_read(opened: Opened) -> None:
    reader, writer = opened
    large = b"GET / HTTP/1.1\r\nHost: here\r\nX: " + b"x" * (MAX_HEAD_BYTES - 100) + b"\r\n\r\n"
    for _ in range(2):
        for start in range(0, len(large), 1000):
            writer.write(large[start : start + 1000])
            await writer.drain()
        assert await answer(reader) == b"0"


@pytest.mark.parametrize("piece", [b"x", b"x: y\r\n"], ids=["one header", "many"])
@ample
async def test_one_beyond_the_limit_is_refused(opened: Opened, piece: bytes) -> None:
    reader, writer = opened
    writer.write(b"GET / HTTP/1.1\r\nHost: here\r\nX: " + piece * (MAX_HEAD_BYTES // len(piece)))
    reply = await asyncio.wait_for(reader.read(), 30)
    assert reply.startswith(b"HTTP/1.1 431 ")
    assert reply.endswith(b"has more than %d bytes" % MAX_HEAD_BYTES)


@ample
@pytest.mark.parametrize(
    "before",
    [
        GET[:-2] + b"X: " + b"x" * 3000 + b"\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 100000\r\n\r\n" + bytes(100_000),
    ],
)
async def test_what_comes_before_half_a_head_is_none_of_it(opened: Opened, before: bytes) -> None:
    reader, writer = opened
    writer.write(before * (1 + 2 * MAX_HEAD_BYTES // len(before)) + GET[:-1])
    for _ in range(1 + 2 * MAX_HEAD_BYTES // len(before)):
        await answer(reader)
    writer.write(GET[-1:])
    assert await answer(reader) == b"0"
    writer.write(GET + GET[:-2] + b"X: " + b"x" * MAX_HEAD_BYTES)
    assert await answer(reader) == b"0"
    writer.write(b"x" * MAX_HEAD_BYTES + b"x")
    assert (await asyncio.wait_for(reader.read(), 30)).startswith(b"HTTP/1.1 431 ")


@ample
@pytest.mark.parametrize("asked", [b"", GET], ids=["nothing", "once"])
async def test_nothing_is_left_of_a_connection_that_has_ended(
    server: uvicorn.Server, opened: Opened, asked: bytes
) -> None:
    reader, writer = opened
    writer.write(asked)
    if asked:
        await answer(reader)
    await until(lambda: bool(server.server_state.connections))
    writer.close()
    await until(lambda: not server.server_state.connections)

    def is_gone() -> bool:
        gc.collect()
        return not any(type(one) is Connection for one in gc.get_objects())

    await until(is_gone)


UPLOAD = b"POST / HTTP/1.1\r\nHost: here\r\nAdd: a\r\nTransfer-Encoding: chunked\r\n\r\n"


@ample
async def test_what_comes_after_a_body_is_no_header(opened: Opened) -> None:
    reader, writer = opened
    writer.write(UPLOAD + b"1\r\nx\r\n0\r\nAdd: b\r\n\r\n" + UPLOAD + b"0\r\n\r\n")
    assert [await answer(reader) for _ in range(2)] == [b"1a", b"0a"]


@ample
@pytest.mark.parametrize("begun", [b"0\r\nx: ", b"0\r\n", b"1;"], ids=["a trailer", "trailers", "an extension"])
async def test_nor_may_it_be_larger_than_a_head(opened: Opened, begun: bytes) -> None:
    reader, writer = opened
    writer.write(UPLOAD)
    for piece in (begun, *[b"x: y\r\n" * 1000 if begun == b"0\r\n" else b"x" * 6000] * (2 + MAX_HEAD_BYTES // 6000)):
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0.01)
    assert (await asyncio.wait_for(reader.read(), 30)).startswith(b"HTTP/1.1 431 ")


@ample
async def test_nor_of_a_request_that_has_been_answered(opened: Opened) -> None:
    """Before garbage is looked for, which is rarely."""
    reader, writer = opened
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            writer.write(GET)
            assert await answer(reader) == b"0"
        assert sum(type(one) is RequestResponseCycle for one in gc.get_objects()) < 4
    finally:
        gc.enable()


@ample
async def test_requests_wait_for_those_before_them(opened: Opened) -> None:
    reader, writer = opened
    writer.write(GET.replace(b"/ ", b"/0.2 ", 1) + GET * MAX_WAITING)
    assert {await answer(reader) for _ in range(1 + MAX_WAITING)} == {b"0"}


@ample
async def test_but_not_too_many(opened: Opened) -> None:
    reader, writer = opened
    writer.write(GET.replace(b"/ ", b"/9 ", 1) + GET * (MAX_WAITING + 1))
    reply = await asyncio.wait_for(reader.read(), 5)
    assert reply.startswith(b"HTTP/1.1 429 ")
    assert reply.endswith(b"%d requests wait already for the one ahead of them" % MAX_WAITING)


@ample
async def test_which_is_told_once(opened: Opened) -> None:
    """And nothing else, though an answer that is still being sent keeps the connection open."""
    reader, writer = opened
    writer.write(GET.replace(b"/ ", b"/?%d " % LARGE, 1) + GET)
    await reader.readuntil(b"\r\n\r\n")
    writer.write(GET * (MAX_WAITING + 9))
    await asyncio.sleep(0.3)
    reply = await asyncio.wait_for(reader.read(), 30)
    assert (reply.count(b"HTTP/1.1 429"), reply.count(b"HTTP/1.1 400")) == (1, 0)


@ample
@pytest.mark.parametrize("others", [b"", GET, GET * 2])
async def test_who_leaves_is_given_up_though_it_asked_for_more(
    server: uvicorn.Server, opened: Opened, others: bytes
) -> None:
    _, writer = opened
    writer.write(GET.replace(b"/ ", b"/stay ", 1) + others)
    await until(lambda: bool(server.server_state.tasks))
    await asyncio.sleep(0.05)  # the others are there as well
    writer.close()
    await until(lambda: not server.server_state.tasks, 10)


LARGE = 30_000_000  # bytes: more than the buffers of both sides take
CLOSE = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")


@pytest.mark.parametrize(
    "asked",
    [
        GET.replace(b"/ ", b"/?%d " % LARGE, 1),
        GET.replace(b"/ ", b"/?%d,%d " % (LARGE, LARGE), 1),
        CLOSE.replace(b"/ ", b"/?%d " % LARGE, 1),
        GET.replace(b"/ ", b"/?%d " % LARGE, 1) + GET * 2,
        GET.replace(b"/ ", b"/?%d " % (LARGE // MAX_WAITING), 1) * MAX_WAITING,
    ],
    ids=["whole", "in parts", "the last", "others after it", "many smaller ones"],
)
async def test_who_takes_no_answer_is_cut_off(server: uvicorn.Server, opened: Opened, asked: bytes) -> None:
    _, writer = opened
    writer.write(asked)
    await until(lambda: bool(server.server_state.connections))
    await until(lambda: not server.server_state.connections and not server.server_state.tasks)


async def test_nor_does_the_last_bit_of_an_answer_stay_for_ever() -> None:
    """Below the size at which writing is paused; how much a system takes before, differs."""
    connection = Connection(uvicorn.Config(app, timeout_keep_alive=60), ServerState(), {})
    transport = Mock(get_extra_info=lambda _: None, get_write_buffer_size=lambda: 5, is_closing=lambda: False)
    connection.connection_made(transport)
    for is_closing, is_cut_off in ((False, False), (False, False), (True, False), (True, True)):
        transport.is_closing = lambda is_closing=is_closing: is_closing
        connection._cut_off_if_stuck()
        assert transport.abort.called == is_cut_off
    connection.connection_lost(None)


@pytest.mark.parametrize("whole", [GET, CLOSE], ids=["kept", "the last"])
@pytest.mark.parametrize("sizes", [[LARGE], [LARGE] * 4], ids=["whole", "in parts"])
async def test_who_takes_it_slowly_is_not(opened: Opened, whole: bytes, sizes: list[int]) -> None:
    reader, writer = opened
    writer.write(whole.replace(b"/ ", b"/?%s " % ",".join(map(str, sizes)).encode(), 1))
    await reader.readuntil(b"\r\n\r\n")
    for _ in range(10):
        await asyncio.sleep(0.5)
        await reader.readexactly(sum(sizes) // 10)
    assert await reader.readexactly(1) == b"\0"


async def test_nor_is_who_takes_each_part_as_it_comes(opened: Opened) -> None:
    """Whenever the server looks, more is left than before, but of another part."""
    reader, writer = opened
    sizes = [LARGE + 1_000_000 * index for index in range(8)]
    writer.write(CLOSE.replace(b"/ ", b"/?%s " % ",".join(map(str, sizes)).encode(), 1))
    await reader.readuntil(b"\r\n\r\n")
    for size in sizes:
        await asyncio.sleep(0.4)
        await reader.readexactly(size)
    assert await reader.readexactly(1) == b"\0"


UNREAD = b"GET / HTTP/1.%d\r\nHost: here\r\n%sContent-Length: %d\r\n\r\n"  # of a GET no body is waited for
THE_LAST = b"Connection: close\r\n"


async def sends(writer: asyncio.StreamWriter, size: int, pause: float = 0.02) -> None:
    """As most clients do, without a look at what the server says meanwhile."""
    for _ in range(10):
        writer.write(bytes(size // 10))
        await writer.drain()
        await asyncio.sleep(pause)


@ample
@pytest.mark.parametrize("head", [UNREAD % (1, THE_LAST, LARGE), UNREAD % (0, b"", LARGE)], ids=["close", "HTTP/1.0"])
async def test_who_has_yet_to_send_its_body_is_not_reset(opened: Opened, head: bytes) -> None:
    reader, writer = opened
    writer.write(head)
    await sends(writer, LARGE)
    assert await answer(reader) == b"0"
    assert await asyncio.wait_for(reader.read(), 30) == b""


@ample
async def test_nor_as_the_server_ends(server: uvicorn.Server, opened: Opened) -> None:
    reader, writer = opened
    writer.write(UNREAD % (1, b"", LARGE))
    assert await answer(reader) == b"0"
    server.should_exit = True
    await until(reader.at_eof)
    await sends(writer, LARGE, 3 * SILENCE / 10)
    await until(lambda: not server.server_state.connections)


async def test_who_sends_nothing_more_is_closed(server: uvicorn.Server, opened: Opened) -> None:
    reader, writer = opened
    writer.write(UNREAD % (1, THE_LAST, LARGE))
    assert await answer(reader) == b"0"
    await until(lambda: not server.server_state.connections)


@ample
@pytest.mark.parametrize("length", [0, 10])
async def test_who_has_sent_all_of_it_is_closed_at_once(server: uvicorn.Server, opened: Opened, length: int) -> None:
    reader, writer = opened
    writer.write(UNREAD % (1, THE_LAST, length))
    assert await answer(reader) == b"0"
    writer.write(bytes(length))
    await until(lambda: not server.server_state.connections, 10)


@ample
async def test_so_is_who_gets_half_an_answer(server: uvicorn.Server, opened: Opened) -> None:
    reader, writer = opened
    writer.write(b"PUT /?10 HTTP/1.1\r\nHost: here\r\nContent-Length: 10\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n0")
    await until(lambda: not server.server_state.connections, 10)


@ample
async def test_who_sends_nothing_more_holds_up_no_end(server: uvicorn.Server, opened: Opened) -> None:
    reader, writer = opened
    writer.write(UNREAD % (1, b"", LARGE) + b"x")
    assert await answer(reader) == b"0"
    server.should_exit = True
    await until(lambda: not server.server_state.connections, 10)


@ample
@pytest.mark.parametrize("last", [THE_LAST, b""], ids=["close", "the server ends"])
@pytest.mark.parametrize("wrong", [b"zz\r\n", b"1;" + b"x" * 2 * MAX_HEAD_BYTES], ids=["broken", "too large"])
async def test_what_goes_wrong_after_the_last_answer_ends_the_connection(
    server: uvicorn.Server, opened: Opened, caplog: pytest.LogCaptureFixture, wrong: bytes, last: bytes
) -> None:
    """Of which only the client's side is open: an answer in writing would be an error of ours."""
    reader, writer = opened
    writer.write(b"GET / HTTP/1.1\r\nHost: here\r\n" + last + b"Transfer-Encoding: chunked\r\n\r\n")
    assert await answer(reader) == b"0"
    server.should_exit = not last
    assert await asyncio.wait_for(reader.read(), 30) == b""
    writer.write(wrong)
    await until(lambda: not server.server_state.connections)
    assert "Traceback" not in caplog.text


WISH = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n9\r\n123456789\r\n0\r\n\r\n"
WISHES = {
    "h2c": b"POST / HTTP/1.1\r\nHost: here\r\n" + WISH + b"Content-Length: 9\r\n\r\n123456789",
    "chunked": b"POST / HTTP/1.1\r\nHost: here\r\n" + WISH + CHUNKED,
    "websocket": b"POST / HTTP/1.1\r\nconnection: upgrade\r\nupgrade: websocket\r\ncontent-length: 9\r\n\r\n123456789",
}


@ample
@pytest.mark.parametrize("piece", [1, 7, 1 << 16])
@pytest.mark.parametrize("wish", WISHES)
async def test_who_asks_for_another_protocol_is_answered_in_this_one(opened: Opened, wish: str, piece: int) -> None:
    reader, writer = opened
    wished = GET.replace(b"\r\n\r\n", b"\r\n" + WISH + b"\r\n")
    sent = WISHES[wish] + wished * 2 + GET + WISHES[wish]
    for start in range(0, len(sent), piece):
        writer.write(sent[start : start + piece])
        await writer.drain()
        await asyncio.sleep(0)
    assert [await answer(reader) for _ in range(5)] == [b"9", b"0", b"0", b"0", b"9"]


@ample
@pytest.mark.parametrize("last", [b"HTTP/1.1\r\nConnection: close, ", b"HTTP/1.0\r\nConnection: "])
async def test_what_comes_after_a_wish_that_is_the_last_does_not_spoil_its_answer(opened: Opened, last: bytes) -> None:
    reader, writer = opened
    writer.write(b"GET / " + last + b"Upgrade\r\nUpgrade: h2c\r\n\r\n" + GET)
    assert await answer(reader) == b"0"
    assert await is_closed(reader)


@ample
async def test_a_wish_for_a_tunnel_is_a_request_like_others(opened: Opened) -> None:
    reader, writer = opened
    writer.write(GET.replace(b"GET", b"CONNECT"))
    assert await answer(reader) == b"0"


@ample
async def test_what_comes_after_a_wish_in_one_piece_is_all_read(opened: Opened) -> None:
    reader, writer = opened
    writer.write(b"GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n" * MAX_WAITING)
    assert {await answer(reader) for _ in range(MAX_WAITING)} == {b"0"}
