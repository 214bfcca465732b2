"""The arithmetic of the serving benchmark: what is drawn, counted, chosen and merged; no server is started."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.imaging import decode, encode_ids
from benchmarks.machine import commit
from benchmarks.peers import processes
from benchmarks.peers.bench import Bench, Options, choose, rotated, tuning_of
from benchmarks.peers.catalog import OURS, environment, ours, peers, reduced
from benchmarks.peers.figures import (
    NO_REPLY,
    OK,
    Record,
    closed_figures,
    open_figures,
    over_rounds,
    percentile,
    poisson,
    return_figures,
    slope,
)
from benchmarks.peers.images import Bodies, differing_pixels, tiny
from benchmarks.peers.pipeline import Emulated, by_shape
from benchmarks.peers.plan import Plan, form
from benchmarks.peers.processes import ServerFailed, wait_until_free
from benchmarks.peers.report import tables
from benchmarks.peers.tuning import Tuning
from benchmarks.serving import RESULTS, parse

PEERS = {peer.name: peer for peer in peers(Path("python"))}


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1), (0.5, 50), (0.95, 95), (0.99, 99), (1.0, 100)])
def test_a_percentile_is_one_of_the_values(share: float, expected: float) -> None:
    assert percentile(reversed(range(1, 101)), share) == expected


def test_percentiles_of_few_and_of_none() -> None:
    assert [percentile([3.0, 1.0, 2.0], share) for share in (0.5, 0.95)] == [2.0, 3.0]
    assert math.isnan(percentile([], 0.5))


def test_slope() -> None:
    assert slope([(0.0, 5.0), (1.0, 7.0), (2.0, 9.0)]) == pytest.approx(2.0)
    assert slope([(0.0, 1.0), (1.0, 3.0), (2.0, 1.0)]) == pytest.approx(0.0)


def test_poisson_clients_come_at_random_at_the_rate_given() -> None:
    times = list(poisson(50.0, 200.0, seed=1))
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert times == list(poisson(50.0, 200.0, seed=1)) != list(poisson(50.0, 200.0, seed=2))
    assert 0 < times[0] < times[-1] < 200
    assert len(times) == pytest.approx(50 * 200, rel=0.03)
    # Of exponential gaps the deviation is the mean: regular clients would have none.
    assert np.std(gaps) == pytest.approx(np.mean(gaps), rel=0.05)


def test_a_closed_loop_counts_what_finished_inside_the_window() -> None:
    records = [
        Record(-1.0, 0.5, OK, right=True),  # in the warm-up
        Record(-1.0, 1.5, OK, right=True),
        Record(1.0, 1.0, OK, right=False),
        Record(2.0, 1.0, 503, right=False),
        Record(3.0, 2.0, OK, right=True),  # too late
    ]
    figures = closed_figures(records, seconds=4.0)
    assert figures["rate"] == 0.25  # a wrong mask is no answer
    assert (figures["failed"], figures["wrong"]) == (1, 1)
    assert (figures["p50"], figures["p99"]) == (1500, 1500)


def test_an_open_loop_counts_what_was_scheduled_inside_the_window() -> None:
    records = [
        Record(-0.1, 0.1, OK, right=True),
        Record(0.0, 0.4, OK, right=True),
        Record(1.0, 0.6, OK, right=True),  # after its deadline
        Record(1.5, 0.01, 429, right=False),
        Record(1.6, 0.5, 504, right=False),
        Record(1.9, 5.0, NO_REPLY, right=False),
        Record(2.0, 0.1, OK, right=True),
    ]
    figures = open_figures(records, seconds=2.0, deadline=0.5, capacity=2.5)
    assert figures["offered"] == 1.0
    assert figures["goodput"] == pytest.approx(1 / 5)
    assert (figures["refused"], figures["late"]) == pytest.approx((0.2, 0.4))
    assert figures["unanswered"] == 1
    assert figures["refused_p50"] == pytest.approx(10)
    assert figures["p99"] == pytest.approx(600)
    figures = open_figures([*records, Record(1.7, 0.1, OK, right=False)], seconds=2.0, deadline=0.5, capacity=2.5)
    assert figures["goodput"] == pytest.approx(1 / 5)  # a wrong mask in time is no answer
    assert (figures["wrong"], figures["late"]) == (1, pytest.approx(2 / 6))


def test_promises_against_what_became_of_them() -> None:
    records = [
        Record(0.0, 0.1, OK, right=True),
        Record(0.0, 2.0, OK, right=True, promise=2.0, waited=2.2, attempts=2),
        Record(0.0, 2.0, OK, right=True, promise=4.0, waited=2.0, attempts=5),
        Record(0.0, 9.0, 504, right=False, promise=1.0, attempts=3),
    ]
    figures = return_figures(records)
    assert (figures["refused"], figures["taken"], figures["late"]) == pytest.approx((3 / 4, 2 / 3, 1 / 3))
    assert (figures["error_p50"], figures["error_p90"]) == pytest.approx((0.1, 0.5))
    assert (figures["attempts_p50"], figures["attempts_max"]) == (3, 5)


def new_bench(folder: Path, **changes: Any) -> Bench:
    known = {"python": "python", "servers": (OURS,), "rounds": 1, "seconds": 5.0, "warmup": 1.0}
    options = {**known, "tune": "never", "soak": 0.0, "output": folder / "serving.json", **changes}
    return Bench(Options(**options), folder)


def test_a_later_run_replaces_all_rounds_of_its_cases_and_no_others(tmp_path: Path) -> None:
    one, other = ("real", "real", "1 clients"), ("real", "real", "4 clients")
    before = new_bench(tmp_path)
    for case, turn in ((one, 0), (one, 1), (other, 0)):
        before.note(*case, (OURS, turn), {"rate": 1.0})
    later = new_bench(tmp_path, seconds=20.0)
    for turn in (0, 1, 2):
        later.note(*one, (OURS, turn), {"rate": 2.0 + turn})
    new_bench(tmp_path).note(*one, ("litserve", 0), {"rate": 9.0})
    rows = json.loads((tmp_path / "serving.json").read_text())["rows"]
    assert [(row["case"], row["server"], row["round"], row["rate"], row["seconds"]) for row in rows] == [
        ("4 clients", OURS, 0, 1.0, 5.0),
        *(("1 clients", OURS, turn, 2.0 + turn, 20.0) for turn in (0, 1, 2)),
        ("1 clients", "litserve", 0, 9.0, 5.0),
    ]


def test_a_row_says_what_it_was_measured_with(tmp_path: Path) -> None:
    bench = new_bench(tmp_path)
    for server in (PEERS["litserve"], ours("real")):
        bench.serving(server, Tuning("real"), Bodies("", [], []))  # not begun: its tuning is chosen
    for name in ("litserve", OURS):
        bench.note("real", "real", "1 clients", (name, 0), {"rate": 1.0, "p50": math.nan})
    saved = json.loads((tmp_path / "serving.json").read_text())
    peer, own = saved["rows"]
    assert peer["tuning"] == str(PEERS["litserve"].grid(Tuning("real"))[0])
    assert "tuning" not in own
    assert peer["p50"] is None
    assert saved["machines"].keys() == {peer["commit"]} == {commit()}


def test_every_published_row_says_at_which_commit_it_was_measured_and_for_how_long() -> None:
    saved = json.loads(RESULTS.read_text())
    assert all(row["seconds"] > 0 for row in saved["rows"])
    assert {row["commit"] for row in saved["rows"]} == saved["machines"].keys()


@pytest.mark.parametrize("option", [("--only", "real,nul"), ("--servers", "our")])
def test_a_section_or_server_that_is_not_there_is_refused(
    option: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(["--peers-python", "python", *option])
    assert f"{option[0]} has no {option[1].split(',')[-1]}" in capsys.readouterr().err


def test_median_and_spread_over_rounds() -> None:
    rows = [{"rate": rate} for rate in (3.0, 1.0, 8.0, None, math.nan)]
    assert over_rounds(rows, "rate") == (3.0, 1.0, 8.0)
    assert math.isnan(over_rounds(rows, "p50")[0])


def test_tables_have_a_line_a_server() -> None:
    row = {"section": "null", "workload": "null", "case": "1 clients", "round": 0, "rate": 10.0, "p50": None}
    row |= {"commit": "c0ffee", "seconds": 5.0}
    rows = [{**row, "server": "b"}, {**row, "server": "a"}, {**row, "server": "a", "round": 1, "rate": 30.0}]
    rows[0]["commit"] = "facade"
    _, title, head, *lines = tables(rows).splitlines()
    assert title == "null, 1 clients"
    assert head.split()[:2] == ["req/s", "p50"]
    assert [line.split()[:3] for line in lines] == [["b", "10.0", "-"], ["a", "20.0", "(10.0-30.0)"]]
    assert [line.split()[-3:] for line in lines] == [["facade,", "5", "s"], ["c0ffee,", "5", "s"]]


def test_peers_are_tried_with_the_same_grid_as_far_as_they_have_the_knobs() -> None:
    grids = {name: peer.grid(Tuning("real")) for name, peer in PEERS.items()}
    assert grids["litserve"] == grids["ray"]
    assert {(tuning.max_batch, tuning.wait) for tuning in grids["ray"]} == {(1, 0.0), (8, 0.0), (8, 0.005)}
    assert {(tuning.max_batch, tuning.wait) for tuning in grids["bentoml"]} == {(1, 0.0), (8, 0.0)}
    assert {tuning.max_batch for tuning in grids["fastapi-lock"]} == {1}
    for name, grid in grids.items():
        assert len(set(grid)) == len(grid), name
        assert {(2, 1), (1, 2), (2, 2)} <= {(tuning.threads, tuning.workers) for tuning in grid}


def test_an_emulated_pass_has_no_threads_to_try() -> None:
    grid = PEERS["litserve"].grid(Tuning("emulated"))
    assert {tuning.threads for tuning in grid} == {1}
    assert {tuning.workers for tuning in grid} == {1, 2}
    assert grid[0].max_batch == 8


def test_the_fastest_tuning_is_chosen() -> None:
    slow, fast = Tuning(workers=1), Tuning(workers=2)
    assert choose([(slow, 1.0), (fast, 2.0)]) == fast
    assert choose([(slow, 2.0), (fast, 2.0)]) == slow
    with pytest.raises(ServerFailed):
        choose([(slow, 0.0), (fast, 0.0)])


def test_a_tuning_survives_the_environment_and_json() -> None:
    tuning = Tuning("emulated", max_batch=8, wait=0.005, threads=2, workers=2, pass_cost=(0.02, 0.0025))
    assert Tuning.of(tuning.environment()) == tuning
    assert tuning.environment()["OMP_NUM_THREADS"] == "2"
    assert tuning_of(json.loads(json.dumps(asdict(tuning)))) == tuning


def test_loops_and_peers_wait_at_operators_as_ours_does() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP", "OMP"))}
    script = "import os, app.__main__; print(os.environ['GOMP_SPINCOUNT'])"
    ours = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert Tuning().environment()["GOMP_SPINCOUNT"] == ours.stdout.strip()


def test_ours_is_served_as_it_comes_and_as_exactly_as_the_peers() -> None:
    exact, own = (environment(server, Tuning("real", threads=2), 1234, Path()) for server in (ours("real"), reduced()))
    assert set(own) == {"SEGLENS_PORT", "SEGLENS_LOG_LEVEL"}
    assert exact == {**own, "SEGLENS_PRECISION": "float32"}
    assert all(server.is_ours for server in (ours("real"), reduced()))
    assert not any(server.is_ours for server in peers(Path()))


def test_a_plan_survives_json() -> None:
    plan = Plan(url="u", bodies=["a"], expected=["b"], headers={"X": "y"}, rate=2.5, comes_back=True)
    assert Plan.from_json(plan.to_json()) == plan
    assert plan != replace(plan, seed=1)


def test_a_form_holds_the_body_as_it_is() -> None:
    assert b"\r\n\r\n\x00\r\n\xff\r\n--" in form(b"\x00\r\n\xff", "image")


def test_rounds_start_each_with_another() -> None:
    assert [rotated("abc", turn) for turn in range(4)] == [list("abc"), list("bca"), list("cab"), list("abc")]
    assert rotated("", 1) == []  # a section without one of the servers that were asked for


def test_a_mixed_batch_takes_a_pass_for_each_shape() -> None:
    passes = []

    def run(images: list[str]) -> list[str]:
        passes.append(len(images))
        return [image.upper() for image in images]

    assert by_shape(["a", "bb", "c", "dd", "e"], len, run) == ["A", "BB", "C", "DD", "E"]
    assert sorted(passes) == [2, 3]


def test_emulated_masks_have_their_images_sizes() -> None:
    images = [np.zeros((*size, 3), np.uint8) for size in ((8, 16), (8, 8), (8, 16))]
    masks = Emulated((0.0, 0.0)).predict(images)
    assert [mask.shape for mask in masks] == [(8, 16), (8, 8), (8, 16)]


def test_what_must_come_back_is_what_the_plain_loop_makes_of_each_image(tmp_path: Path) -> None:
    bodies = tiny(tmp_path, 3, Emulated((0.0, 0.0)))
    images, masks = ([Path(name).read_bytes() for name in names] for names in (bodies.images, bodies.masks))
    assert [decode(image, 1 << 20).shape for image in images] == [(8, 8, 3), (8, 16, 3), (16, 8, 3)]
    assert [decode(mask, 1 << 20).shape for mask in masks] == [(8, 8, 3), (8, 16, 3), (16, 8, 3)]
    other = np.zeros((8, 8), np.uint8)
    other[2, :3] = 1
    assert differing_pixels(masks[0], masks[0]) == 0
    assert differing_pixels(masks[0], encode_ids(other)) == 3
    assert differing_pixels(masks[0], masks[1]) == 64


def test_a_server_waits_for_the_port_of_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "START_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as before:
        port = before.getsockname()[1]
        with pytest.raises(ServerFailed, match=f"port {port} is still taken"):
            wait_until_free(port)
    wait_until_free(port)


def test_a_server_that_ends_at_once_says_so(tmp_path: Path) -> None:
    def refused() -> None:
        raise ConnectionRefusedError

    ends = "print('no such module'); raise SystemExit(3)"
    server = processes.Processes([sys.executable, "-c", ends], {}, tmp_path / "log")
    with pytest.raises(ServerFailed, match="ended with 3\nno such module"):
        server.wait_until(refused)
    server.stop()
