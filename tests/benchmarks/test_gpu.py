"""That the script for a GPU runs; its figures need one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_all_sections_run_at_tiny_sizes() -> None:
    pytest.importorskip("triton", reason="no Triton")
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--quick"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert ran.returncode == 0, ran.stderr
    tables = ran.stdout.split("\n\n")
    assert [table.splitlines()[0].split(",")[0] for table in tables[1:]] == [
        "criss-cross attention",
        "blocks of the kernels",
        "whole models",
    ]
    # Two types by four forms; one choice of blocks; two depths, three heads, three ways.
    assert [len(table.strip().splitlines()) - 2 for table in tables[1:]] == [8, 1, 18]
    for row in tables[1].strip().splitlines()[2:]:
        assert float(row.split()[-1]) < 0.05
