"""How much memory the server needs: by model, by size of image, and with many callers at once.

`python -m benchmarks.sizing` starts a server for each bundled model, one for all of them, and one for a CCNet of the
size that mmsegmentation publishes; prints the resident memory after the start and the peak with each load, and writes
benchmarks/results/sizing.json. With names of rows it measures these alone, and keeps the rest of the file. Results are
not kept meanwhile: what SEGLENS_MAX_RESULT_BYTES allows comes on top. Linux alone tells such peaks.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import platform
import tempfile
from collections import Counter
from pathlib import Path

import httpx
import torch
from PIL import Image

from app import __version__
from benchmarks.machine import commit, processor
from benchmarks.memory import resident
from benchmarks.server import serving
from models import list_models
from tests.models.reference import full_size, random_state, shapes_of
from training.scenes import draw_street

RESULTS = Path(__file__).parent / "results" / "sizing.json"
PORT = 18768
CALLERS = 64  # half as many as may wait by default
ONE_BY_ONE = 4
PUBLISHED = "ccnet-resnet50-published"
ALL = "all of them"
# The last size is the largest that is accepted. What a load leaves in the heap counts in the next.
LOADS = (
    *(((480, 360), 1), ((1024, 512), 1), ((2048, 1024), 1), ((8000, 5000), 1)),
    *(((2048, 1024), CALLERS), ((8000, 5000), CALLERS)),
)
# One of the size that is published takes images of 2048x1024 as they are.
PUBLISHED_LOADS = (((2048, 1024), 1), ((2048, 1024), 2))


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def picture(width: int, height: int) -> bytes:
    """A street as a JPEG: a drawn one of 480x360, made larger."""
    buffer = io.BytesIO()
    Image.fromarray(draw_street(1, 480, 360)[0]).resize((width, height)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def settings_of(models: list[str], folder: str) -> dict[str, str]:
    """Of a server of these models; one of the size that is published is written to the folder first."""
    own = {"DEVICE": "cpu", "MODELS": ",".join(models), "DEFAULT_MODEL": models[0], "MAX_RESULT_BYTES": "1"}
    if models == [PUBLISHED]:
        own |= {"MODEL_DIR": folder, "REQUEST_TIMEOUT": "600", "STALL_TIMEOUT": "600"}
        state = random_state(shapes_of("ccnet", full_size("ccnet", 50)))
        torch.save({"state_dict": state, "meta": {}}, Path(folder) / f"{PUBLISHED}.pth")
    return own


async def post(url: str, models: list[str], body: bytes, at_once: int, times: int) -> Counter[int]:
    """Statuses of so many callers' requests, each caller one after the other, the models by turns."""

    async def caller(number: int) -> list[int]:
        path = f"/segment?model={models[number % len(models)]}"
        return [(await http.post(path, content=body)).status_code for _ in range(times)]

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as http:
        replies = await asyncio.gather(*map(caller, range(at_once)))
    return Counter(status for statuses in replies for status in statuses)


def measure(models: list[str]) -> dict[str, object]:
    """Resident memory after the start, the most until then, and peaks with each load, in MB."""
    with tempfile.TemporaryDirectory() as folder, serving(PORT, **settings_of(models, folder)) as (pid, url):
        row: dict[str, object] = {"start": round(resident(pid)), "while it starts": round(resident(pid, "VmHWM"))}
        for size, at_once in PUBLISHED_LOADS if models == [PUBLISHED] else LOADS:
            times = ONE_BY_ONE if at_once == 1 and models != [PUBLISHED] else 1
            name = (f"{at_once} callers, " if at_once > 1 else "") + f"{size[0]}x{size[1]}"
            body = picture(*size)
            forget_peak(pid)
            statuses = asyncio.run(post(url, models, body, at_once, times))
            row[name] = round(resident(pid, "VmHWM"))
            row[f"{name}: statuses"] = dict(statuses)
        return row


def measured_on() -> dict[str, object]:
    return {
        "commit": commit(),
        "seglens": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "kernel": platform.release(),
    }


def main() -> None:
    bundled = [spec.name for spec in list_models()]
    names = [*bundled, ALL, PUBLISHED]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", help=", ".join(names))
    wanted = parser.parse_args().rows or names
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"measured_on": {}, "mb": {}}
    rows = known["mb"]
    for name in wanted:
        rows[name] = measure(bundled if name == ALL else [name])
        known["measured_on"][name] = measured_on()  # rows may be of several runs
        print(name, rows[name], flush=True)
    columns = [column for column in rows[wanted[0]] if not column.endswith("statuses")]
    print(f"\n| MB | {' | '.join(columns)} |\n|{' --- |' * (len(columns) + 1)}")
    for name, row in rows.items():
        print(f"| {name} | {' | '.join(str(row.get(column, '')) for column in columns)} |")
    RESULTS.write_text(json.dumps(known, indent=2) + "\n")


if __name__ == "__main__":
    main()
