"""That the script for a GPU runs, and judges rightly; its figures need one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from app.engine.tuning import tune_on_cuda
from benchmarks.gpu import __main__ as script
from benchmarks.gpu.goals import goals
from benchmarks.gpu.http import write_checkpoint
from models import load_model

ROOT = Path(__file__).parents[2]
GRIDS = ("64x128", "97x97")
OPERATORS = [
    {"grid": grid, "type": dtype, "form": form, "us": us, "of roofline": share, "MB": megabytes}
    for grid, far in zip(GRIDS, (1, 2), strict=True)
    for dtype, better in (("bfloat16", 1), ("float32", 9))
    for form, us, share, megabytes in (
        ("kernels", 10, 0.7 * far * better, 20),
        ("mmcv's form", 50 * far, 0.1, 90 * far),
    )
]
MODELS = [
    {"model": model, "size": "512x1024", "type": dtype, "graph": graph, "batch": batch, "images/s": rate}
    for model, dtype, graph, batch, rate in (
        ("ccnet_r50-d8", "float32", "no", 1, 10.0),
        ("ccnet_r50-d8", "float32", "no", 8, 20.0),
        ("ccnet_r50-d8", "float32", "yes", 8, 70.0),
        ("ccnet_r50-d8", "bfloat16", "yes", 1, 80.0),
        ("ccnet_r50-d8", "bfloat16", "yes", 2, 101.0),
        ("ann_r50-d8", "bfloat16", "yes", 2, 500.0),
    )
]


def test_all_sections_run_at_tiny_sizes() -> None:
    pytest.importorskip("triton", reason="no Triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--quick"],
        cwd=ROOT,
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert ran.returncode == 0, ran.stderr
    tables = [table.strip().splitlines() for table in ran.stdout.split("\n\n")[1:]]
    assert [(table[0].split(",")[0], len(table) - 2) for table in tables] == [
        ("criss-cross attention", 8),  # two types by four forms
        ("whole models", 12),  # three heads, two types, with and without graphs
        ("a request for attention", 1),
        ("the service", 1),
        ("blocks of the kernels", 1),
        ("goals", 5),
    ]
    operators, models, _, service, _, judged = (table[2:] for table in tables)
    assert all(float(row.split()[-1]) < 0.05 for row in operators)
    graphs = "yes" if torch.cuda.is_available() else "none"
    assert [row.split()[3] for row in models] == ["no", graphs] * 6, "what ran without is not called otherwise"
    assert float(service[0].split()[-2]) > 0
    assert all(row.split()[:2] == ["not", "measured"] for row in judged)


def test_a_section_that_fails_costs_no_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("triton", reason="no Triton")

    def broken(*_: object) -> Iterator[dict[str, str | float]]:
        yield {"grid": "8x9"}
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(script, "operators", broken)
    monkeypatch.setattr(sys, "argv", ["gpu", "--quick", "--only", "operators", "blocks"])
    with pytest.raises(SystemExit, match="failed: operators"):
        script.main()
    told = capsys.readouterr()
    assert "no such kernel" in told.err
    _, first, blocks, judged = told.out.split("\n\n")
    assert "8x9" in first
    assert blocks.startswith("blocks of the kernels")
    assert judged.count("not measured") == 5


def test_goals_are_judged_by_the_worst_grid_and_the_best_batch() -> None:
    found = {"operators": OPERATORS, "models": MODELS, "attention": [{"forward, more": 0.005}]}
    assert [(row["verdict"], row["is"]) for row in goals(found)] == [
        ("met", pytest.approx(5.05)),
        ("met", pytest.approx(0.7)),
        ("met", pytest.approx(5.0)),
        ("not met", pytest.approx(4.5)),
        ("met", pytest.approx(1 / 1.005)),
    ]


def test_a_goal_of_what_was_left_out_is_not_measured() -> None:
    for found in ({}, {"operators": [], "models": MODELS[:3], "attention": []}):
        assert {row["verdict"] for row in goals(found)} == {"not measured"}


def test_the_checkpoint_that_is_served_is_one_that_bfloat16_suits(tmp_path: Path) -> None:
    spec = write_checkpoint(tmp_path)
    assert (spec.name, len(spec.classes.names), spec.preprocessing.scale) == ("ccnet_r50-d8", 19, (1024, 512))
    smaller = replace(spec, preprocessing=replace(spec.preprocessing, scale=(128, 64)))
    segmentor = tune_on_cuda(load_model(smaller), smaller)
    assert {parameter.dtype for parameter in segmentor.parameters()} == {torch.bfloat16}
