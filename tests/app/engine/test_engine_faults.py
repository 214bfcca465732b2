"""Whatever breaks, everyone is answered: those who wait, those whose batch runs, those who come."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
import torch
from torch import Tensor

from app.engine.engine import Engine
from app.engine.limits import Limits
from app.engine.scheduler import Policy
from app.engine.staging import Staged
from app.engine.worker import Worker
from app.errors import DeviceError, ServiceError
from app.metrics import Metrics
from models import ModelSpec, Segmentor
from models.transforms import IMAGENET_MEAN, IMAGENET_STD
from tests.app.engine.callers import (
    LONG,
    Caller,
    ask,
    asked,
    images_total,
    picture,
    replies,
    sample,
    segmented,
    started,
)
from tests.fakes import FakeDevice, until

STALL = 0.2  # seconds
POISON = 255

Build = Callable[..., Engine]


@pytest.fixture
def device() -> FakeDevice:
    return FakeDevice()


@pytest.fixture
async def build(spec: ModelSpec, metrics: Metrics) -> AsyncIterator[Build]:
    """`build(device, slots=1, most=4, stall_timeout=LONG)`: an engine, not yet started."""
    engines: list[tuple[Engine, Any]] = []

    def build(device: Any, slots: int = 1, most: int = 4, stall_timeout: float = LONG) -> Engine:
        policy = Policy(most, 1 << 20, max_queue_size=100, max_queue_bytes=1 << 24, slots=slots)
        engines.append((Engine(device, [spec], policy, metrics, stall_timeout), device))
        return engines[-1][0]

    yield build
    for engine, device in engines:
        if isinstance(device, FakeDevice):
            device.gate.set()
        await engine.stop(10)


async def crowd(engine: Engine, device: FakeDevice) -> list[Caller]:
    """One image on the device, which is busy, a batch ahead of it, two that wait, and two not yet decoded."""
    device.shut()
    callers = await asked(engine, [1])
    await device.is_entered()
    callers += await asked(engine, [2, 3, 4, 5, 6, 7])
    await until(lambda: len(device.staged) == 2)
    callers += await asked(engine, [8, 9], decoded=asyncio.Event())
    assert engine.queue_size == 4
    return callers


# --- a device that breaks


def breaks(device: FakeDevice) -> None:
    device.error = DeviceError("cuda:0 has failed for good: an illegal memory access was encountered")


def breaks_unexpectedly(device: FakeDevice) -> None:
    device.error = RuntimeError("unexpected")


def ends_its_thread(device: FakeDevice) -> None:
    device.error = SystemExit(3)


def interrupts_its_thread(device: FakeDevice) -> None:
    device.error = KeyboardInterrupt()


@pytest.mark.parametrize("fault", [breaks, breaks_unexpectedly, ends_its_thread, interrupts_its_thread])
async def test_when_a_pass_breaks_the_device_everyone_is_answered(
    build: Build, device: FakeDevice, metrics: Metrics, fault: Callable[[FakeDevice], None]
) -> None:
    engine = build(device)
    failures = await started(engine)
    callers = await crowd(engine, device)
    fault(device)
    device.gate.set()
    await until(lambda: engine.state == "failed")
    callers += await asked(engine, [10])
    for caller in callers[7:9]:
        caller.cancel()  # their images are never decoded: only their clients can end that
    assert await replies(callers) == [*["InferenceFailed"] * 7, *["CancelledError"] * 2, "NotReady"]
    assert failures == ["failed"]
    assert (images_total(metrics, "error"), images_total(metrics, "rejected")) == (7, 1)
    assert engine.queue_size == 0
    await until(lambda: not engine.is_stuck)
    await asyncio.wait_for(engine.stop(LONG), 30)
    assert (engine.state, failures) == ("failed", ["failed"])
    assert all(batch in ([1], [2, 3, 4, 5]) for batch in device.batches), "the queue is not run"


async def test_who_was_being_decoded_when_the_device_broke_is_answered(build: Build, device: FakeDevice) -> None:
    engine, decoded = build(device), asyncio.Event()
    await started(engine)
    callers = await asked(engine, [1, 2], decoded=decoded)
    breaks(device)
    assert await replies([await ask(engine, 3)]) == ["InferenceFailed"]
    decoded.set()
    assert await replies(callers) == ["InferenceFailed"] * 2
    assert device.batches == [[3]]


async def test_a_device_that_breaks_while_a_batch_is_staged(
    build: Build, device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stage(images: object) -> Staged:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    engine = build(device)
    failures = await started(engine)
    monkeypatch.setattr(device, "stage", stage)
    assert await replies(await asked(engine, [1, 2])) == ["InferenceFailed"] * 2
    assert (engine.state, failures) == ("failed", ["failed"])


async def test_models_that_cannot_be_loaded_fail_the_engine(build: Build, device: FakeDevice) -> None:
    engine, device.error = build(device), ServiceError("no such weights")
    failures = await started(engine)
    assert (engine.state, failures) == ("failed", ["failed"])
    assert await replies([await ask(engine, 1)]) == ["NotReady"]


async def test_models_that_cannot_be_warmed_up_fail_the_engine(
    build: Build, device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "warm_up", lambda key: 1 / 0)
    engine = build(device)
    assert (await started(engine), engine.state) == (["failed"], "failed")


async def test_a_thread_that_cannot_enter_fails_the_engine(build: Build, device: FakeDevice) -> None:
    device.enters = 0
    engine = build(device)
    failures = await started(engine)
    assert (engine.state, failures) == ("failed", ["failed"])
    assert await replies([await ask(engine, 1)]) == ["NotReady"]


async def test_a_later_thread_that_cannot_enter_fails_the_engine(build: Build, device: FakeDevice) -> None:
    engine = build(device)
    failures = await started(engine)
    assert engine.state == "ready"
    device.enters = 0
    device.shut()
    callers = await asked(engine, [1, 2, 3, 4, 5, 6])
    await until(lambda: engine.state == "failed")
    device.gate.set()
    assert set(await replies(callers)) <= {"InferenceFailed", "NotReady"}
    assert failures == ["failed"]


async def test_threads_that_take_nothing_more_answer_everyone(build: Build, device: FakeDevice) -> None:
    engine = build(device)
    failures = await started(engine)
    device.shut()
    callers = [await ask(engine, 1), *await asked(engine, [2, 3])]
    await device.is_entered()
    # What a pool does from the moment that one of its threads could not enter.
    engine._threads._runners.shutdown(wait=False)
    callers += await asked(engine, [4, 5, 6, 7])
    device.gate.set()
    assert await replies(callers) == [*["InferenceFailed"] * 5, *["NotReady"] * 2]
    assert (engine.state, failures) == ("failed", ["failed"])


# --- a device that stalls


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.engine.engine.WATCH_INTERVAL", STALL / 10)


@pytest.mark.usefixtures("watched")
async def test_when_the_device_stalls_everyone_is_answered(
    build: Build, device: FakeDevice, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    engine = build(device, stall_timeout=STALL)
    failures = await started(engine)
    decoded = asyncio.Event()
    callers = [*await crowd(engine, device), *await asked(engine, [10], decoded=decoded)]
    await until(lambda: engine.state == "failed")
    decoded.set()
    for caller in callers[7:9]:
        caller.cancel()
    expected = [*["InferenceFailed"] * 7, *["CancelledError"] * 2, "InferenceFailed"]
    assert await replies(callers) == expected
    assert await replies([await ask(engine, 11)]) == ["NotReady"]
    assert failures == ["failed"]
    assert engine.is_stuck, "the process must not wait for it"
    assert f"cpu has not finished a batch in {STALL:g} s" in caplog.text
    await asyncio.wait_for(engine.stop(LONG), 30)
    device.gate.set()
    await until(lambda: not engine.is_stuck)
    assert (engine.state, failures) == ("failed", ["failed"])
    assert device.batches == [[1]], "nothing more is run, should it come back"


@pytest.mark.usefixtures("watched")
async def test_a_device_that_stalls_while_it_stages_is_noticed(
    build: Build, device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, stage = threading.Event(), device.stage

    def stalled(images: Any) -> Staged:
        gate.wait(100)
        return stage(images)

    engine = build(device, stall_timeout=STALL)
    failures = await started(engine)
    monkeypatch.setattr(device, "stage", stalled)
    callers = await asked(engine, [1, 2])
    try:
        assert await replies(callers) == ["InferenceFailed"] * 2
        assert (engine.state, failures) == ("failed", ["failed"])
    finally:
        gate.set()


@pytest.mark.usefixtures("watched")
async def test_a_queue_that_is_long_is_no_stall(build: Build, device: FakeDevice) -> None:
    engine = build(device, most=1, stall_timeout=3)
    failures = await started(engine)
    device.shut()
    callers = await asked(engine, range(20, 40))
    await device.is_entered()
    for _ in range(2):  # from being formed to its end, a batch takes longer than the timeout, but the device moves
        await asyncio.sleep(1.7)
        await device.goes_on_to_the_next()
    device.gate.set()
    assert await replies(callers) == list(range(20, 40))
    assert (engine.state, failures) == ("ready", [])


@pytest.mark.usefixtures("watched")
async def test_a_stall_while_it_drains_ends_the_wait(build: Build, device: FakeDevice) -> None:
    engine = build(device, stall_timeout=STALL)
    failures = await started(engine)
    device.shut()
    callers = await asked(engine, [1, 2])
    await asyncio.wait_for(engine.stop(LONG), 30)
    assert await replies(callers) == ["InferenceFailed"] * 2
    assert (engine.state, failures, engine.is_stuck) == ("failed", ["failed"], True)


@pytest.mark.usefixtures("watched")
async def test_so_does_one_of_a_batch_that_has_outlived_its_callers(build: Build, device: FakeDevice) -> None:
    engine = build(device, stall_timeout=STALL)
    failures = await started(engine)
    device.shut()
    assert await replies([await ask(engine, 1, allowed=0.05)]) == ["DeadlineExceeded"]
    await asyncio.wait_for(engine.stop(LONG), 30)
    assert (engine.state, failures, engine.is_stuck) == ("failed", ["failed"], True)


# --- a batch that fails, not the device


async def test_a_wrong_number_of_results_fails_that_batch_alone(
    build: Build, device: FakeDevice, metrics: Metrics
) -> None:
    engine = build(device)
    failures = await started(engine)
    device.shut()
    callers = [await ask(engine, 1)]
    await device.is_entered()
    callers += await asked(engine, [2, 3, 4])
    await device.goes_on_to_the_next()
    device.missing = 1
    waiting = await asked(engine, [5, 6])
    gate = device.gate
    device.shut()
    gate.set()
    assert await replies(callers) == [1, "InferenceFailed", "InferenceFailed", "InferenceFailed"]
    await device.is_entered()
    device.missing = 0
    device.gate.set()
    assert await replies([*waiting, await ask(engine, 7)]) == [5, 6, 7]
    assert (engine.state, failures) == ("ready", [])
    assert images_total(metrics, "error") == 3


def on_every_pass(segmentor: Segmentor, check: Callable[[Tensor], None]) -> None:
    segmentor.register_forward_pre_hook(lambda module, inputs: check(inputs[0]))


@pytest.fixture
def worker_held(worker: Worker, segmentor: Segmentor) -> tuple[threading.Event, threading.Event]:
    """Events that the first pass has begun, and that it may go on."""
    begun, gate = threading.Event(), threading.Event()

    def hold(batch: Tensor) -> None:
        begun.set()
        gate.wait(100)

    on_every_pass(segmentor, hold)
    return begun, gate


async def eight_together(
    engine: Engine, held: tuple[threading.Event, threading.Event], values: list[int]
) -> list[int | str]:
    """What becomes of eight images in one batch of a real worker: `ok`, or the error's name."""
    begun, gate = held
    first = await ask(engine, 0)
    assert await asyncio.to_thread(begun.wait, 60)
    callers = await asked(engine, values)
    gate.set()
    await replies([first])
    return [reply if isinstance(reply, str) else "ok" for reply in await replies(callers)]


@pytest.mark.parametrize("poisoned", [[5], [0, 7]])
async def test_a_poisonous_image_among_eight_fails_alone(
    build: Build,
    worker: Worker,
    segmentor: Segmentor,
    worker_held: tuple[threading.Event, threading.Event],
    metrics: Metrics,
    poisoned: list[int],
) -> None:
    sizes: list[int] = []

    def check(batch: Tensor) -> None:
        sizes.append(len(batch))
        if batch.max() > (POISON - 1 - IMAGENET_MEAN[2]) / IMAGENET_STD[2]:
            raise RuntimeError("poisoned")

    engine = build(worker, most=8)
    failures = await started_with_open_gate(engine, worker_held)
    on_every_pass(segmentor, check)
    values = [POISON if index in poisoned else 10 + index for index in range(8)]
    replied = await eight_together(engine, worker_held, values)
    assert replied == ["InferenceFailed" if index in poisoned else "ok" for index in range(8)]
    assert sizes[:2] == [1, 8]
    assert (engine.state, failures) == ("ready", [])
    assert sample(metrics, "oom_total", model="tiny", action="split") == 0


async def started_with_open_gate(engine: Engine, held: tuple[threading.Event, threading.Event]) -> list[str]:
    begun, gate = held
    gate.set()  # for the passes that warm up
    failures = await started(engine)
    gate.clear()
    begun.clear()
    return failures


async def test_a_batch_too_large_for_the_device_is_halved_and_later_ones_are_smaller(
    build: Build,
    worker: Worker,
    segmentor: Segmentor,
    worker_held: tuple[threading.Event, threading.Event],
    metrics: Metrics,
) -> None:
    sizes: list[int] = []

    def check(batch: Tensor) -> None:
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    engine = build(worker, most=8)
    failures = await started_with_open_gate(engine, worker_held)
    on_every_pass(segmentor, check)
    assert await eight_together(engine, worker_held, list(range(10, 18))) == ["ok"] * 8
    assert sizes == [1, 8, 4, 2, 2, 4, 2, 2]
    assert sample(metrics, "oom_total", model="tiny", action="split") == 1
    sizes.clear()
    assert await replies(await asked(engine, range(20, 40))) == await alone(engine, range(20, 40))
    assert max(sizes) == 2, "it has learnt"
    assert (engine.state, failures) == ("ready", [])


async def alone(engine: Engine, values: range) -> list[int | str]:
    return [(await replies([await ask(engine, value)]))[0] for value in values]


async def test_an_image_too_large_for_the_device_is_told_so(
    build: Build, worker: Worker, segmentor: Segmentor, metrics: Metrics
) -> None:
    engine = build(worker)
    failures = await started(engine)

    def check(batch: Tensor) -> None:
        if len(batch) > 0:
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = segmentor.register_forward_pre_hook(lambda module, inputs: check(inputs[0]))
    assert await replies([await ask(engine, 1)]) == ["OutOfMemory"]
    hook.remove()
    assert isinstance((await replies([await ask(engine, 2)]))[0], int)
    assert sample(metrics, "oom_total", model="tiny", action="failed") == 1
    assert failures == []


async def test_a_lane_that_ran_out_of_memory_recovers_slowly(
    build: Build, device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Limits, "CLEAN", 3)
    engine = build(device, most=4)
    await started(engine)

    async def sizes(count: int) -> list[int]:
        """Of the batches that so many images form which wait while one is run."""
        device.shut()
        callers = [await ask(engine, 0)]
        await device.is_entered()
        before = len(device.batches)
        callers += await asked(engine, [1] * count)
        device.gate.set()
        await replies(callers)
        return [len(batch) for batch in device.batches[before:]]

    device.room = 2
    assert await sizes(4) == [4]
    assert await sizes(4) == [2, 2]
    device.room = 100
    # The third batch of two in a row was clean; then three of three, and the lane is as it was.
    assert await sizes(2) == [2]
    assert await sizes(9) == [3, 3, 3]
    assert await sizes(8) == [4, 4]
    device.room = 2
    assert await sizes(4) == [4]
    assert await sizes(2) == [2]


# --- no error is lost


async def test_errors_that_no_one_waits_for_make_no_noise(
    build: Build, device: FakeDevice, caplog: pytest.LogCaptureFixture
) -> None:
    """asyncio reports, whenever garbage is collected, an exception that nobody has looked at."""
    engine = build(device)
    await started(engine)
    device.shut()
    running = asyncio.create_task(segmented(engine, picture(13)))
    await device.is_entered()
    late: Coroutine[Any, Any, Any] = segmented(engine, picture(2), allowed=0.02, decoded=asyncio.Event())
    waiting = asyncio.create_task(late)
    await asyncio.sleep(0)
    assert engine.queue_size == 1
    await until(lambda: engine.queue_size == 0)  # it has expired, and is decoded still
    waiting.cancel()
    running.cancel()
    assert await replies([running, waiting]) == ["CancelledError"] * 2
    del running, waiting, late  # which hold the frames, and they what went wrong
    device.gate.set()
    assert await replies([await ask(engine, 3)]) == [3]
    gc.collect()
    assert "never retrieved" not in caplog.text
