"""The texts at the root are kept in step with the code, and the README's commands are run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from app import __version__
from app.api.errors import STATUS
from app.api.rendering import choose_format
from app.api.schemas import Format
from app.main import create_app
from app.metrics import Metrics
from app.settings import Settings
from models import list_models

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()

# Answered by the HTTP side alone, without an error class of their own.
HTTP_PROBLEMS = {"unknown-route": 404, "method-not-allowed": 405, "invalid-parameter": 422, "internal-error": 500}


def table(heading: str, first: str = "") -> list[list[str]]:
    """Rows of the first table under a heading, or of that whose first column is so called; without outer backticks."""
    section = README.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    section = section[section.index(f"| {first} |") :] if first else section
    rows = re.search(r"\|(?: ---? \|| --- \|)+\n((?:\|.*\n)+)", section)
    assert rows is not None, f"no table under {heading}"
    return [[cell.strip().strip("`") for cell in row.strip("|").split("|")] for row in rows.group(1).splitlines()]


def test_every_setting_is_in_the_readme() -> None:
    fields = Settings.model_fields.items()
    assert table("Settings") == [
        [f"SEGLENS_{name.upper()}", f"{field.default}", field.description] for name, field in fields
    ]


def test_every_endpoint_is_in_the_readme() -> None:
    paths = create_app(Settings()).openapi()["paths"]
    endpoints = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    assert {row[0] for row in table("Endpoints")} == endpoints | {"GET /", "GET /docs"}


def test_every_format_is_in_the_readme() -> None:
    rows = {row[0]: row[1] for row in table("Endpoints", "format")}
    assert rows.keys() == set(get_args(Format))
    for wanted in get_args(Format):
        assert choose_format(wanted, None)[1] in rows[wanted].split("`")[0]


def test_every_error_is_in_the_readme() -> None:
    codes = {error.code: status for error, status in STATUS.items()} | HTTP_PROBLEMS
    assert {row[0]: int(row[1]) for row in table("Errors")} == codes


def test_every_metric_is_in_the_readme() -> None:
    documented = {row[0]: row[1].split(", ") if row[1] else [] for row in table("Metrics")}
    registered = {}
    for metric in vars(Metrics()).values():
        if hasattr(metric, "describe"):
            (family,) = metric.describe()
            name = f"{family.name}_total" if family.type == "counter" else family.name
            registered[name] = list(metric._labelnames)
    assert documented == registered


def test_every_model_is_in_the_readme() -> None:
    rows = {row[0]: row for row in table("Models")}
    assert rows.keys() == {spec.name for spec in list_models()}
    for spec in list_models():
        assert rows[spec.name][4] == f"{spec.miou:.1f}"
        assert rows[spec.name][6] == spec.licence


def test_the_model_card_is_of_the_bundled_weights() -> None:
    card = (ROOT / "models/weights/README.md").read_text()
    for spec in list_models():
        assert spec.name in card
        assert spec.sha256 in card
        assert f"| {spec.miou:.1f} |" in card
        assert spec.licence in card


def test_every_link_to_a_file_of_ours_leads_there() -> None:
    for text in ROOT.glob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", text.read_text()):
            assert (ROOT / target).exists(), f"{text.name} links to {target}"


def test_newest_version_in_the_changelog_is_ours() -> None:
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest.group(1) == __version__


def test_the_readmes_make_commands_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`?make (\w+)", README)) <= targets
    assert set(re.findall(r"^\| `make (\w+)`", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)) <= targets


def test_every_benchmark_says_how_to_get_its_figures_again() -> None:
    text = (ROOT / "benchmarks/README.md").read_text()
    for script in (ROOT / "benchmarks").glob("*.py"):
        if "__main__" in script.read_text():
            assert f"benchmarks.{script.stem}" in text, script
            assert script.stem == "emulated" or "ArgumentParser(description=__doc__" in script.read_text(), script
    for result in (ROOT / "benchmarks/results").iterdir():
        assert f"results/{result.name}" in text, result
    for target in re.findall(r"\]\(([^)#:]+)", text):
        assert (ROOT / "benchmarks" / target).exists(), target


def test_the_readmes_table_of_servers_has_the_published_figures() -> None:
    saved = json.loads((ROOT / "benchmarks/results/serving.json").read_text())["rows"]
    rows = {(row["case"], row["server"]): row for row in saved if row["section"] == "real"}
    servers = ["ours-bfloat16", "ours", "litserve", "bentoml", "ray", "fastapi-threads", "fastapi-lock"]
    shown = table("Under load", "| 1 | 4 | 16 | 64 | ms | MB at 64")
    for server, (_, *cells) in zip(servers, shown, strict=True):
        of = [rows[f"{clients} clients", server] for clients in (1, 4, 16, 64)]
        rates = [f"{row['rate']:.1f} ({100 * row['of_loop']:.0f})" for row in of]
        figures = [*rates, f"{of[0]['p50']:.0f}", f"{of[-1]['pss_mb']:.0f}"]
        assert [cell.replace("*", "") for cell in cells] == figures, server


def test_make_bench_runs_what_is_published() -> None:
    rule = (ROOT / "Makefile").read_text().split("\nbench: install\n")[1].split("\n\n")[0]
    commands = [line.strip().replace("$(BIN)/", "") for line in rule.splitlines()]
    published = (ROOT / "benchmarks/README.md").read_text()
    assert [command for command in commands if f"`{command}`" not in published] == []
    assert len(commands) > 5


@pytest.fixture(scope="module")
def server(server_url: str) -> str:
    """host:port of a real server process."""
    return server_url.removeprefix("http://")


def test_the_readmes_python_runs(server: str, tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(example.strip().splitlines()) <= 10
    sample = ROOT / "app/web/sample.jpg"
    script = example.replace("localhost:8000", server).replace("app/web/sample.jpg", str(sample))
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], cwd=tmp_path, check=True, timeout=60)
    figure, photo = np.array(Image.open(tmp_path / "figure-6.png")), np.array(Image.open(sample))
    height, width = photo.shape[:2]
    assert figure.shape == (height, 3 * width, 3)
    shown, once, twice = (figure[:, index * width : (index + 1) * width].astype(int) for index in range(3))
    assert np.array_equal(shown, photo)
    off_cross = np.ones((height, width), dtype=bool)
    off_cross[280:320] = off_cross[:, 280:320] = False
    assert (once - twice)[~off_cross].max() > 100
    assert (twice - once)[off_cross].max() > 100, "what was dark after one pass, off the cross, is lit after two"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_readmes_examples_run(server: str, tmp_path: Path) -> None:
    examples = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL))
    assert examples.count("curl -sSf") >= 10
    # They write into the folder they run in, which must not be the clone.
    script = examples.replace("localhost:8000", server).replace(".venv/bin/python", sys.executable)
    script = script.replace("app/web/sample.jpg", str(ROOT / "app/web/sample.jpg"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=tmp_path, env=environment, check=True, timeout=100)
    written = {path.name: path.read_bytes()[:4] for path in tmp_path.iterdir() if path.is_file()}
    for name in ("overlay.png", "mask.png", "palette.png", "looked-at.png"):
        assert written[name] == b"\x89PNG"
    assert written["overlay.webp"] == b"RIFF"
    assert written["weights.npy"] == b"\x93NUM"
