from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from app.imaging import encode_rgb
from benchmarks import backends
from training.scenes import draw_street

NAME = backends.NAMES[0]


def one_and_half(segmentor: torch.nn.Module, *_: object) -> list[tuple[str, backends.Forward]]:
    def of_another_class(image: Tensor) -> Tensor:
        logits: Tensor = segmentor(image).logits
        logits[:, :, :, : logits.shape[3] // 2] = logits[:, :, :, : logits.shape[3] // 2].roll(1, 1)
        return logits

    return [("eager", backends.logits_of(segmentor)), ("half", of_another_class)]


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "backends.json"
    monkeypatch.setattr(backends, "RESULTS", path)
    monkeypatch.setattr(backends, "backends", one_and_half)
    return path


def test_each_table_keeps_what_it_was_measured_with(results: Path, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "street.png").write_bytes(encode_rgb(draw_street(0)[0]))
    try:
        backends.main(["--rounds", "1", "--threads", "1", "--models", NAME, "--images", str(folder)])
        before = json.loads(results.read_text())[NAME]["1"]
        backends.main(["--rounds", "2", "--threads", "2", "--models", NAME, "--images", str(folder)])
    finally:
        torch.set_num_threads(threads)
    tables = json.loads(results.read_text())[NAME]
    assert tables["1"] == before
    for threads, table in tables.items():
        assert table["measured_on"]["threads"] == table["measured_on"]["rounds"] == int(threads)
        assert table["measured_on"]["torch"] == torch.__version__
        assert table["measured_on"]["pictures"] == "1 in a folder"
        assert table["rows"]["eager"]["agreement"] == 1
        assert 0.4 < table["rows"]["half"]["agreement"] < 0.6
        assert all(row["cpu ms"] > 0 for row in table["rows"].values())


@pytest.mark.parametrize(("place", "threads"), [(0, "1"), (1, "2")])
def test_the_published_tables_are_those_of_the_results(place: int, threads: str) -> None:
    tables = json.loads(backends.RESULTS.read_text())
    text = (Path(backends.__file__).parent / "README.md").read_text()
    section = text.split("## Backends of the CPU\n", 1)[1].split("\n## ", 1)[0]
    _, *published_tables = section.split("| --- | --- | --- | --- | --- |\n")
    assert len(published_tables) == 2
    lines = published_tables[place].split("\n\n", 1)[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert tables.keys() == set(backends.NAMES)
    published = {row[0]: row[1:] for row in rows}
    found = [tables[name][threads]["rows"] for name in backends.NAMES]
    assert published.keys() == found[0].keys()
    for backend, cells in published.items():
        ratios = [table[backend]["cpu ms"] / table["eager"]["cpu ms"] for table in found]
        times = [f"{table[backend]['cpu ms']:.0f} ({ratio:.2f})" for table, ratio in zip(found, ratios, strict=True)]
        assert cells == [*times, ", ".join(f"{100 * table[backend]['agreement']:.3f}" for table in found)]
