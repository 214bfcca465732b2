"""Who computes on how many cores, on which thread."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from app.engine.cores import Cores, available, compute_on


def where() -> tuple[int, str]:
    torch.ones(100_000).add_(1)  # torch may set the thread anew when it first computes
    return torch.get_num_threads(), threading.current_thread().name


@pytest.fixture
def caller() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "caller", initializer=compute_on, initargs=(1,))


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.engine.cores.available", lambda: 4)


@pytest.mark.parametrize(
    ("threads", "slots", "share", "whole"), [(4, 2, 2, 1.0), (2, 2, 1, 1.0), (1, 2, 1, 0.5), (3, 1, 3, 1.0)]
)
def test_a_pass_alone_has_all_cores_and_its_own_thread(
    threads: int, slots: int, share: int, whole: float, caller: ThreadPoolExecutor
) -> None:
    cores = Cores(threads, slots, lambda: None)
    for _ in range(2):
        assert caller.submit(cores.run, where).result() == ((threads, "alone_0"), whole)
    assert caller.submit(cores.run, where, beside=True).result() == ((share, "caller_0"), 1 / slots)


@pytest.mark.parametrize(("count", "whole"), [(1, 1.0), (2, 0.5)])
def test_of_a_single_core_a_pass_alone_has_the_whole(monkeypatch: pytest.MonkeyPatch, count: int, whole: float) -> None:
    monkeypatch.setattr("app.engine.cores.available", lambda: count)
    cores = Cores(1, 2, lambda: None)
    assert cores.run(lambda: None) == (None, whole)
    assert cores.run(lambda: None, beside=True) == (None, 0.5)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores are chosen on Linux alone")
def test_cores_are_those_that_the_process_may_compute_on() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert available() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert available() == len(before)


def test_all_cores_count_where_none_are_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert available() == os.cpu_count()


def test_torch_s_choice_without_one() -> None:
    assert Cores(0, 2, lambda: None).all == torch.get_num_threads()


def test_passes_side_by_side_have_their_share_until_one_is_alone_again(
    caller: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.engine.cores.LULL", 60.0)
    cores, started, go = Cores(4, 2, lambda: None), threading.Event(), threading.Event()

    def first() -> tuple[int, str]:
        started.set()
        assert go.wait(60)
        return where()

    other = ThreadPoolExecutor(1, "other")
    alone = other.submit(cores.run, first)
    assert started.wait(60)
    assert caller.submit(cores.run, where).result() == ((2, "caller_0"), 0.5)
    go.set()
    assert alone.result() == ((4, "alone_0"), 1.0), "whoever asked for less meanwhile"
    assert caller.submit(cores.run, where).result() == ((2, "caller_0"), 0.5), "another may come any moment"
    monkeypatch.setattr("app.engine.cores.LULL", 0.0)
    assert caller.submit(cores.run, where).result() == ((4, "alone_0"), 1.0)


def test_what_fails_makes_room_too() -> None:
    cores = Cores(4, 2, lambda: None)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            cores.run(lambda: 1 / 0)
        assert cores.run(where) == ((4, "alone_0"), 1.0)


def test_the_thread_is_entered_first() -> None:
    entered: list[str] = []
    cores = Cores(2, 1, lambda: entered.append(threading.current_thread().name))
    for _ in range(2):
        cores.run(where)
    assert entered == ["alone_0"]


def test_cores_are_set_for_the_calling_thread(caller: ThreadPoolExecutor) -> None:
    before = torch.get_num_threads()
    other = ThreadPoolExecutor(1)
    assert other.submit(lambda: (compute_on(before + 1), where())[1][0]).result() == before + 1
    assert caller.submit(lambda: where()[0]).result() == 1
    assert torch.get_num_threads() == before
