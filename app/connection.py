"""A client's connection: uvicorn's, but for how long and how large the head of a request may be, and for `Upgrade`."""

from __future__ import annotations

import asyncio
import sys

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# Of a request's head, its first line and its headers: what comes after them has limits of its own.
MAX_HEAD_BYTES = 1 << 16
TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n"
    b"content-type: text/plain\r\ncontent-length: %d\r\n\r\n%s"
)


class Connection(HttpToolsProtocol):
    """Ends if no whole head of a request comes in the time that idle connections have, or in so many bytes.

    uvicorn alone would wait for it for ever, and keep all that comes. Of a request that asks for another protocol, as
    Java's client and `curl --http2` do of each, it would lose the body.
    """

    _in_head = False
    _head_bytes = 0
    _read = 0  # how much of what it was given the parser has read
    _timeout: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._wait_for_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_no_more()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        unread = memoryview(data)
        while unread:
            self._read = len(unread)
            super().data_received(unread)  # type: ignore[arg-type]  # the parser takes any buffer
            unread = unread[self._read :]
        if self.cycle is None or self.cycle.response_complete:
            self._wait_for_request()
        else:
            self._wait_no_more()
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self._refuse()

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
        super().data_received(b"\r\n".join([*lines, b"", b""]))
        self._read = upgrade.args[0]

    def _refuse(self) -> None:
        reason = b"the head of a request has more than %d bytes" % MAX_HEAD_BYTES
        self.transport.write(TOO_LARGE % (len(reason), reason))
        self.transport.close()

    def _wait_for_request(self) -> None:
        """Once: who sends a byte now and then has no longer than who sends none."""
        if self._timeout is None:
            self._timeout = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _wait_no_more(self) -> None:
        if self._timeout is not None:
            self._timeout.cancel()
            self._timeout = None
