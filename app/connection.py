"""A client's connection: uvicorn's, but for how long and how large the head of a request may be."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# Of a request's head, its first line and its headers: what comes after them has limits of its own.
MAX_HEAD_BYTES = 1 << 16
TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n"
    b"content-type: text/plain\r\ncontent-length: %d\r\n\r\n%s"
)


class Connection(HttpToolsProtocol):
    """Ends if no whole head of a request comes in the time that idle connections have, or in so many bytes.

    uvicorn alone would wait for it for ever, and keep all that comes.
    """

    _in_head = False
    _head_bytes = 0
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
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._wait_for_request()
        else:
            self._wait_no_more()
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self._refuse()

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
