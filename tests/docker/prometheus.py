"""Debian's Prometheus as a process of its own, on the configuration of docker/prometheus."""

from __future__ import annotations

import random
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "docker" / "prometheus"
PATIENCE = 100.0  # seconds

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="prometheus and promtool are not installed (on Debian: apt-get install prometheus)",
)


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE:g} s: {what}"
        time.sleep(0.2)  # another process: there is nothing to wait on


@dataclass(frozen=True)
class Prometheus:
    url: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples of an instant query; none if there is no data."""
        reply = httpx.get(f"{self.url}/api/v1/query", params={"query": expression}, timeout=60)
        body = reply.json()
        assert body["status"] == "success", f"{body}: {expression}"
        found: list[dict[str, Any]] = body["data"]["result"]
        return found

    def firing(self) -> set[str]:
        return {sample["metric"]["alertname"] for sample in self.query('ALERTS{alertstate="firing"}')}

    def until(self, condition: Callable[[], bool], what: str) -> None:
        until(condition, what)


@contextmanager
def prometheus(folder: Path, targets: Sequence[str], shorter: Mapping[str, str]) -> Iterator[Prometheus]:
    """A Prometheus that scrapes each second, by the rules of docker/prometheus.

    Args:
        targets: host:port of each server
        shorter: text in the rules to what is put in its place, to shorten windows
    """
    for name in ("rules.yml", "alerts.yml"):
        text = (CONFIG / name).read_text()
        (folder / name).write_text(_replaced(text, shorter))
    config = yaml.safe_load((CONFIG / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    (job,) = config["scrape_configs"]
    del job["dns_sd_configs"]  # there is no such name outside of the containers' network
    job["static_configs"] = [{"targets": list(targets)}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        running = Prometheus(f"http://127.0.0.1:{port}")
        running.until(lambda: _is_ready(running.url), (folder / "log").read_text())
        yield running
    finally:
        process.terminate()
        process.wait(30)


def _replaced(text: str, shorter: Mapping[str, str]) -> str:
    for long, short in shorter.items():
        text = text.replace(long, short)
    return text


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready").status_code == 200
    except httpx.TransportError:
        return False


def free_port() -> int:
    """A port that nobody has, and that is given to no one who asks for any: it stays free until it is used."""
    for port in random.sample(range(10_000, 30_000), 100):
        with socket.socket() as one, suppress(OSError):
            one.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")
