"""Traffic small enough for what becomes of it to be counted by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.engine.scheduler import Policy
from benchmarks.replay import Callers, Device, Outcome, Simulation, Visitor, main, percentile, table
from benchmarks.traffic import Request, read, write

POLICY = Policy(max_batch_size=2, max_batch_pixels=1 << 30, max_queue_size=4, max_queue_bytes=1 << 30)
DEVICE = Device(fixed=1.0, each=0.5)


def requests(*moments: float, width: int = 10, deadline: float = 100.0, decode: float = 0.0) -> list[Request]:
    return [Request(moment, "a", 10, width, deadline, 100, decode) for moment in moments]


def test_images_are_batched_while_the_device_is_busy() -> None:
    outcome = Simulation(POLICY, DEVICE).run(requests(0.0, 0.1, 0.2, 0.3))
    assert outcome.sizes == [1, 2, 1]
    assert [visitor.done for visitor in outcome.visitors] == [pytest.approx(end) for end in (1.5, 3.5, 3.5, 5.0)]
    figures = outcome.figures()
    assert (figures["requests"], figures["images done"], figures["refused"], figures["expired"]) == (4, 4, 0, 0)
    assert figures["device busy"] == pytest.approx(1.0)
    assert figures["images a second"] == pytest.approx(4 / 5)
    assert figures["images a batch"] == pytest.approx(4 / 3)
    assert figures["wait p99"] == pytest.approx(4.7)


def test_an_image_waits_for_its_decoder() -> None:
    outcome = Simulation(POLICY, DEVICE).run(requests(0.0, decode=2.0))
    assert outcome.visitors[0].done == pytest.approx(3.5)
    assert outcome.busy == pytest.approx(1.5)


def test_slots_run_side_by_side() -> None:
    outcome = Simulation(Policy(2, 1 << 30, 4, 1 << 30, slots=2), DEVICE).run(requests(0.0, 0.1))
    assert [visitor.done for visitor in outcome.visitors] == [pytest.approx(1.5), pytest.approx(1.6)]
    assert outcome.figures()["device busy"] == pytest.approx(3.0 / 1.6 / 2)


def test_what_is_late_expires_and_is_not_run() -> None:
    outcome = Simulation(POLICY, DEVICE).run(requests(0.0, 0.1, 0.2, deadline=1.0))
    assert [visitor.expired for visitor in outcome.visitors] == [pytest.approx(end) for end in (1.0, 1.1, 1.2)]
    assert outcome.sizes == [1], "it was on the device already"
    assert outcome.busy == pytest.approx(1.5), "a batch that nobody waits for any more takes no time"
    assert [visitor.done for visitor in outcome.visitors] == [None] * 3


def test_a_full_queue_turns_callers_away_unless_they_come_back() -> None:
    moments = [0.0, *(0.1 + 0.01 * number for number in range(8))]
    outcome = Simulation(POLICY, DEVICE).run(requests(*moments))
    assert [len(visitor.refusals) for visitor in outcome.visitors] == [0] * 7 + [1, 1]
    assert outcome.figures()["refused"] == 2
    patient = Simulation(POLICY, DEVICE, Callers(returning=1.0)).run(requests(*moments))
    assert patient.figures()["refused"] == 0
    assert patient.figures()["images done"] == 9
    assert all((visitor.ratio or 0.0) >= 1.0 for visitor in patient.visitors if visitor.refusals)


def test_places_are_taken_at_the_door_and_more_bytes_of_them_once_decoded() -> None:
    policy = Policy(max_batch_size=4, max_batch_pixels=1 << 30, max_queue_size=4, max_queue_bytes=900)
    outcome = Simulation(policy, DEVICE).run(requests(*[0.0] * 5, decode=1.0))
    assert [[moment for moment, _ in visitor.refusals] for visitor in outcome.visitors] == [[], [], [], [1.0], [0.0]]
    assert outcome.figures()["refused"] == 2


@pytest.mark.parametrize(("whole_seconds", "moments"), [(False, 1.03), (True, 2.0)])
def test_who_reads_the_header_comes_at_a_whole_second(whole_seconds: bool, moments: float) -> None:
    simulation = Simulation(POLICY, DEVICE, Callers(1.0, whole_seconds))
    outcome = simulation.run(requests(*[0.0] * 8), until=1.0)
    last = outcome.visitors[-1]
    assert len(last.refusals) == 1
    told = last.refusals[0][1]
    assert told == pytest.approx(1.03, abs=0.01), "a second, as long as nothing is known"
    assert simulation.run([], until=moments - 0.01).visitors[-1].attempts == 1
    assert simulation.run([], until=moments + 0.02).visitors[-1].attempts == 2


def test_larger_images_cost_more() -> None:
    device = Device(fixed=1.0, each=0.5, pixels=100)
    outcome = Simulation(POLICY, device).run(requests(0.0, width=30))
    assert outcome.visitors[0].done == pytest.approx(1.0 + 0.5 * 3)


def test_a_stall_holds_one_batch_up() -> None:
    device = Device(fixed=1.0, each=0.5, stalls=((5.0, 10.0),))
    outcome = Simulation(POLICY, device).run(requests(0.0, 6.0, 30.0))
    assert [visitor.done for visitor in outcome.visitors] == [pytest.approx(end) for end in (1.5, 17.5, 31.5)]


def test_a_visitor_s_record_counts_all_that_it_came_for() -> None:
    (request,) = requests(0.0)
    refused = Visitor(request, "a", returns=True, refusals=[(1.0, 2.0), (3.5, 1.0)])
    assert (refused.attempts, refused.ratio) == (2, None)
    refused.taken = 5.0
    assert (refused.attempts, refused.ratio) == (3, 2.0), "by what it was told first"
    assert Visitor(request, "b", returns=True, taken=0.0).ratio is None


def test_figures_are_of_those_who_were_answered() -> None:
    (request,) = requests(0.0)
    visitors = [Visitor(request, "a", returns=False, taken=1.0, done=1.0 + wait) for wait in range(100)]
    figures = Outcome(visitors, slots=1, seconds=100.0, ratios=[(1.0, 0.5), (2.0, 1.2), (3.0, 1.0)]).figures()
    assert [figures[f"wait {name}"] for name in ("p50", "p95", "p99")] == [50.0, 95.0, 99.0]
    assert figures["retry-after error"] == pytest.approx(0.2), "too early counts as too late does"


def test_where_nothing_is_done_there_is_nothing_to_divide_by() -> None:
    figures = Simulation(POLICY, DEVICE).run(requests(0.0, deadline=1.0, decode=2.0)).figures()
    assert [figures[name] for name in ("images a second", "images a batch", "device busy")] == [0.0, 0.0, 0.0]


def test_noise_is_the_same_each_time() -> None:
    runs = [Simulation(POLICY, Device(1.0, 0.5, noise=0.3)).run(requests(0.0, 0.1, 0.2)).busy for _ in range(2)]
    assert runs[0] == runs[1] != pytest.approx(3.5), "without noise"


def test_percentiles() -> None:
    assert percentile(reversed(range(100)), 0.95) == 95
    assert percentile([3.0, 1.0, 2.0], 1.0) == 3.0
    assert percentile([7.0], 0.99) == 7.0
    assert percentile([], 0.5) != percentile([], 0.5), "there is none"


def test_settings_that_are_the_same_everywhere_are_left_out() -> None:
    columns = [({"slots": "1", "cost": "x"}, {"done": 5.0}), ({"slots": "12", "cost": "x"}, {"done": 1234})]
    assert table(columns) == "slots      1    12\ndone   5.000  1234"


def test_a_log_without_a_trace_is_told_so(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("INFO app.engine.engine: ready: tiny on cpu\n")
    with pytest.raises(SystemExit, match="SEGLENS_LOG_LEVEL=debug"):
        main([str(log)])


def test_options_are_those_of_the_device_and_of_its_callers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "trace.jsonl"

    def figures(*options: str) -> list[str]:
        main([str(trace), "--cost", "0,1", *options])
        return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]

    write(trace, [*requests(0.0, width=10), *requests(9.0, width=30)])
    assert "wait p99 1.500" in figures("--noise", "0"), "b seconds at the mean size"
    assert "wait p99 1.500" not in figures("--noise", "0.5")
    write(trace, requests(*[0.0] * 8))
    full = "--noise", "0", "--max-queue-size", "4"
    assert "refused 4 0" in figures(*full, "--returning", "0", "1")
    assert figures(*full, "--returning", "1") != figures(*full, "--returning", "1", "--whole-seconds")


def test_policies_are_compared_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "trace.jsonl"
    main(["--poisson", "150", "--seconds", "3", "--sizes", "64x64", "64x32", "--write", str(trace)])
    alone = capsys.readouterr().out
    main([str(trace), "--max-batch-size", "1", "8", "--slots", "1", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["max_batch_size", "1", "1", "8", "8"]
    assert lines[1].split() == ["slots", "1", "2", "1", "2"]
    rows = {line[:20].strip(): line[20:].split() for line in lines[2:]}
    done = [int(value) for value in rows["images done"]]
    assert done[0] < done[1] < done[2] == done[3] == len(read(trace))
    assert f"images done {done[2]}".split() in [line.split() for line in alone.splitlines()]
