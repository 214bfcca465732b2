"""What surrounds a pass: images made ready for it, the device looked for, its memory, its clock and its end."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image as Picture

from app.engine.device import Outcome, Ran, Segmentation
from app.engine.staging import Image
from app.engine.timing import Clock
from app.engine.worker import Worker, find_device
from app.errors import DeviceError, InferenceFailed, OutOfMemory
from models import Segmentor

HOST_IS_FULL = "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried"


def png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Picture.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def ran(worker: Worker, count: int) -> Ran:
    """So many blank images in a batch."""
    blank = Image(torch.zeros(32, 48, 3, dtype=torch.uint8), (32, 48), wants_traces=False)
    return worker.run("tiny", worker.stage([blank] * count))


def kinds(ran: Ran) -> list[type[Outcome]]:
    return [type(outcome) for outcome in ran.outcomes]


def fail_beyond(segmentor: Segmentor, limit: int, error: Exception) -> None:
    """Batches of more than so many images end with this error."""

    def check(module: object, inputs: tuple[torch.Tensor]) -> None:
        if len(inputs[0]) > limit:
            raise error

    segmentor.register_forward_pre_hook(check)


# --- find_device


@pytest.mark.parametrize(
    ("name", "count", "expected"),
    [
        ("auto", 0, "cpu"),
        ("auto", 2, "cuda"),
        ("cpu", 0, "cpu"),
        ("cpu", 2, "cpu"),
        ("cuda", 1, "cuda"),
        ("cuda:1", 2, "cuda:1"),
    ],
)
def test_devices_that_are_there(monkeypatch: pytest.MonkeyPatch, name: str, count: int, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert find_device(name) == torch.device(expected)


@pytest.mark.parametrize(("name", "count"), [("cuda", 0), ("cuda:0", 0), ("cuda:1", 1), ("cuda:99", 8)])
def test_devices_that_are_not(monkeypatch: pytest.MonkeyPatch, name: str, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    for look in (find_device, lambda name: Worker(name, 0)):
        with pytest.raises(DeviceError, match=f"no device {name}: .* {count} CUDA devices"):
            look(name)


@pytest.mark.parametrize(("kind", "slots", "images"), [("cpu", 2, 1), ("cuda", 1, 8)])
def test_each_kind_of_device_has_its_way_to_be_kept_busy(kind: str, slots: int, images: int) -> None:
    worker = Worker("cpu", 0)
    worker.device = torch.device(kind)
    assert (worker.slots, worker.best_batch_size) == (slots, images)


# --- memory, failure


@pytest.mark.parametrize("error", [RuntimeError(HOST_IS_FULL), MemoryError(), torch.OutOfMemoryError("CUDA")])
def test_memory_runs_out_wherever_it_is(worker: Worker, segmentor: Segmentor, error: Exception) -> None:
    fail_beyond(segmentor, 1, error)
    halved = ran(worker, 2)
    assert (kinds(halved), halved.fits) == ([Segmentation, Segmentation], 1)
    fail_beyond(segmentor, 0, error)
    alone = ran(worker, 1)
    assert (kinds(alone), alone.fits) == ([OutOfMemory], 0)
    assert "48x32" in str(alone.outcomes[0])


def test_after_a_failure_the_device_is_asked_whether_it_lives(
    worker: Worker, segmentor: Segmentor, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_beyond(segmentor, 0, RuntimeError("illegal memory access"))
    asked: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", asked.append)
    assert kinds(ran(worker, 1)) == [InferenceFailed]
    assert asked == [], "the CPU lives"
    # No such device is needed: the pass fails one way or another.
    worker.device = torch.device("cuda", 0)
    assert kinds(ran(worker, 1)) == [InferenceFailed]
    assert asked == [worker.device]


def test_a_dead_device_is_no_images_fault(
    worker: Worker, segmentor: Segmentor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dead(device: torch.device) -> None:
        raise RuntimeError("CUDA error")

    fail_beyond(segmentor, 0, RuntimeError("illegal memory access"))
    monkeypatch.setattr(torch.cuda, "synchronize", dead)
    worker.device = torch.device("cuda", 0)
    with pytest.raises(DeviceError, match="failed for good"):
        ran(worker, 2)


# --- time


def test_stages_are_timed_by_the_clock_of_the_modules(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, step_clock: Clock
) -> None:
    monkeypatch.setattr(worker._models["tiny"].timer, "_clock", step_clock)
    (outcome,) = ran(worker, 1).outcomes
    assert isinstance(outcome, Segmentation)
    stages, modules = outcome.timings.stages, outcome.timings.modules
    assert set(modules.values()) == {1.0}
    inside = len(modules) - 1  # all but upsample_argmax, each with a mark at its start and its end
    assert stages == {"preprocess": 1.0, "forward": 2 * inside + 1.0, "postprocess": 3.0}


def test_no_time_of_a_failed_pass_is_counted(
    worker: Worker, segmentor: Segmentor, monkeypatch: pytest.MonkeyPatch, step_clock: Clock
) -> None:
    monkeypatch.setattr(worker._models["tiny"].timer, "_clock", step_clock)
    broken = segmentor.get_submodule("backbone.layer2").register_forward_hook(lambda *_: 1 / 0)
    assert kinds(ran(worker, 1)) == [InferenceFailed]
    broken.remove()
    (outcome,) = ran(worker, 1).outcomes
    assert isinstance(outcome, Segmentation)
    assert set(outcome.timings.modules.values()) == {1.0}
