"""A receiver of OTLP over HTTP that keeps what it is sent: GET gives a JSON list of the bodies in base64."""

from __future__ import annotations

import base64
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

RECEIVED: list[bytes] = []


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/v1/traces":
            RECEIVED.append(body)
        self._answer(200 if self.path == "/v1/traces" else 404, b"")

    def do_GET(self) -> None:
        self._answer(200, json.dumps([base64.b64encode(body).decode() for body in RECEIVED]).encode())

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


if __name__ == "__main__":
    ThreadingHTTPServer(("", 4318), Handler).serve_forever()
