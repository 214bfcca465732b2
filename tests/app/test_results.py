from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import ResultExpired
from app.results import ResultStore, new_id


@dataclass(frozen=True)
class Item:
    nbytes: int


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> ResultStore[Item]:
    return ResultStore(100, 60.0, clock)


def kept(store: ResultStore[Item], ids: str) -> str:
    """Those of the ids that can be fetched."""
    found = ""
    for result_id in ids:
        try:
            store.get(result_id)
        except ResultExpired:
            continue
        found += result_id
    return found


def test_what_was_put_can_be_fetched_again_and_again(store: ResultStore[Item]) -> None:
    item = Item(10)
    assert store.put("a", item)
    assert store.get("a") is item
    assert store.get("a") is item
    assert (len(store), store.nbytes) == (1, 10)


def test_the_oldest_make_room(store: ResultStore[Item]) -> None:
    for result_id in "abcd":
        store.put(result_id, Item(30))
    assert kept(store, "abcd") == "bcd"
    store.put("e", Item(100))
    assert kept(store, "abcde") == "e"
    assert store.nbytes == 100


def test_an_item_larger_than_the_store_is_not_kept(store: ResultStore[Item]) -> None:
    store.put("a", Item(30))
    assert not store.put("b", Item(101))
    assert kept(store, "ab") == "a"
    assert store.nbytes == 30


def test_items_leave_at_their_age(store: ResultStore[Item], clock: Clock) -> None:
    store.put("a", Item(10))
    clock.now += 30
    store.put("b", Item(20))
    clock.now += 29.9
    assert kept(store, "ab") == "ab"
    clock.now += 0.1
    assert kept(store, "ab") == "b"
    assert (len(store), store.nbytes) == (1, 20)
    clock.now += 1000
    store.put("c", Item(30))
    assert (len(store), store.nbytes) == (1, 30)


LOOKS: dict[str, Callable[[ResultStore[Item]], object]] = {
    "drop_old": ResultStore.drop_old,
    "nbytes": lambda store: store.nbytes,
    "len": len,
    "in": lambda store: "b" in store,
    "put": lambda store: store.put("b", Item(10)),
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_what_is_old_is_let_go_by_whoever_looks(
    store: ResultStore[Item], clock: Clock, look: Callable[[ResultStore[Item]], object]
) -> None:
    item = Item(10)
    gone = weakref.ref(item)
    store.put("a", item)
    del item
    clock.now += 60
    assert gone() is not None
    look(store)
    assert gone() is None


def test_fetching_makes_no_younger(store: ResultStore[Item], clock: Clock) -> None:
    store.put("a", Item(10))
    clock.now += 59
    store.get("a")
    clock.now += 1
    assert kept(store, "a") == ""


def test_deleted_is_gone(store: ResultStore[Item]) -> None:
    store.put("a", Item(10))
    store.put("b", Item(20))
    store.delete("a")
    assert kept(store, "ab") == "b"
    assert store.nbytes == 20
    with pytest.raises(ResultExpired):
        store.delete("a")
    assert store.nbytes == 20


def test_an_unknown_id_is_named(store: ResultStore[Item]) -> None:
    with pytest.raises(ResultExpired, match=r"'nope'.* 60 s"):
        store.get("nope")


def test_an_id_put_twice_counts_once(store: ResultStore[Item]) -> None:
    store.put("a", Item(40))
    store.put("a", Item(50))
    assert (len(store), store.nbytes) == (1, 50)


def test_put_never_raises_when_the_oldest_expires_meanwhile() -> None:
    ticks: Iterator[int] = count()
    store: ResultStore[Item] = ResultStore(100, 3.5, lambda: float(next(ticks)))
    for result_id in "abcdef":
        assert store.put(result_id, Item(60))


@given(st.lists(st.tuples(st.integers(0, 120), st.integers(0, 30), st.booleans()), max_size=40))
def test_the_bounds_hold_whatever_comes(events: list[tuple[int, int, bool]]) -> None:
    clock = Clock()
    store: ResultStore[Item] = ResultStore(100, 60.0, clock)
    alive: list[tuple[float, str, int]] = []
    for number, (nbytes, pause, delete) in enumerate(events):
        clock.now += pause
        alive = [entry for entry in alive if clock.now - entry[0] < 60]
        if store.put(str(number), Item(nbytes)):
            alive.append((clock.now, str(number), nbytes))
        while sum(size for _, _, size in alive) > 100:
            alive.pop(0)
        if delete and alive:
            store.delete(alive.pop(len(alive) // 2)[1])
        assert len(store) == len(alive)
        assert store.nbytes == sum(size for _, _, size in alive) <= 100
        assert all(store.get(result_id).nbytes == size for _, result_id, size in alive)


def test_ids_are_long_and_distinct() -> None:
    ids = {new_id() for _ in range(1000)}
    assert len(ids) == 1000
    # 128 bits in base 64, fit for a URL's path as they are.
    assert all(re.fullmatch(r"[\w-]{22}", result_id, re.ASCII) for result_id in ids)


def test_whoever_keeps_something_beside_an_item_hears_that_it_goes(clock: Clock) -> None:
    gone: list[str] = []
    store: ResultStore[Item] = ResultStore(100, 60.0, clock, gone.append)
    store.put("replaced", Item(10))
    store.put("replaced", Item(20))
    store.put("deleted", Item(10))
    store.delete("deleted")
    store.put("pushed out", Item(70))
    clock.now += 30
    store.put("old", Item(40))
    assert gone == ["replaced", "deleted", "replaced", "pushed out"]
    assert "old" in store
    clock.now += 61
    assert "old" not in store
    assert gone[-1] == "old"
