"""A client's connection: uvicorn's, but for how long it waits, how large a request's head may be, and for `Upgrade`."""

from __future__ import annotations

import asyncio
import sys
import weakref

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

# Of a request's head, its first line and its headers: what comes after them has limits of its own.
MAX_HEAD_BYTES = 1 << 16
MAX_WAITING = 100  # requests that came before the one ahead of them was answered; each takes some kilobytes
SILENCE = 1  # second: as the server ends, it waits no longer for a body that nobody reads and that does not come
REFUSAL = b"HTTP/1.1 %s\r\nconnection: close\r\ncontent-type: text/plain\r\ncontent-length: %d\r\n\r\n%s"


class _Answering:
    """A connection as a request's answer is written to it.

    An answer's head waits for what comes with it, in the same turn of the event loop: one packet in place of two.

    When the answer has ended, the client's side stays open as long as its body still comes. If it were closed on what
    is yet to be read, the system would reset it, and a client that sends all of its body before it looks for an answer,
    as most do, would find none.
    """

    def __init__(
        self, cycle: RequestResponseCycle, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._cycle = weakref.proxy(cycle)  # or the two would hold each other until garbage is looked for
        self._transport = transport
        self._loop = loop
        self._begun = False
        self._head = b""  # that waits
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        if self._head:
            self._transport.writelines([self._head, data])
            self._head = b""
        elif not self._begun:
            self._begun, self._head = True, data
            self._loop.call_soon(self._flush)
        else:
            self._transport.write(data)

    def _flush(self) -> None:
        if self._head and not self.is_closing():
            self._transport.write(self._head)
        self._head = b""

    def close(self) -> None:
        self._flush()
        if self._cycle.response_complete and self._cycle.more_body:
            self._transport.write_eof()
        else:
            self._transport.close()


class Connection(HttpToolsProtocol):
    """uvicorn's connection with four limits and one repair.

    * It ends if the head of the next request is not complete within the time that idle connections have.
    * It is refused if a head has more than `MAX_HEAD_BYTES`.
    * It is refused if more than `MAX_WAITING` requests wait on it.
    * It is cut off if the client takes nothing of its answer for as long as idle connections may last.
    * A request that asks for another protocol (`Upgrade`, as Java's client and `curl --http2` do) keeps its body.

    uvicorn alone would wait for ever in the first and fourth case, keep all that comes in the second, take as many as
    one read holds in the third, some ten thousand, and lose the body in the last.
    """

    _in_head = False
    # Bytes that were neither body nor made a head complete: of a head so far, or of chunks' headers and trailers.
    _head_bytes = 0
    _advanced = False  # whether the last bytes received made a head complete, or had some of a body
    _read = 0  # how many of the bytes it was given the parser has read
    _timeout: asyncio.TimerHandle | None = None
    _running: RequestResponseCycle | None = None
    _look: asyncio.TimerHandle
    _heard = True  # whether anything has come since this was last looked at
    _untaken: int | None = None  # bytes not yet sent at the last look, if none can be added before the next look

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._wait_for_request()
        self._look_later()

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_no_more()
        self._look.cancel()
        # uvicorn tells the last request alone that its client has left; an earlier one may yet have to be answered.
        if self._running is not None:
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def resume_writing(self) -> None:
        self._untaken = None
        super().resume_writing()

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # what comes after a body is no header (RFC 9110, section 6.5.1)
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head, self._advanced = False, True
        if len(self.pipeline) >= MAX_WAITING:
            self._refuse(b"429 Too Many Requests", b"%d requests wait already for the one ahead of them" % MAX_WAITING)
            raise ConnectionAbortedError  # which ends the parser's work
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._advanced = True
        super().on_body(body)

    def data_received(self, data: bytes) -> None:
        self._advanced, self._heard = False, True
        unread = memoryview(data)
        while unread:
            self._read = len(unread)
            super().data_received(unread)  # type: ignore[arg-type]  # the parser takes any buffer
            unread = unread[self._read :]
        if self.cycle is None or self.cycle.response_complete:
            self._wait_for_request()
        else:
            self._wait_no_more()
        self._head_bytes = 0 if self._advanced else self._head_bytes + len(data)
        if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            reason = b"the head of a request has more than %d bytes" % MAX_HEAD_BYTES
            self._refuse(b"431 Request Header Fields Too Large", reason)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        if self._is_over:
            self.transport.close()  # it was open for this alone

    def send_400_response(self, msg: str) -> None:  # unless other words were the last
        if not self._is_over and not self.transport.is_closing():
            super().send_400_response(msg)
        self.transport.close()

    def shutdown(self) -> None:
        if self.cycle is not None and self.cycle.response_complete:
            self.cycle.keep_alive = False
            self.cycle.transport.close()
            self._close_once_silent()
        else:
            super().shutdown()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        # It calls no more than this has.
        cycle.transport = _Answering(cycle, self.transport, self.loop)  # type: ignore[assignment]
        super()._start_asgi_task(cycle, app)

    def _should_upgrade(self) -> bool:
        """Whether uvicorn shall leave a request with `Upgrade` to the method below, and not begin to answer it."""
        return bool(self.parser.get_method() != b"CONNECT")

    def handle_websocket_upgrade(self) -> None:
        """Read the head again without the wish, which a server may ignore (RFC 9110, section 7.8), and then the body.

        The parser takes what comes after such a head for the other protocol's.
        """
        upgrade = sys.exception()
        assert isinstance(upgrade, httptools.HttpParserUpgrade)  # this is called where it has been caught
        version = self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version)]
        lines += [b"%s: %s" % (name, value) for name, value in self.headers if name != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
        super().data_received(b"\r\n".join([*lines, b"", b""]))
        self._read = upgrade.args[0]

    @property
    def _is_over(self) -> bool:
        """Whether the last answer has been given, and nothing can be said any more."""
        return self.cycle is not None and self.cycle.response_complete and not self.cycle.keep_alive

    def _refuse(self, status: bytes, reason: bytes) -> None:
        if not self._is_over:
            self.transport.write(REFUSAL % (status, len(reason), reason))
        self.transport.close()

    def _wait_for_request(self) -> None:
        """Start the timer unless it runs: a client that sends a byte now and then gets no more time by it."""
        if self._timeout is None:
            self._timeout = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _wait_no_more(self) -> None:
        if self._timeout is not None:
            self._timeout.cancel()
            self._timeout = None

    def _close_once_silent(self) -> None:
        """Wait for the rest of a body only as long as it comes: the process is to end."""
        if self._heard:
            self._heard = False
            self.loop.call_later(SILENCE, self._close_once_silent)
        else:
            self.transport.close()

    def _look_later(self) -> None:
        self._look = self.loop.call_later(self.timeout_keep_alive, self._cut_off_if_stuck)

    def _cut_off_if_stuck(self) -> None:
        """Abort the connection if nothing of an answer has been taken since the last look.

        Looks compare only while writing is paused or the connection closes, when nothing is added to what is left. A
        client that reads slowly is not cut off; `resume_writing` would tell of it only when almost all has gone.
        """
        left = self.transport.get_write_buffer_size()
        if self._untaken is not None and left >= self._untaken:
            self.transport.abort()
            return
        self._untaken = left if self.flow.write_paused or self.transport.is_closing() else None
        self._look_later()
