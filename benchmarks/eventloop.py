"""Whether the event loop is ever held up: `python -m benchmarks.eventloop [--clients N] [--seconds S]`.

Runs the server in this process, on asyncio's loop, whose callbacks can be timed (by itself it has uvloop). Another
process keeps N requests in flight and a third asks `/livez` ten times a second. A callback's CPU time is what it held
up the loop by its own doing; its wall time also has what the machine took from it, and on a machine with all cores busy
that is most.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import torch

from app.main import create_app
from app.server import Server
from app.settings import Settings
from benchmarks.machine import describe
from benchmarks.peers.figures import percentile

SAMPLE = Path(__file__).parents[1] / "app/web/sample.jpg"
RESULTS = Path(__file__).parent / "results" / "eventloop.json"
PORT = 18767
URL = f"http://127.0.0.1:{PORT}"
PROBES = 10  # a second


def time_callbacks(seconds: list[tuple[float, float, str]]) -> None:
    """Have asyncio note the CPU time, the wall time and the name of each callback from now on."""
    run: Callable[[asyncio.Handle], None] = asyncio.Handle._run

    def timed(handle: asyncio.Handle) -> None:
        callback = getattr(handle, "_callback", None)  # forgotten by a handle that is cancelled meanwhile
        wall, cpu = time.perf_counter(), time.thread_time()
        run(handle)
        taken = time.thread_time() - cpu, time.perf_counter() - wall
        # Its own text would spell out whole replies, which takes longer than what is measured.
        seconds.append((*taken, getattr(callback, "__qualname__", type(callback).__name__)))

    asyncio.Handle._run = timed  # type: ignore[method-assign, assignment]


def load(clients: int, seconds: float) -> None:
    """Keep so many requests in flight, in JSON and with attention: the replies that cost most."""
    image, end = SAMPLE.read_bytes(), time.monotonic() + seconds
    with httpx.Client(base_url=URL, timeout=120) as client, ThreadPoolExecutor(clients) as pool:

        def ask() -> None:
            while time.monotonic() < end:
                client.post("/segment", content=image, headers={"Content-Type": "image/jpeg"}).raise_for_status()

        for asking in [pool.submit(ask) for _ in range(clients)]:
            asking.result()  # so that one that failed is noticed


def probe(seconds: float) -> list[float]:
    """How long after its turn each of the probes had its answer: one that is late makes the next ones late."""
    took: list[float] = []
    with httpx.Client(base_url=URL, timeout=120) as client:
        started = time.perf_counter()
        while (due := len(took) / PROBES) < seconds:
            time.sleep(max(0.0, due - (time.perf_counter() - started)))
            client.get("/livez").raise_for_status()
            took.append(time.perf_counter() - started - due)
            if len(took) % 50 == 0:
                client.get("/metrics").raise_for_status()
    return took


async def serve(clients: int, seconds: float) -> tuple[list[tuple[float, float, str]], list[float]]:
    settings = Settings(port=PORT, max_queue_size=2 * clients, max_passes=1, request_timeout=120)
    server = Server(create_app(settings), settings)  # which ends the process if somebody listens there already
    serving = asyncio.create_task(server.serve())
    async with httpx.AsyncClient(base_url=URL, transport=httpx.AsyncHTTPTransport(retries=10)) as client:
        while (await client.get("/readyz")).status_code != 200:  # noqa: ASYNC110 - another task sets it
            await asyncio.sleep(0.1)
    itself = (sys.executable, "-m", "benchmarks.eventloop", "--seconds", str(seconds))
    driver = await asyncio.create_subprocess_exec(*itself, "--load", str(clients))
    await asyncio.sleep(2)  # until all clients are under way
    callbacks: list[tuple[float, float, str]] = []
    time_callbacks(callbacks)
    prober = await asyncio.create_subprocess_exec(*itself, "--probe", stdout=subprocess.PIPE)
    answer, _ = await prober.communicate()
    failed = await driver.wait()
    server.should_exit = True
    await serving
    if failed:
        raise SystemExit("requests failed: the loop had less to do than it was to have")
    return callbacks, json.loads(answer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--load", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--probe", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load:
        load(arguments.load, arguments.seconds + 4)
        return
    if arguments.probe:
        print(json.dumps(probe(arguments.seconds)))
        return
    callbacks, probes = asyncio.run(serve(arguments.clients, arguments.seconds))
    cpu, wall = [row[0] for row in callbacks], [row[1] for row in callbacks]
    figures = {
        "measured_on": {**describe(torch.device("cpu")), "seconds": arguments.seconds},
        "clients": arguments.clients,
        "callbacks": len(callbacks),
        "cpu_ms": {name: 1000 * percentile(cpu, share) for name, share in (("p99", 0.99), ("max", 1.0))},
        "wall_ms": {name: 1000 * percentile(wall, share) for name, share in (("p99", 0.99), ("max", 1.0))},
        "livez_ms": {name: 1000 * percentile(probes, share) for name, share in (("p50", 0.5), ("p99", 0.99))},
    }
    print(json.dumps(figures, indent=2))
    print("longest by CPU time:")
    for seconds, _, name in sorted(callbacks, reverse=True)[:5]:
        print(f"{1000 * seconds:8.2f} ms  {name}")
    RESULTS.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
