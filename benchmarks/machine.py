"""What a figure was measured on: versions and the kind of machine, never its name."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
CPUINFO = Path("/proc/cpuinfo")
RESULTS = ":!benchmarks/results"  # for git: all but these


def describe(device: torch.device) -> dict[str, str | int]:
    """For a result's JSON."""
    found: dict[str, str | int] = {
        "device": device.type,
        "processor": processor(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if device.type == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda or "none"}
    return found


def commit() -> str:
    """Of the code that is measured; `-dirty` where its files were changed, results apart; empty outside a clone."""
    tracked = ("status", "--porcelain", "--untracked-files=no")
    try:
        head, changes = _git("rev-parse", "--short", "HEAD"), _git(*tracked, "--", ".", RESULTS)
    except (OSError, subprocess.CalledProcessError):  # no git, or no clone
        return ""
    return f"{head}-dirty" if changes else head


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def processor() -> str:
    """Name and, where the system tells them, family and model: processors of one name differ by a factor of two."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    generation = [f"{part.removeprefix('cpu ')} {told[part]}" for part in ("cpu family", "model") if part in told]
    return ", ".join([told.get("model name", platform.machine()), *generation])
