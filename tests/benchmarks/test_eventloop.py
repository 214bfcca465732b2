"""The event loop's load and probes; what they measure is not asserted."""

from __future__ import annotations

import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from benchmarks import eventloop
from benchmarks.eventloop import PROBES, load, probe


def test_a_load_that_fails_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setattr(eventloop, "URL", f"http://127.0.0.1:{port}")
    with pytest.raises(httpx.ConnectError):  # the server is gone
        load(1, 60.0)  # at the first request, however long it takes to make a client


def test_a_probe_that_is_late_makes_the_next_one_late(monkeypatch: pytest.MonkeyPatch) -> None:
    stall = 3.5 / PROBES

    class Stalling(BaseHTTPRequestHandler):
        waits = iter([stall])

        def do_GET(self) -> None:
            time.sleep(next(self.waits, 0.0))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Stalling) as server:
        threading.Thread(target=server.serve_forever).start()
        monkeypatch.setattr(eventloop, "URL", f"http://127.0.0.1:{server.server_port}")
        took = probe(4 / PROBES)
        server.shutdown()
    assert len(took) == 4
    assert all(late >= stall - turn / PROBES for turn, late in enumerate(took))
