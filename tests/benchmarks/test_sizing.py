"""What a run of some rows leaves of the others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import sizing


def test_a_row_keeps_what_it_was_measured_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizing, "RESULTS", tmp_path / "sizing.json")
    monkeypatch.setattr(sizing, "measure", lambda models: {"start": len(models)})
    for commit, name in (("a", "ann-mobilenetv2-camvid"), ("b", sizing.ALL)):
        monkeypatch.setattr(sizing, "commit", lambda commit=commit: commit)
        monkeypatch.setattr("sys.argv", ["sizing", name])
        sizing.main()
    saved = json.loads((tmp_path / "sizing.json").read_text())
    assert saved["mb"] == {"ann-mobilenetv2-camvid": {"start": 1}, sizing.ALL: {"start": 3}}
    assert {name: about["commit"] for name, about in saved["measured_on"].items()} == {
        "ann-mobilenetv2-camvid": "a",
        sizing.ALL: "b",
    }


def test_every_published_row_says_what_it_was_measured_on() -> None:
    saved = json.loads(sizing.RESULTS.read_text())
    assert saved["measured_on"].keys() == saved["mb"].keys()
