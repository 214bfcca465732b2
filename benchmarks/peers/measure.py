"""One server under one load: it is started, checked, driven and metered."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.peers.catalog import Server, environment
from benchmarks.peers.figures import Figures, Record
from benchmarks.peers.images import Bodies, differing_pixels
from benchmarks.peers.plan import FORM_TYPE, Plan, form
from benchmarks.peers.processes import ROOT, Meter, Processes, ServerFailed, Watch, running, wait_until_free
from benchmarks.peers.tuning import Tuning

PORT = 18780
WARMUP_CLIENTS = 8
Loop = Callable[[float], Figures]
# As long a queue as there are clients, and no deadline: where throughput is measured, nobody is refused. No peer keeps
# results, so ours keeps none here.
PATIENT = {"SEGLENS_MAX_QUEUE_SIZE": "1024", "SEGLENS_REQUEST_TIMEOUT": "600", "SEGLENS_MAX_RESULT_BYTES": "1"}


@dataclass(frozen=True)
class Client:
    """
    Attributes:
        python: what runs it
        scratch: folder for what it and the servers write
        warmup: seconds that it drives a server before that counts as up
    """

    python: str
    scratch: Path
    warmup: float


@dataclass(frozen=True)
class Running:
    """A server that is up and has answered rightly."""

    server: Server
    processes: Processes
    client: Client

    def check(self, bodies: Bodies) -> None:
        """
        Raises:
            ServerFailed: the reply to an image is not the expected mask, byte for byte
        """
        for index, (image, mask) in enumerate(zip(bodies.images, bodies.masks, strict=True)):
            reply, expected = post(self.server, bodies, index), Path(mask).read_bytes()
            if reply != expected:
                pixels = differing_pixels(reply, expected)
                raise ServerFailed(f"{self.server.name} answers {image} with another mask: {pixels} pixels differ")

    def drive(self, bodies: Bodies, plan: Plan) -> tuple[list[Record], Figures]:
        """Run the client, and meter the server in the window that counts."""
        records, meter = self.observe(bodies, plan)
        return records, meter.figures

    def observe(
        self, bodies: Bodies, plan: Plan, interval: float = 1.0, watch: Watch | None = None
    ) -> tuple[list[Record], Meter]:
        """The same, with what the meter saw; `watch` is told of the memory at each interval."""
        records = self.client.scratch / "records.json"
        plan = replace(
            plan,
            url=url(self.server),
            bodies=bodies.images,
            expected=bodies.masks,
            form_field=self.server.form_field,
            headers={"Content-Type": bodies.media_type, **plan.headers},
            records=str(records),
        )
        records.unlink(missing_ok=True)  # so that a client that fails is noticed
        command = [self.client.python, "-m", "benchmarks.peers.load"]
        with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
            assert client.stdin is not None
            assert client.stdout is not None
            client.stdin.write(plan.to_json())
            client.stdin.close()
            client.stdout.readline()
            with Meter(self.processes, client.pid, interval, watch) as meter:
                client.stdout.readline()
        return [Record(*values) for values in json.loads(records.read_text())], meter

    def idle(self, seconds: float) -> Figures:
        """What it takes while nobody asks for anything."""
        with Meter(self.processes) as meter:
            time.sleep(seconds)
        return {**meter.figures, "processes": len(self.processes.pids), "seconds": seconds}


@contextlib.contextmanager
def serving(
    server: Server,
    tuning: Tuning,
    bodies: Bodies,
    client: Client,
    settings: Mapping[str, str] = PATIENT,
) -> Iterator[Running]:
    """A server that is up, answers as all others do, and is warm.

    Args:
        settings: of our server alone

    Raises:
        ServerFailed: it did not come up, or its masks are others than the model's
    """
    values = {"port": str(PORT), "workers": str(tuning.workers)}
    command = [part.format(**values) for part in server.command]
    own = {**environment(server, tuning, PORT, client.scratch), **(settings if server.is_ours else {})}
    wait_until_free(PORT)
    with running(command, own, client.scratch / f"{server.name}.log") as processes:
        processes.wait_until(lambda: post(server, bodies, 0))
        up = Running(server, processes, client)
        up.check(bodies)
        up.drive(bodies, Plan(clients=WARMUP_CLIENTS, warmup=0.0, seconds=client.warmup))
        yield up


def post(server: Server, bodies: Bodies, index: int) -> bytes:
    body, headers = Path(bodies.images[index]).read_bytes(), {"Content-Type": bodies.media_type}
    if server.form_field:
        body, headers = form(body, server.form_field), {"Content-Type": FORM_TYPE}
    request = urllib.request.Request(url(server), body, headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        content: bytes = response.read()
        return content


def url(server: Server) -> str:
    return f"http://127.0.0.1:{PORT}{server.path}"


@contextlib.contextmanager
def bare(layout: tuple[int, int], bodies: Bodies, *, reduced: bool = False) -> Iterator[Loop]:
    """The model in a plain loop, without a server: to be called with a number of seconds.

    Args:
        layout: replicas, and threads of a pass
        reduced: as ours runs it where the CPU has bfloat16
    """
    replicas, threads = layout
    command = [sys.executable, "-m", "benchmarks.peers.bare", str(replicas), *bodies.images]
    command += ["--reduced"] if reduced else []
    env = {**os.environ, **Tuning(threads=threads).environment()}
    with subprocess.Popen(command, cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as loop:
        assert loop.stdin is not None
        assert loop.stdout is not None
        asked, answers = loop.stdin, loop.stdout

        def measured(seconds: float) -> Figures:
            print(seconds, file=asked, flush=True)
            figures: Figures = json.loads(answers.readline())
            return figures

        yield measured
        asked.close()
