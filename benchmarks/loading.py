"""What loading, replacing and unloading a large model costs: memory, time, and the passes of a model beside it.

`python -m benchmarks.loading` writes a CCNet of a ResNet-50 (stride 8, 19 classes, random weights) to a temporary file,
and loads and unloads it in an engine that serves the bundled CCNet all the while.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Coroutine
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from app.engine.engine import Engine
from app.engine.scheduler import Policy
from app.engine.staging import Image
from app.engine.worker import Worker
from app.metrics import Metrics
from benchmarks.memory import resident
from models import ModelSpec, Segmentor, get_spec
from models.backbones.resnet import BLOCKS, ResNet
from models.checkpoint import save_segmentor
from models.heads.ccnet import CCHead

BUNDLED = "ccnet-mobilenetv2-camvid"
ROUNDS = 3
SECONDS = 5.0  # of passes before anything is loaded


def write_large(folder: Path) -> ModelSpec:
    """Its input is no larger than the bundled model's, so that warming it up does not take all the time there is."""
    path = folder / "ccnet-resnet50.safetensors"
    save_segmentor(Segmentor(ResNet(BLOCKS[50]), CCHead(2048, 512, 19)), path, {}, torch.float32)
    digest = sha256(path.read_bytes()).hexdigest()
    return replace(get_spec(BUNDLED), name="large", weights=path, sha256=digest)


class Client:
    """Sends one image after the other to the bundled model, and keeps the seconds that each took."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.seconds: list[float] = []

    async def run(self) -> None:
        image = Image(torch.zeros(480, 640, 3, dtype=torch.uint8), (480, 640), wants_traces=False)
        while True:
            started = time.monotonic()
            with self._engine.admitted(BUNDLED, "client", 0, started + 60) as job:
                await self._engine.segment(job, [image])
            self.seconds.append(time.monotonic() - started)

    def taken(self) -> str:
        """The median and the longest since this was last asked, in ms."""
        taken, self.seconds = self.seconds, []
        numbers = (1000 * statistics.median(taken), 1000 * max(taken)) if taken else ()
        return "".join(f"{number:12.0f}" for number in numbers) or f"{'none':>12}" * 2


async def measure(spec: ModelSpec) -> None:
    worker = Worker("cpu", 0)
    engine = Engine(worker, [get_spec(BUNDLED)], Policy(1, 1 << 22, 64, 1 << 28, worker.slots), Metrics(), 600)
    engine.start(lambda: None)
    while engine.state == "loading":  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    client = Client(engine)
    passes = asyncio.create_task(client.run())

    async def row(name: str, change: Coroutine[Any, Any, None]) -> None:
        started = time.monotonic()
        await change
        seconds = time.monotonic() - started
        print(f"{name:<10}{seconds:9.1f}{client.taken()}{resident('self'):14.0f}", flush=True)

    megabytes = spec.weights.stat().st_size / 1e6
    print(f"{megabytes:.0f} MB of weights, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"{'':10}{'seconds':>9}{'pass, ms':>12}{'longest':>12}{'resident MB':>14}")
    await row("before", asyncio.sleep(SECONDS))
    for _ in range(ROUNDS):
        await row("load", engine.load(spec))
        await row("replace", engine.load(spec))
        await row("unload", engine.unload(spec.name))
    await row("after", asyncio.sleep(SECONDS))
    passes.cancel()
    await engine.stop(10)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(write_large(Path(folder))))


if __name__ == "__main__":
    main()
