"""Slow work is done one at a time, and by no more than may wait."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.api.slow_lane import SlowLane
from app.errors import NotReady, QueueFull

PATIENCE = 60.0  # seconds


@pytest.fixture
def lane() -> Iterator[SlowLane]:
    lane = SlowLane(ThreadPoolExecutor(1), "maps", 2)
    yield lane
    lane.close()


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    gate = threading.Event()
    yield gate
    gate.set()


@pytest.fixture
def held(gate: threading.Event) -> tuple[threading.Event, Callable[[], int]]:
    """An event that is set once the work beside it has begun, which waits at the gate."""
    begun = threading.Event()

    def work() -> int:
        begun.set()
        assert gate.wait(PATIENCE)
        return 1

    return begun, work


async def test_one_after_another(
    lane: SlowLane, gate: threading.Event, held: tuple[threading.Event, Callable[[], int]]
) -> None:
    begun, work = held
    first = asyncio.create_task(lane.run(work))
    assert await asyncio.to_thread(begun.wait, PATIENCE)
    second = asyncio.create_task(lane.run(lambda: 2))
    await asyncio.sleep(0.01)
    assert not second.done()
    gate.set()
    assert await asyncio.gather(first, second) == [1, 2]


async def test_too_many_are_refused(
    lane: SlowLane, gate: threading.Event, held: tuple[threading.Event, Callable[[], int]]
) -> None:
    begun, work = held
    there = [asyncio.create_task(lane.run(work)) for _ in range(2)]
    assert await asyncio.to_thread(begun.wait, PATIENCE)
    with pytest.raises(QueueFull, match=r"2 maps .* limit is 2") as refused:
        await lane.run(lambda: 3)
    assert (refused.value.limit, refused.value.actual, refused.value.retry_after) == (2, 2, 1.0)
    gate.set()
    await asyncio.gather(*there)
    assert await lane.run(lambda: 3) == 3


async def test_the_refused_are_told_how_long_the_last_one_took(
    lane: SlowLane, gate: threading.Event, held: tuple[threading.Event, Callable[[], int]]
) -> None:
    begun, work = held
    assert await lane.run(lambda: 3) == 3
    there = [asyncio.create_task(lane.run(work)) for _ in range(2)]
    assert await asyncio.to_thread(begun.wait, PATIENCE)
    with pytest.raises(QueueFull) as refused:
        await lane.run(lambda: 3)
    assert 0 < (refused.value.retry_after or 0.0) < 1.0, "a second is only a guess, before the first"
    gate.set()
    await asyncio.gather(*there)


async def test_who_leaves_gives_the_turn_up(
    lane: SlowLane, gate: threading.Event, held: tuple[threading.Event, Callable[[], int]]
) -> None:
    begun, work = held
    first = asyncio.create_task(lane.run(work))
    assert await asyncio.to_thread(begun.wait, PATIENCE)
    done: list[int] = []
    second = asyncio.create_task(lane.run(lambda: done.append(2)))
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    gate.set()
    assert await first == 1
    assert await lane.run(lambda: 3) == 3
    assert done == []


async def test_what_fails_fails_for_its_own_caller(lane: SlowLane) -> None:
    def fail() -> int:
        raise MemoryError

    with pytest.raises(MemoryError):
        await lane.run(fail)
    assert await lane.run(lambda: 3) == 3


async def test_at_the_end_those_who_are_there_finish_and_no_one_else_comes(
    lane: SlowLane, gate: threading.Event, held: tuple[threading.Event, Callable[[], int]]
) -> None:
    begun, work = held
    first = asyncio.create_task(lane.run(work))
    second = asyncio.create_task(lane.run(lambda: 2))
    assert await asyncio.to_thread(begun.wait, PATIENCE)
    stopping = asyncio.create_task(lane.stop(PATIENCE))
    await asyncio.sleep(0)
    with pytest.raises(NotReady):
        await lane.run(lambda: 3)
    gate.set()
    await stopping
    assert await asyncio.gather(first, second) == [1, 2]


async def test_at_the_end_those_for_whom_it_is_too_late_are_told(
    lane: SlowLane, gate: threading.Event, held: tuple[threading.Event, Callable[[], int]]
) -> None:
    begun, work = held
    there = [asyncio.create_task(lane.run(work)) for _ in range(2)]
    assert await asyncio.to_thread(begun.wait, PATIENCE)
    await lane.stop(0.01)
    assert [type(end) for end in await asyncio.gather(*there, return_exceptions=True)] == [NotReady, NotReady]


async def test_who_leaves_at_the_end_has_left(lane: SlowLane, held: tuple[threading.Event, Callable[[], int]]) -> None:
    begun, work = held
    there = asyncio.create_task(lane.run(work))
    assert await asyncio.to_thread(begun.wait, PATIENCE)
    stopping = asyncio.create_task(lane.stop(PATIENCE))
    await asyncio.sleep(0)
    there.cancel()
    with pytest.raises(asyncio.CancelledError):
        await there
    await stopping


async def test_to_close_it_waits_for_nobody_at_work(
    lane: SlowLane, gate: threading.Event, held: tuple[threading.Event, Callable[[], int]]
) -> None:
    begun, work = held
    there = asyncio.create_task(lane.run(work))
    assert await asyncio.to_thread(begun.wait, PATIENCE)
    lane.close()
    gate.set()
    assert await there == 1, "it lost no patience"
