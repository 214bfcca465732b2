"""The servers, how each is started, and what of each is tried before it is measured."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.peers.processes import ROOT
from benchmarks.peers.tuning import Tuning

OURS = "ours"
REDUCED = "ours-bfloat16"  # as it comes, where the CPU has it
LAYOUTS = ((2, 1), (1, 2), (2, 2))  # threads of a pass, workers
WAITS = (0.0, 0.005)  # seconds
MAX_BATCH = 8


@dataclass(frozen=True)
class Server:
    """
    Attributes:
        command: what starts it, with the port left open
        form_field: the form file that it reads the image from; empty if it reads the raw body
        batches, waits: whether it can put images into one batch, and wait for them
        layouts: pairs of threads and workers worth a try
        settings: of our server, beside those of every run
    """

    name: str
    command: tuple[str, ...]
    path: str = "/segment"
    form_field: str = ""
    batches: bool = False
    waits: bool = False
    layouts: tuple[tuple[int, int], ...] = LAYOUTS
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_ours(self) -> bool:
        return self.name in (OURS, REDUCED)

    def grid(self, base: Tuning) -> list[Tuning]:
        """The tunings to try, the likeliest for that workload first."""
        # Only real passes have threads to share out.
        layouts = self.layouts if base.workload == "real" else ((1, 1), (1, 2))
        batching = [(1, 0.0)]
        if self.batches:
            batching += [(MAX_BATCH, wait) for wait in (WAITS if self.waits else WAITS[:1])]
        if base.workload == "emulated":
            batching.reverse()
        return [
            replace(base, max_batch=size, wait=wait, threads=threads, workers=workers)
            for size, wait in batching
            for threads, workers in layouts
        ]


def ours(workload: str) -> Server:
    command = ("-m", "app", "serve") if workload == "real" else ("-m", "benchmarks.emulated")
    own = Server(OURS, (sys.executable, *command), path="/segment?format=png&attention=false")
    # The peers run the network in float32, to the last bit.
    return replace(own, settings={"SEGLENS_PRECISION": "float32"}) if workload == "real" else own


def reduced() -> Server:
    """Ours with the real model as it comes, which rounds in part."""
    return replace(ours("real"), name=REDUCED, settings={})


def peers(python: Path) -> list[Server]:
    """The peers, in their own environment."""
    uvicorn = ("-m", "uvicorn", "--port", "{port}", "--workers", "{workers}", "--log-level", "warning")
    module = "benchmarks.peers."
    return [
        Server(
            "litserve",
            (str(python), "-m", f"{module}litserve_server", "{port}"),
            form_field="request",
            batches=True,
            waits=True,
        ),
        Server(
            "bentoml",
            (str(python), "-m", "bentoml", "serve", f"{module}bentoml_server:Web", "--port", "{port}"),
            batches=True,
        ),
        Server("ray", (str(python), "-m", f"{module}ray_server", "{port}"), batches=True, waits=True),
        # Its thread pool runs passes side by side already, so that one worker of one thread is worth a try.
        Server("fastapi-threads", (str(python), *uvicorn, f"{module}fastapi_threads:app"), layouts=((1, 1), *LAYOUTS)),
        Server("fastapi-lock", (str(python), *uvicorn, f"{module}fastapi_lock:app")),
    ]


def environment(server: Server, tuning: Tuning, port: int, scratch: Path) -> dict[str, str]:
    """What a server finds in its environment."""
    if server.is_ours:
        # The real model is served with torch's own choice of threads.
        settings = {"SEGLENS_PORT": str(port), "SEGLENS_LOG_LEVEL": "warning", **server.settings}
        return settings if tuning.workload == "real" else tuning.environment() | settings
    return tuning.environment() | {
        "PYTHONPATH": str(ROOT),
        "BENTOML_HOME": str(scratch / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": str(scratch / "ray"),
    }
