from __future__ import annotations

import re
import time

import pytest

from app.timings import Timings, total

TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # RFC 9110


def test_a_stage_takes_the_time_it_takes() -> None:
    timings = Timings()
    started = time.perf_counter()
    with timings.stage("outer"), timings.stage("inner"):
        sum(range(10_000))
    elapsed = time.perf_counter() - started
    assert 0 < timings.stages["inner"] <= timings.stages["outer"] <= elapsed
    assert started <= timings.began["outer"] <= timings.began["inner"] <= started + elapsed


def test_a_stage_that_raises_is_noted_too() -> None:
    timings = Timings()
    with pytest.raises(ZeroDivisionError), timings.stage("decode"):
        _ = 1 / 0
    assert timings.stages["decode"] > 0


def test_a_timed_function_is_a_stage() -> None:
    timings = Timings()
    divide = timings.timed("decode", divmod)
    assert timings.stages == {}, "not before it runs"
    assert divide(7, 2) == (3, 1)
    assert timings.stages["decode"] > 0
    with pytest.raises(ZeroDivisionError):
        timings.timed("encode", divmod)(1, 0)
    assert list(timings.stages) == ["decode", "encode"]


def test_milliseconds_of_stages_and_modules() -> None:
    timings = Timings({"read": 0.0012345678, "forward": 1.5}, {"stem": 0.25})
    assert timings.milliseconds() == {"read": 1.235, "forward": 1500.0, "module.stem": 250.0}


def test_server_timing_is_the_header_of_the_standard() -> None:
    timings = Timings({"read": 0.001, "forward": 0.02}, {"cca_1": 0.005})
    assert timings.server_timing() == "read;dur=1.0, forward;dur=20.0, module.cca_1;dur=5.0"
    assert re.fullmatch(rf"{TOKEN};dur=[\d.]+(, {TOKEN};dur=[\d.]+)*", timings.server_timing())
    assert Timings().server_timing() == ""


def test_records_share_nothing() -> None:
    first, second = Timings(), Timings()
    first.stages["read"] = 1.0
    first.modules["stem"] = 1.0
    assert second == Timings({}, {})


def test_several_records_add_up_in_a_new_one() -> None:
    first, second = Timings({"forward": 1.0}, {"stem": 0.5}), Timings({"forward": 2.0, "queue": 3.0}, {"head": 0.25})
    assert total([first, second]) == Timings({"forward": 3.0, "queue": 3.0}, {"stem": 0.5, "head": 0.25})
    assert first == Timings({"forward": 1.0}, {"stem": 0.5})
