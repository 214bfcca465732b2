from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.traffic import Request, poisson, read, write
from tests.benchmarks.test_replay import requests


def test_a_log_is_read_as_it_is(tmp_path: Path) -> None:
    log = tmp_path / "log"
    line = '{"at": %s, "model": "a", "height": %s, "width": %s, "deadline": 3, "nbytes": 4, "decode": 0.5}'
    lines = ["starts", "now DEBUG trace " + line % (1, 10, 20), "now DEBUG trace " + line % (2, "null", "null")]
    log.write_text("\n".join(lines))
    assert read(log) == [Request(1, "a", 10, 20, 3, 4, 0.5), Request(2, "a", 10, 20, 3, 4, 0.5)]


def test_random_traffic_comes_at_its_rate_and_in_its_sizes() -> None:
    traffic = poisson(100, 50, [(10, 20), (30, 40)])
    assert len(traffic) == pytest.approx(5000, rel=0.05)
    assert all(0 < request.at < 50 for request in traffic)
    assert [(request.height, request.width) for request in traffic[:3]] == [(10, 20), (30, 40), (10, 20)]
    assert traffic == poisson(100, 50, [(10, 20), (30, 40)])


def test_a_trace_can_be_kept_and_read_again(tmp_path: Path) -> None:
    traffic = requests(0.0, 1.5, decode=0.1)
    write(tmp_path / "trace.jsonl", traffic)
    assert read(tmp_path / "trace.jsonl") == traffic


def test_what_decodes_at_once_need_not_say_so(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text('{"at": 1, "model": "a", "height": 10, "width": 20, "deadline": 3, "nbytes": 4}\n')
    assert read(path) == [Request(1, "a", 10, 20, 3, 4)]
