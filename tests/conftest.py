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
from typing import Any, NamedTuple

import httpx
import pytest
import torch
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

# The same examples each time, and no judgement of how fast they run: other work may be going on.
settings.register_profile("tests", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

# Without a GPU kernels are interpreted on the CPU, if this is said before Triton is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

ROOT = Path(__file__).parent.parent
SETTINGS = {"SEGLENS_PORT": "0", "SEGLENS_DEVICE": "cpu", "SEGLENS_THREADS": "1"}


class Together(LoadScopeScheduling):
    """Where processes share the tests, a file's stay together, and all of the API: one of them counts their replies."""

    def _split_scope(self, nodeid: str) -> str:
        api = "tests/app/api/"
        return api if nodeid.startswith(api) else nodeid.split("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Together:
    return Together(config, log)


@pytest.fixture(autouse=True, scope="session")
def _one_torch_thread() -> Iterator[None]:
    # Networks this small only lose time by sharing their work out.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Process(NamedTuple):
    """A server as a process of its own."""

    url: str
    log: Path
    process: subprocess.Popen[bytes]


Serving = Callable[..., AbstractContextManager[Process]]


@pytest.fixture(scope="session")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Serving:
    """`with serving() as (url, log, process)`: `seglens serve`, ready; asked to end in order afterwards, if it hasn't.

    A module may stand in for `app`, and settings may be added: `serving("module", port="80")`.
    """

    @contextmanager
    def serving(module: str = "app", *arguments: str, status: int = 0, **settings: str) -> Iterator[Process]:
        log = tmp_path_factory.mktemp("server") / "log"
        environment = {name: value for name, value in os.environ.items() if not name.upper().startswith("SEGLENS_")}
        own = {f"SEGLENS_{name.upper()}": value for name, value in settings.items()}
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments, "serve"],
                cwd=ROOT,
                env={**environment, **SETTINGS, **own},
                stdout=sink,
                stderr=sink,
            )
        try:
            yield Process(_url_once_ready(process, log), log, process)
            process.terminate()
            assert process.wait(40) == status, log.read_text()
        finally:
            process.kill()
            process.wait()

    return serving


@pytest.fixture(scope="module")
def server_url(serving: Serving) -> Iterator[str]:
    """Where a server of the module's own listens."""
    with serving() as served:
        yield served.url


def _url_once_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + 100
    while True:
        assert process.poll() is None, f"the server ended before it was ready: {log.read_text()}"
        assert time.monotonic() < deadline, f"the server does not become ready: {log.read_text()}"
        listening = re.search(r"running on (http://127\.0\.0\.1:\d+) ", log.read_text())
        if listening and httpx.get(f"{listening[1]}/readyz", timeout=10).status_code == 200:
            return listening[1]
        time.sleep(0.05)  # another process: there is nothing to wait on
