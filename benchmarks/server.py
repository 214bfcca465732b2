"""Our server as a process of its own, for what is measured by asking it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[1]


@contextmanager
def serving(port: int, **settings: str) -> Iterator[tuple[int, str]]:
    """Process id and address of a server that is ready; settings without their prefix.

    Raises:
        OSError: somebody listens there already, who would be measured in its place
        SystemExit: it ended instead
    """
    socket.create_server(("127.0.0.1", port)).close()
    own = {"PORT": str(port), "LOG_LEVEL": "warning", **settings}
    environment = {**os.environ, **{f"SEGLENS_{name}": value for name, value in own.items()}}
    server = subprocess.Popen([sys.executable, "-m", "app", "serve"], cwd=ROOT, env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        while not _is_ready(url):
            if server.poll() is not None:
                raise SystemExit("the server ended before it was ready")
            time.sleep(0.1)
        yield server.pid, url
    finally:
        server.terminate()
        server.wait()


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").is_success
    except httpx.TransportError:
        return False
