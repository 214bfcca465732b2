"""Who runs on which thread, and in what order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from app.engine.device import Partial, Ran
from app.engine.jobs import Batch, Job, Lane
from app.engine.staging import Image, Staged
from app.engine.threads import DeviceThreads, Finished, has_stalled
from app.engine.waiting import Waiting
from app.errors import InferenceFailed
from app.timings import Timings
from tests.fakes import FakeDevice

LANE = Lane("tiny", (1, 1), "tiny#1")
PATIENCE = 60.0  # seconds


class Track(FakeDevice):
    """Notes whose pass is on it, by which thread; each stays until it is let go."""

    def __init__(self, slots: int = 1, *, stages_ahead: bool = True) -> None:
        super().__init__(slots, stages_ahead=stages_ahead)
        self.on: dict[int, str] = {}
        self.most = 0  # at once
        self.may_leave: set[int] = set()
        self.changed = threading.Condition()

    def run(self, key: str, staged: Staged) -> Ran:
        ran = super().run(key, staged)
        value = int(staged.images[0].pixels[0, 0, 0])
        with self.changed:
            self.on[value] = threading.current_thread().name
            self.most = max(self.most, len(self.on))
            self.changed.notify_all()
            assert self.changed.wait_for(lambda: value in self.may_leave, PATIENCE)
            del self.on[value]
        return ran

    def let_go(self, *values: int) -> None:
        with self.changed:
            self.may_leave |= set(values)
            self.changed.notify_all()

    def has(self, *values: int) -> bool:
        """Whether just these are on it, be it in a moment."""
        with self.changed:
            return self.changed.wait_for(lambda: sorted(self.on) == list(values), PATIENCE)


@pytest.fixture
def new() -> Iterator[Callable[[Track], DeviceThreads]]:
    """`new(track)`: its threads, which end with the test."""
    made: list[tuple[Track, DeviceThreads]] = []

    def new(track: Track) -> DeviceThreads:
        made.append((track, DeviceThreads(track, track.slots)))
        return made[-1][1]

    yield new
    for track, threads in made:
        track.let_go(*range(100))
        threads.shutdown()


def batch(value: int, *, gone: Sequence[bool] = (False,)) -> Batch[Waiting]:
    """Of images of one value, one for each caller, some of whom are gone."""
    image = Image(torch.full((1, 1, 3), value, dtype=torch.uint8), (1, 1), wants_traces=False)
    jobs = []
    for is_gone in gone:
        future: Future[Any] = Future()
        if is_gone:
            future.cancel()
        payload = cast("Waiting", SimpleNamespace(future=future, images=(image,)))
        jobs.append(Job("tiny", "a", 1, 9.0, payload))
    return Batch(LANE, jobs, "idle", 0.0)


def test_batches_run_in_their_order_as_many_at_once_as_the_device_takes(
    new: Callable[[Track], DeviceThreads],
) -> None:
    track = Track(slots=2)
    threads = new(track)
    runs = [threads.run(batch(value)) for value in range(5)]
    assert track.has(0, 1)
    track.let_go(1)
    assert track.has(0, 2)
    track.let_go(2)
    assert track.has(0, 3)
    track.let_go(0, 3, 4)
    assert [run.result(PATIENCE).seconds > 0 for run in runs] == [True] * 5
    assert track.most == 2


def test_the_thread_that_has_ended_a_pass_begins_the_next(new: Callable[[Track], DeviceThreads]) -> None:
    track = Track(slots=2)
    threads = new(track)
    for value in range(4):
        threads.run(batch(value))
    assert track.has(0, 1)
    first, second = track.on[0], track.on[1]
    track.let_go(1)
    assert track.has(0, 2)
    assert track.on[2] == second
    track.let_go(0)
    assert track.has(2, 3)
    assert track.on[3] == first


def test_the_next_batch_is_staged_meanwhile(new: Callable[[Track], DeviceThreads]) -> None:
    track = Track()
    threads = new(track)
    for value in (1, 2):
        threads.run(batch(value))
    assert track.has(1)
    assert threads._stager is not None
    threads._stager.submit(lambda: None).result(PATIENCE)  # it has done what it was given before
    assert track.staged == [[1], [2]]
    assert track.batches == [[1]]


def test_where_a_batch_has_nowhere_to_go_its_own_thread_stages_it(
    new: Callable[[Track], DeviceThreads], monkeypatch: pytest.MonkeyPatch
) -> None:
    track, stagers = Track(stages_ahead=False), []
    stage = track.stage

    def noted(images: Sequence[Image]) -> Staged:
        stagers.append(threading.current_thread().name)
        return stage(images)

    monkeypatch.setattr(track, "stage", noted)
    threads = new(track)
    runs = [threads.run(batch(value)) for value in (1, 2)]
    assert track.has(1)
    assert track.staged == [[1]]
    assert stagers == [track.on[1]]
    track.let_go(1, 2)
    assert all(run.result(PATIENCE).outcomes for run in runs)
    assert track.staged == [[1], [2]]


def test_who_has_left_is_not_run(new: Callable[[Track], DeviceThreads]) -> None:
    track = Track()
    threads = new(track)
    some, none = batch(1, gone=(True, False)), batch(2, gone=(True,))
    track.let_go(1)
    finished = [threads.run(one).result(PATIENCE) for one in (some, none)]
    assert [run.jobs for run in finished] == [some.jobs[1:], []]
    assert track.batches == [[1]]


def test_what_fails_makes_way(new: Callable[[Track], DeviceThreads]) -> None:
    track = Track()
    threads = new(track)
    track.error = ZeroDivisionError()
    failed = threads.run(batch(1))
    with pytest.raises(ZeroDivisionError):
        failed.result(PATIENCE)
    track.error = None
    track.let_go(2)
    assert threads.run(batch(2)).result(PATIENCE).outcomes


@pytest.mark.parametrize("ahead", [True, False])
def test_what_cannot_be_staged_fails_alone(
    new: Callable[[Track], DeviceThreads], monkeypatch: pytest.MonkeyPatch, *, ahead: bool
) -> None:
    track = Track(stages_ahead=ahead)
    threads = new(track)
    with monkeypatch.context() as broken:
        broken.setattr(track, "stage", lambda images: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            threads.run(batch(1)).result(PATIENCE)
    track.let_go(2)
    assert threads.run(batch(2)).result(PATIENCE).outcomes


def test_an_unload_waits_for_no_load_and_a_batch_for_neither(new: Callable[[Track], DeviceThreads]) -> None:
    track = Track()
    threads, together = new(track), threading.Barrier(3)
    waits = [threads.call(together.wait, PATIENCE) for _ in range(2)]
    track.let_go(1)
    assert threads.run(batch(1)).result(PATIENCE).outcomes
    together.wait(PATIENCE)
    assert {wait.result(PATIENCE) for wait in waits} < {0, 1, 2}


def test_the_end_waits_for_nothing_that_is_staged(
    new: Callable[[Track], DeviceThreads], monkeypatch: pytest.MonkeyPatch
) -> None:
    track, begun, may_go_on = Track(), threading.Event(), threading.Event()
    stage = track.stage

    def held(images: Sequence[Image]) -> Staged:
        begun.set()
        assert may_go_on.wait(PATIENCE / 10)
        return stage(images)

    monkeypatch.setattr(track, "stage", held)
    threads = new(track)
    run = threads.run(batch(1))
    assert begun.wait(PATIENCE)
    threads.shutdown()
    may_go_on.set()
    track.let_go(1)
    assert run.result(PATIENCE).outcomes


@pytest.mark.parametrize(
    ("started", "now", "stalled"),
    [(None, 19.9, False), (None, 20.1, True), (15.0, 24.9, False), (15.0, 25.1, True)],
    ids=str,
)
def test_a_batch_may_take_as_long_after_as_long_a_wait(started: float | None, now: float, stalled: bool) -> None:
    one, fresh = batch(1), batch(2)
    one.started, fresh.formed = started, now
    assert has_stalled([fresh, one], now, 10.0) is stalled


@pytest.mark.parametrize("count", [1, 2, 3])
def test_there_is_an_outcome_for_each_of_the_callers(count: int) -> None:
    jobs, given = batch(1, gone=(False, False)).jobs, [Partial(Timings())] * count
    outcomes = Finished(jobs, Ran(given), 3.0).outcomes
    assert outcomes == given if count == 2 else [type(outcome) for outcome in outcomes] == [InferenceFailed] * 2


def test_of_the_device_a_batch_takes_its_share() -> None:
    assert Finished([], Ran([], share=0.5), 3.0).device_seconds == 1.5


@pytest.mark.parametrize("kind", ["stage", "run", "load"])
def test_each_thread_enters_the_device(new: Callable[[Track], DeviceThreads], kind: str) -> None:
    entered: list[str] = []
    track = Track()
    track.enter = lambda: entered.append(threading.current_thread().name)  # type: ignore[method-assign]
    threads = new(track)
    track.let_go(1)
    if kind == "load":
        threads.call(int).result(PATIENCE)
    else:
        threads.run(batch(1)).result(PATIENCE)
    assert any(name.startswith(kind) for name in entered)


def test_its_threads_end(new: Callable[[Track], DeviceThreads]) -> None:
    before, track = set(threading.enumerate()), Track()
    threads = new(track)
    track.let_go(1)
    threads.run(batch(1)).result(PATIENCE)
    threads.call(int).result(PATIENCE)
    own = set(threading.enumerate()) - before
    threads.shutdown()
    for thread in own:
        thread.join(PATIENCE / 10)
    assert [thread.name for thread in own if thread.is_alive()] == []


@pytest.mark.parametrize("ahead", [True, False])
def test_at_the_end_what_runs_is_finished_and_what_waits_is_not_begun(
    new: Callable[[Track], DeviceThreads], *, ahead: bool
) -> None:
    track = Track(stages_ahead=ahead)
    threads = new(track)
    runs: list[Future[Finished]] = [threads.run(batch(value)) for value in (1, 2)]
    assert track.has(1)
    threads.shutdown()
    track.let_go(1, 2)
    assert runs[0].result(PATIENCE).outcomes
    with pytest.raises(CancelledError):
        runs[1].result(PATIENCE)
    with pytest.raises(RuntimeError):
        threads.run(batch(3))
    assert track.batches == [[1]]
