"""That the kernels compile for GPUs, and fit them; no GPU is needed for that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton.backends.nvidia", reason="no Triton")

ROOT = Path(__file__).parents[3]
SHARED = {75: 64 << 10, 86: 99 << 10, 90: 227 << 10}  # bytes that a block may have, by compute capability
SOME = 64  # bytes a thread: registers that are spilled to memory without harm

Resources = list[dict[str, Any]]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Resources:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    ran = subprocess.run(
        [sys.executable, "-m", "tests.models.ops.compiling"],
        cwd=ROOT,
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


def test_both_kernels_compile_for_all_types(compiled: Resources) -> None:
    made = {(one["kernel"], one["capability"], one["type"]) for one in compiled}
    assert len(made) == 2 * 6


def test_no_size_has_code_of_its_own(compiled: Resources) -> None:
    """Which a request of that size would wait for."""
    made = Counter((one["kernel"], one["capability"], one["type"]) for one in compiled)
    passes = {"_attend_along_lines": 2, "_decide": 1}
    assert made == {kind: passes[kind[0]] for kind in made}


def test_shared_memory_suffices(compiled: Resources) -> None:
    assert [one for one in compiled if one["shared"] > SHARED[one["capability"]]] == []


def test_registers_suffice(compiled: Resources) -> None:
    assert [one for one in compiled if one["spilled"] > SOME] == []


def test_halves_are_multiplied_by_tensor_cores_and_float32_is_not_rounded_for_them(compiled: Resources) -> None:
    attention = [one for one in compiled if one["kernel"] == "_attend_along_lines"]
    assert all(one["tensor cores"] is (one["type"] != "float32") for one in attention)
    assert not any(one["tf32"] for one in compiled)
