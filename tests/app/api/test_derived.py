"""What is made of a result is made once, and the least recently used goes first."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from app.api.derived import Derived

PATIENCE = 60.0  # seconds


def make() -> NDArray[np.float64]:
    return np.zeros(10)


def test_a_value_is_made_once() -> None:
    derived = Derived(1 << 30)
    assert not derived.has("a", "one")
    first = derived.get("a", "one", make)
    assert derived.has("a", "one")
    assert derived.get("a", "one", make) is first
    assert derived.get("b", "one", make) is not first
    assert derived.get("a", ("one", 2), make) is not first
    assert derived.nbytes == 3 * first.nbytes


def test_the_least_recently_used_goes() -> None:
    derived = Derived(2 * make().nbytes)
    first, second = derived.get("a", 1, make), derived.get("a", 2, make)
    assert derived.get("a", 1, make) is first
    derived.get("b", 1, make)
    assert derived.nbytes == derived.max_bytes
    assert derived.get("a", 1, make) is first
    assert derived.get("a", 2, make) is not second


def test_one_is_kept_however_large() -> None:
    derived = Derived(1)
    assert derived.get("a", 1, make) is derived.get("a", 1, make)


def test_what_is_slow_holds_up_only_those_who_want_it() -> None:
    begun, may_end, made = threading.Event(), threading.Event(), []

    def slow() -> NDArray[np.float64]:
        made.append(1)
        begun.set()
        assert may_end.wait(PATIENCE)
        return make()

    derived = Derived(1 << 30)
    with ThreadPoolExecutor(3) as threads:
        first = threads.submit(derived.get, "a", "slow", slow)
        assert begun.wait(PATIENCE)
        second = threads.submit(derived.get, "a", "slow", slow)
        threads.submit(derived.get, "a", "other", make).result(PATIENCE)
        assert not derived.has("a", "slow")
        assert not first.done()
        assert not second.done()
        may_end.set()
        assert first.result(PATIENCE) is second.result(PATIENCE)
    assert made == [1]


def test_one_may_need_another() -> None:
    derived = Derived(1 << 30)
    outer = derived.get("a", "outer", lambda: derived.get("a", "inner", make) + 1)
    assert outer.sum() == outer.size
    assert derived.has("a", "inner")


def test_after_a_failure_nothing_is_left_and_the_next_tries_again() -> None:
    def fail() -> NDArray[np.float64]:
        raise MemoryError

    derived = Derived(1 << 30)
    with pytest.raises(MemoryError):
        derived.get("a", 1, fail)
    assert len(derived) == 0
    assert derived.get("a", 1, make).nbytes == derived.nbytes > 0


def test_those_of_a_result_are_forgotten() -> None:
    derived = Derived(1 << 30)
    kept = derived.get("b", 1, make)
    for name in (1, 2):
        derived.get("a", name, make)
    derived.forget("a")
    derived.forget("never there")
    assert derived.nbytes == kept.nbytes
    assert derived.get("b", 1, make) is kept
