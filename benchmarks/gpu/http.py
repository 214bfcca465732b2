"""The service from end to end: JPEG in, PNG out, over HTTP."""

from __future__ import annotations

import http.client
import itertools
import socket
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
import yaml

from app.catalog import describe
from app.imaging import decode, encode_rgb
from benchmarks.gpu.networks import PLAIN, network
from benchmarks.gpu.scope import DEVICE, Grid, Row, Scope
from benchmarks.peers.processes import running
from models import ModelSpec, get_spec
from models.transforms import resize

SAMPLE = Path(__file__).parents[2] / "app/web/sample.jpg"
BUNDLED, CHECKPOINT = "ccnet-mobilenetv2-camvid", "ccnet_r50-d8"
SIZE = (512, 1024)


class Answer(NamedTuple):
    sent: float
    seconds: float


def write_checkpoint(folder: Path) -> ModelSpec:
    """A ccnet_r50-d8 with random weights, in a folder that the service serves."""
    state = network("ccnet", 50, PLAIN).cpu().state_dict()
    # So far apart that random logits decide no class: the service then finds that bfloat16 changes none.
    state["decode_head.conv_seg.bias"] = 1000 * torch.linspace(1, -1, 19)
    file = folder / f"{CHECKPOINT}.pth"
    torch.save(state, file)
    file.with_suffix(".yaml").write_text(yaml.safe_dump({"scale": [SIZE[1], SIZE[0]], "mode": "whole"}))
    return describe(file)


def served(folder: Path, scope: Scope) -> list[tuple[ModelSpec, Grid]]:
    """Models, and the size of the images that each is sent."""
    models = [(get_spec(BUNDLED), (360, 480))]
    return [*models, (write_checkpoint(folder), SIZE)] if scope.checkpoint else models


def throughput(scope: Scope) -> Iterator[Row]:
    with tempfile.TemporaryDirectory(prefix="gpu-") as scratch:
        folder = Path(scratch) / "models"
        folder.mkdir()
        models = served(folder, scope)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        settings = {
            "PORT": str(port),
            "DEVICE": DEVICE.type,
            "MODEL_DIR": str(folder),
            "MODELS": ",".join(spec.name for spec, _ in models),
            "MAX_QUEUE_SIZE": str(max(128, 4 * max(scope.clients))),
        }
        environment = {f"SEGLENS_{name}": value for name, value in settings.items()}
        command = (sys.executable, "-m", "app", "serve")
        with running(command, environment, Path(scratch) / "log") as server:
            server.wait_until(lambda: all_are_ready(port, len(models)))
            for (spec, size), clients in itertools.product(models, scope.clients):
                answers = drive(port, spec.name, picture(size), clients, sum(scope.seconds))
                yield figures(spec.name, size, clients, answers, scope)


def all_are_ready(port: int, count: int) -> None:
    """
    Raises:
        OSError: not yet
    """
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/models", timeout=10) as response:
        if response.read().count(b'"ready"') < count:
            raise OSError("not all models are loaded")


def picture(size: Grid) -> bytes:
    """A JPEG of the sample picture at that size."""
    pixels = torch.from_numpy(decode(SAMPLE.read_bytes(), 1 << 30))
    return encode_rgb(resize(pixels, size).numpy(), "JPEG")


def drive(port: int, model: str, image: bytes, clients: int, seconds: float) -> list[Answer]:
    """What so many clients met that each send as soon as they are answered.

    Raises:
        RuntimeError: an answer was no mask
    """
    started = time.perf_counter()

    def client() -> list[Answer]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        answers = []
        while (sent := time.perf_counter() - started) < seconds:
            connection.request("POST", f"/segment?model={model}&format=png", image, {"Content-Type": "image/jpeg"})
            response = connection.getresponse()
            content = response.read()
            if response.status != 200:
                raise RuntimeError(f"{response.status}: {content.decode()}")
            answers.append(Answer(sent, time.perf_counter() - started - sent))
        connection.close()
        return answers

    with ThreadPoolExecutor(clients) as threads:
        pending = [threads.submit(client) for _ in range(clients)]
        return [answer for one in pending for answer in one.result()]


def figures(model: str, size: Grid, clients: int, answers: list[Answer], scope: Scope) -> Row:
    """Of what was answered within the window that counts."""
    seconds, warmup = scope.seconds
    counted = [answer for answer in answers if warmup <= answer.sent + answer.seconds <= warmup + seconds]
    return {
        "model": model,
        "size": f"{size[0]}x{size[1]}",
        "clients": clients,
        "images/s": len(counted) / seconds,
        "median ms": 1000 * statistics.median(answer.seconds for answer in counted) if counted else float("nan"),
    }
