"""Servers as processes: started and stopped with all their children, and what they take of the machine. Linux only."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

from benchmarks.peers.figures import Figures

ROOT = Path(__file__).parents[2]
# Whatever a server starts inherits this variable, which tells whose it is.
TAG = "BENCHMARK_SERVER"
START_TIMEOUT, STOP_TIMEOUT, MEMORY_INTERVAL = 180.0, 5.0, 1.0  # seconds
TICKS = os.sysconf("SC_CLK_TCK")
MEGABYTE = 1e6
Watch = Callable[[float, float, float], object]  # seconds, PSS and RSS in MB


class ServerFailed(Exception):
    """A server did not come up, or went down."""


def wait_until_free(port: int) -> None:
    """Wait until whoever listened there is gone: Ray's proxy outlives its signal by seconds, if it has a backlog.

    Raises:
        ServerFailed: it stays
    """
    give_up = time.monotonic() + START_TIMEOUT
    while time.monotonic() < give_up:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return
        time.sleep(0.1)
    raise ServerFailed(f"port {port} is still taken after {START_TIMEOUT:g} s")


class Processes:
    """A server and all that it started."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self._log = log
        self._tag = f"{TAG}={uuid.uuid4().hex}"
        name, value = self._tag.split("=")
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **environment, name: value},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pids(self) -> list[int]:
        return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal() and self._owns(path)]

    @property
    def cpu_seconds(self) -> float:
        return sum(map(cpu_seconds, self.pids))

    def wait_until(self, works: Callable[[], object]) -> None:
        """Wait until something can be done without an OSError, which every failure to connect is.

        Raises:
            ServerFailed: with the end of its log
        """
        give_up = time.monotonic() + START_TIMEOUT
        failure = ""
        while (ended := self._process.poll()) is None and time.monotonic() < give_up:
            try:
                works()
            except OSError as exc:
                failure = f"not up after {START_TIMEOUT:g} s: {exc}"
                time.sleep(0.1)
            else:
                return
        if ended is not None:
            failure = f"ended with {ended}"
        raise ServerFailed(f"{failure}\n{self._log.read_text()[-2000:]}")

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        give_up = time.monotonic() + STOP_TIMEOUT
        while (self._process.poll() is None or self.pids) and time.monotonic() < give_up:
            time.sleep(0.1)
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()

    def _owns(self, path: Path) -> bool:
        try:
            return self._tag.encode() in (path / "environ").read_bytes().split(b"\0")
        except OSError:
            return False


@contextlib.contextmanager
def running(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Iterator[Processes]:
    """A server for as long as it is needed."""
    processes = Processes(command, environment, log)
    try:
        yield processes
    finally:
        processes.stop()


class Meter:
    """What a server takes while this is open: CPU time, the most memory; and what others take of the machine."""

    def __init__(
        self,
        server: Processes,
        client: int | None = None,
        interval: float = MEMORY_INTERVAL,
        watch: Watch | None = None,
    ) -> None:
        """
        Args:
            client: pid of the process that drives the server
            interval: seconds from one look at the memory to the next
            watch: is told what each look saw
        """
        self._server = server
        self._interval = interval
        self._watch = watch
        self.memory: list[tuple[float, float, float]] = []  # seconds since the start, PSS and RSS in MB
        self._own = [os.getpid()] if client is None else [os.getpid(), client]
        self._closed = threading.Event()
        self._sampler = threading.Thread(target=self._sample)

    def __enter__(self) -> Self:
        self._started = self._clocks()
        self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        wall, busy, server, own = (now - before for now, before in zip(self._clocks(), self._started, strict=True))
        self._closed.set()
        self._sampler.join()
        self.figures: Figures = {
            "cpu_seconds": server,
            "cpu_share": server / wall,
            "client_share": own / wall,
            "others_share": max(0.0, busy - server - own) / wall / (os.cpu_count() or 1),
            "pss_mb": max(pss for _, pss, _ in self.memory),
            "rss_mb": max(rss for _, _, rss in self.memory),
        }

    def _clocks(self) -> tuple[float, float, float, float]:
        return time.monotonic(), machine_busy(), self._server.cpu_seconds, sum(map(cpu_seconds, self._own))

    def _sample(self) -> None:
        while True:
            seen = time.monotonic() - self._started[0], *memory(self._server.pids)
            self.memory.append(seen)
            if self._watch is not None:
                self._watch(*seen)
            if self._closed.wait(self._interval):
                return


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far; none of one that has gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS


def machine_busy() -> float:
    """CPU time that all cores together have worked since the machine started."""
    user, nice, system, _, _, *interrupts = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    return sum(map(int, (user, nice, system, *interrupts))) / TICKS


def memory(pids: Sequence[int]) -> tuple[float, float]:
    """MB that processes hold: with shared pages divided among those that share them, and counted in each."""
    totals = {"Pss": 0.0, "Rss": 0.0}
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in totals:
                    totals[name] += 1024 * int(value.split()[0]) / MEGABYTE
    return totals["Pss"], totals["Rss"]
