"""Models that come and go while others serve, by a real engine on a fake device."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import torch

from app.engine.engine import Engine
from app.engine.scheduler import Policy
from app.errors import DeviceError, LoadFailed, ModelNotLoaded, NotReady, OutOfMemory, UnknownModel
from app.metrics import Metrics
from models import CheckpointError, ModelSpec
from tests.app.engine.callers import LONG, ask, asked, images_total, picture, replies, sample, segmented, started
from tests.fakes import FakeDevice, until

POLICY = Policy(max_batch_size=2, max_batch_pixels=1 << 20, max_queue_size=20, max_queue_bytes=1 << 20)


@pytest.fixture
def device() -> FakeDevice:
    return FakeDevice()


@pytest.fixture
def other(spec: ModelSpec) -> ModelSpec:
    return replace(spec, name="other")


@pytest.fixture
async def engine(device: FakeDevice, spec: ModelSpec, metrics: Metrics) -> AsyncIterator[Engine]:
    """Ready, with `tiny` alone."""
    engine = Engine(device, [spec], POLICY, metrics, LONG)
    await started(engine)
    yield engine
    device.error = None
    device.gate.set()
    await engine.stop(10)


def states(engine: Engine) -> dict[str, str]:
    return {model.spec.name: model.state for model in engine.models.models}


async def loads(engine: Engine, device: FakeDevice, spec: ModelSpec) -> asyncio.Task[None]:
    """A load that is held on the device until its gate is opened."""
    device.shut()
    load = asyncio.create_task(engine.load(spec))
    await device.is_entered()
    return load


# --- load


async def test_a_model_is_loaded_beside_those_that_serve(
    engine: Engine, device: FakeDevice, other: ModelSpec, metrics: Metrics
) -> None:
    load = await loads(engine, device, other)
    assert states(engine) == {"tiny": "ready", "other": "loading"}
    with pytest.raises(ModelNotLoaded, match="loading"), engine.admitted("other", "a", 1, LONG):
        pass
    device.gate.set()
    await load
    assert states(engine) == {"tiny": "ready", "other": "ready"}
    assert device.resident == {"tiny#1", "other#2"}
    assert sample(metrics, "model_info", model="other", dataset="none", classes="11", device="cpu") == 1
    assert sample(metrics, "images_total", model="other", outcome="rejected") == 1


async def test_it_is_warm_before_it_takes_traffic(engine: Engine, device: FakeDevice, other: ModelSpec) -> None:
    await engine.load(other)
    assert device.warmed == ["tiny#1", "other#2"]


async def test_passes_go_on_while_a_model_loads(engine: Engine, device: FakeDevice, other: ModelSpec) -> None:
    load = await loads(engine, device, other)
    loading, device.gate = device.gate, opened()
    assert await replies([await ask(engine, 1)]) == [1]
    assert not load.done()
    loading.set()
    await load


async def test_a_load_that_fails_leaves_the_old_one_serving(
    engine: Engine, device: FakeDevice, spec: ModelSpec, caplog: pytest.LogCaptureFixture
) -> None:
    device.error = CheckpointError("weights.pth: a damaged or truncated torch checkpoint")
    with pytest.raises(LoadFailed, match=r"tiny could not be loaded: weights.pth"):
        await engine.load(spec)
    device.error = None
    assert "tiny could not be loaded: weights.pth" in caplog.text
    assert states(engine) == {"tiny": "ready"}
    assert engine.models.model("tiny").reason == "weights.pth: a damaged or truncated torch checkpoint"
    assert await replies([await ask(engine, 1)]) == [1]
    await engine.load(spec)
    assert engine.models.model("tiny").reason is None


async def test_what_was_read_of_a_model_that_fails_waits_for_no_collector_of_garbage(
    engine: Engine, device: FakeDevice, other: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[weakref.ref[torch.Tensor]] = []

    def load(spec: ModelSpec, key: str) -> None:
        weights = torch.full((1,), torch.nan)
        read.append(weakref.ref(weights))
        try:
            raise RuntimeError("NaN")
        except RuntimeError as exc:
            raise CheckpointError("other.pth: holds NaN or infinite weights") from exc

    monkeypatch.setattr(device, "load", load)
    monkeypatch.setattr("app.engine.residents.log.error", lambda *_, **__: None)  # what pytest keeps has the traceback
    gc.collect()
    gc.disable()
    try:
        assert await replies_of(asyncio.create_task(engine.load(other))) == "LoadFailed"
        assert read[0]() is None
    finally:
        gc.enable()


async def test_what_cannot_run_is_taken_off_again(
    engine: Engine, device: FakeDevice, other: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def warm_up(key: str) -> None:
        raise OutOfMemory("an input of 48x32 does not fit the memory of cpu")

    monkeypatch.setattr(device, "warm_up", warm_up)
    with pytest.raises(LoadFailed, match="48x32"):
        await engine.load(other)
    assert states(engine) == {"tiny": "ready", "other": "failed"}
    assert device.resident == {"tiny#1"}
    with pytest.raises(ModelNotLoaded, match=r"failed: an input of 48x32"), engine.admitted("other", "a", 1, LONG):
        pass


async def test_who_came_before_is_answered_by_what_served_then(
    engine: Engine, device: FakeDevice, spec: ModelSpec
) -> None:
    device.shut()
    before = await asked(engine, [1, 2, 3])
    await device.is_entered()
    first_gate, device.gate = device.gate, opened()
    load = asyncio.create_task(engine.load(replace(spec, title="newer")))
    await until(lambda: engine.models.model("tiny").spec.title == "newer")
    after = await asked(engine, [4])
    assert device.resident == {"tiny#1", "tiny#2"}, "the old one still runs"
    assert not load.done()
    first_gate.set()
    assert await replies([*before, *after]) == [1, 2, 3, 4]
    await asyncio.wait_for(load, 60)
    assert device.ran == {(1, "tiny#1"), (2, "tiny#1"), (3, "tiny#1"), (4, "tiny#2")}, "no batch mixes the two"
    assert device.resident == {"tiny#2"}


async def test_loads_of_one_name_at_once_come_one_after_the_other(
    engine: Engine, device: FakeDevice, spec: ModelSpec
) -> None:
    await asyncio.gather(*(engine.load(replace(spec, title=str(number))) for number in range(5)))
    assert engine.models.model("tiny").spec.title == "4", "the last one wins"
    assert device.resident == {engine.models.serving("tiny").key}
    assert await replies([await ask(engine, 1)]) == [1]


async def test_a_load_goes_on_though_its_caller_leaves(engine: Engine, device: FakeDevice, other: ModelSpec) -> None:
    load = await loads(engine, device, other)
    load.cancel()
    assert await replies_of(load) == "CancelledError"
    device.gate.set()
    await until(lambda: states(engine)["other"] == "ready")


async def test_a_load_while_the_engine_drains_is_answered(engine: Engine, device: FakeDevice, other: ModelSpec) -> None:
    load = await loads(engine, device, other)
    waiting = asyncio.create_task(engine.unload("tiny"))
    await asyncio.sleep(0)
    stopping = asyncio.create_task(engine.stop(0.1))
    assert await replies_of(load) == await replies_of(waiting) == "NotReady"
    assert engine.models.is_at_work, "though nobody waits for it any more"
    device.gate.set()
    await until(lambda: not engine.models.is_at_work)
    await stopping
    with pytest.raises(NotReady):
        await engine.load(other)
    with pytest.raises(NotReady):
        await engine.unload("tiny")


async def test_a_device_that_breaks_during_a_load_ends_the_engine(
    engine: Engine, device: FakeDevice, other: ModelSpec
) -> None:
    device.error = DeviceError("cuda:0 has failed for good")
    assert await replies_of(asyncio.create_task(engine.load(other))) == "InferenceFailed"
    assert engine.state == "failed"


async def test_a_load_while_a_pass_breaks_the_device_is_answered(
    engine: Engine, device: FakeDevice, other: ModelSpec
) -> None:
    load = await loads(engine, device, other)
    loading, device.gate = device.gate, opened()
    device.error = DeviceError("cuda:0 has failed for good")
    assert await replies([await ask(engine, 1)]) == ["InferenceFailed"]
    assert await asyncio.wait_for(replies_of(load), 30) == "NotReady"
    loading.set()


async def test_at_the_start_only_the_first_model_must_load(
    device: FakeDevice,
    spec: ModelSpec,
    other: ModelSpec,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "app.engine.engine")

    def load(spec: ModelSpec, key: str) -> None:
        if spec.name == "other":
            raise CheckpointError("other.pth: not a torch checkpoint")
        device.resident.add(key)

    monkeypatch.setattr(device, "load", load)
    for specs, state in (([spec, other], "ready"), ([other, spec], "failed")):
        engine = Engine(device, specs, POLICY, Metrics(), LONG)
        await started(engine)
        assert engine.state == state
        assert states(engine)["other"] == "failed"
        await engine.stop(1)
    assert [record.message for record in caplog.records if "ready" in record.message] == ["ready: tiny on cpu"]


# --- unload


async def test_unload_answers_everyone_and_frees(engine: Engine, device: FakeDevice, metrics: Metrics) -> None:
    device.shut()
    running = await asked(engine, [1])
    await device.is_entered()
    decoded = asyncio.Event()
    waiting = [*await asked(engine, [2, 3, 4, 5, 6]), *await asked(engine, [7], decoded=decoded)]
    unload = asyncio.create_task(engine.unload("tiny"))
    assert await replies(waiting[2:5]) == ["ModelNotLoaded"] * 3
    assert states(engine) == {"tiny": "available"}
    assert device.resident == {"tiny#1"}, "a batch runs on it still, and one is staged"
    with pytest.raises(ModelNotLoaded, match=r"available$"):
        engine.check_room("tiny", "a", 1, LONG)
    decoded.set()
    device.gate.set()
    await asyncio.wait_for(unload, 60)
    assert await replies([*running, *waiting]) == [1, 2, 3, *["ModelNotLoaded"] * 4]
    assert device.resident == set()
    assert engine.queue_size == 0
    assert sample(metrics, "model_info", model="tiny", dataset="none", classes="11", device="cpu") is None
    assert images_total(metrics, "rejected") == 5, "who asked at the door is among them"


async def test_unload_leaves_other_models_alone(engine: Engine, device: FakeDevice, other: ModelSpec) -> None:
    await engine.load(other)
    await engine.unload("other")
    await engine.unload("other")  # it is what was asked for already
    assert states(engine) == {"tiny": "ready", "other": "available"}
    assert (await segmented(engine, picture(1))).mask[0, 0] == 1
    await engine.load(other)
    assert states(engine)["other"] == "ready"


async def test_unload_leaves_who_waits_for_other_models_alone(
    engine: Engine, device: FakeDevice, other: ModelSpec
) -> None:
    await engine.load(other)
    device.shut()
    callers = await asked(engine, [1, 2, 3, 4, 5])
    await device.is_entered()
    await engine.unload("other")
    device.gate.set()
    assert await replies(callers) == [1, 2, 3, 4, 5]


async def test_an_unload_waits_for_the_load_before_it(engine: Engine, device: FakeDevice, other: ModelSpec) -> None:
    load = await loads(engine, device, other)
    unload = asyncio.create_task(engine.unload("other"))
    await asyncio.sleep(0)
    assert not unload.done()
    device.gate.set()
    await asyncio.gather(load, unload)
    assert states(engine)["other"] == "available"
    assert device.resident == {"tiny#1"}


@pytest.mark.parametrize("reloads", [0, 1])
@pytest.mark.parametrize("serves", [False, True], ids=["as the new one is warmed", "once the new one serves"])
async def test_who_lets_go_of_what_was_unloaded_leaves_what_was_loaded_since(
    engine: Engine, device: FakeDevice, spec: ModelSpec, reloads: int, serves: bool
) -> None:
    old, changes = engine.models.serving("tiny"), []
    with engine.admitted("tiny", "slow", 1, time.monotonic() + LONG):
        for _ in range(reloads):
            changes.append(asyncio.create_task(engine.load(replace(spec, title="newer"))))
            await until(lambda: engine.models.model("tiny").spec.title == "newer")
        changes.append(asyncio.create_task(engine.unload("tiny")))
        await until(lambda: states(engine) == {"tiny": "available"})
        changes.append(await loads(engine, device, spec))
        await device.goes_on_to_the_next()
        if serves:
            device.gate.set()
            await until(lambda: states(engine) == {"tiny": "ready"})
    await until(lambda: old.key not in device.resident)
    device.gate.set()
    await asyncio.wait_for(asyncio.gather(*changes), LONG)
    assert device.resident == {engine.models.serving("tiny").key}
    assert await replies([await ask(engine, 1)]) == [1]


async def test_an_unknown_model_is_named(engine: Engine) -> None:
    with pytest.raises(UnknownModel, match=r"'nope'.*tiny"):
        await engine.unload("nope")


def opened() -> threading.Event:
    """A gate for those who come after the one that is held."""
    gate = threading.Event()
    gate.set()
    return gate


async def replies_of(task: asyncio.Task[None]) -> str:
    """Its error's name."""
    (error,) = await asyncio.gather(task, return_exceptions=True)
    return type(error).__name__
