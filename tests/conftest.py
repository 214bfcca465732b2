"""Shared by all tests: one thread for torch, and the server as a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import httpx
import pytest
import torch

ROOT = Path(__file__).parent.parent
SETTINGS = {"SEGLENS_PORT": "0", "SEGLENS_DEVICE": "cpu", "SEGLENS_THREADS": "1"}


@pytest.fixture(autouse=True, scope="session")
def _one_torch_thread() -> Iterator[None]:
    # Networks this small only lose time by sharing their work out.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], AbstractContextManager[tuple[str, Path]]]:
    """`with serving() as (url, log)`: `seglens serve` as a process, ready, and asked to end in order afterwards."""

    @contextmanager
    def serving() -> Iterator[tuple[str, Path]]:
        log = tmp_path_factory.mktemp("server") / "log"
        environment = {name: value for name, value in os.environ.items() if not name.upper().startswith("SEGLENS_")}
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [sys.executable, "-m", "app", "serve"],
                cwd=ROOT,
                env={**environment, **SETTINGS},
                stdout=sink,
                stderr=sink,
            )
        try:
            yield _url_once_ready(process, log), log
            process.terminate()
            assert process.wait(40) == 0, log.read_text()
        finally:
            process.kill()
            process.wait()

    return serving


@pytest.fixture(scope="module")
def server_url(serving: Callable[[], AbstractContextManager[tuple[str, Path]]]) -> Iterator[str]:
    """Where a server of the module's own listens."""
    with serving() as (url, _):
        yield url


def _url_once_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + 60
    while True:
        assert process.poll() is None, f"the server ended before it was ready: {log.read_text()}"
        assert time.monotonic() < deadline, f"the server does not become ready: {log.read_text()}"
        listening = re.search(r"running on (http://127\.0\.0\.1:\d+) ", log.read_text())
        if listening and httpx.get(f"{listening[1]}/readyz", timeout=10).status_code == 200:
            return listening[1]
        time.sleep(0.05)  # another process: there is nothing to wait on
