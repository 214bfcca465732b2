"""Which code and which processor a figure is of."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks import machine


def test_a_commit_is_dirty_if_anything_but_results_was_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert machine.commit() == ""  # no clone

    def git(*arguments: str) -> None:
        own = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *own, *arguments], cwd=tmp_path, check=True, capture_output=True)

    code, result = tmp_path / "code.py", tmp_path / "benchmarks/results/a.json"
    result.parent.mkdir(parents=True)
    for file in (code, result):
        file.write_text("before")
    git("init")
    git("add", ".")
    git("commit", "-m", "a")
    result.write_text("measured")
    clean = machine.commit()
    assert clean
    assert "dirty" not in clean
    code.write_text("after")
    assert machine.commit() == f"{clean}-dirty"


def test_the_generation_of_a_processor_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Cloud machines of two generations may both be an "AMD EPYC"."""
    listed = tmp_path / "cpuinfo"
    listed.write_text("processor\t: 0\ncpu family\t: 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC\nflags\t\t: a b\n")
    monkeypatch.setattr(machine, "CPUINFO", listed)
    assert machine.describe(torch.device("cpu"))["processor"] == "AMD EPYC, family 26, model 2"
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "missing")
    assert machine.describe(torch.device("cpu"))["processor"] == platform.machine()
