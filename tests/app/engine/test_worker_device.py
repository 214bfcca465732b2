"""What surrounds a pass: images made ready for it, the device looked for, its memory, its clock and its end."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image as Picture

from app.engine import worker as worker_module
from app.engine.device import Outcome, Ran, Segmentation, find_device
from app.engine.graphs import Graphs
from app.engine.staging import Image
from app.engine.timing import Clock
from app.engine.worker import Worker
from app.errors import DeviceError, InferenceFailed, OutOfMemory
from models import ModelSpec, Segmentor

HOST_IS_FULL = "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried"


class Stream(NamedTuple):
    """Of a device, with what happens when it is waited for."""

    synchronize: Callable[[], None]


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
        ("auto", 2, "cuda:0"),
        ("cpu", 0, "cpu"),
        ("cpu", 2, "cpu"),
        ("cuda", 1, "cuda:0"),
        ("cuda:1", 2, "cuda:1"),
    ],
)
def test_devices_that_are_there(monkeypatch: pytest.MonkeyPatch, name: str, count: int, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert find_device(name) == torch.device(expected)


@pytest.mark.parametrize(
    ("name", "count"), [("cuda", 0), ("cuda:0", 0), ("cuda:1", 1), ("cuda:99", 8), ("cuda:99999999999", 1)]
)
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


@pytest.mark.parametrize(("kind", "travels"), [("cpu", False), ("cuda", True)])
def test_on_a_cpu_no_batch_needs_to_travel(monkeypatch: pytest.MonkeyPatch, kind: str, *, travels: bool) -> None:
    monkeypatch.setattr(worker_module, "find_device", torch.device)
    monkeypatch.setattr(worker_module, "Staging", lambda device: None)  # whose stream needs a real one
    assert Worker(kind, 0).stages_ahead == travels


# --- memory, failure


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(HOST_IS_FULL),
        RuntimeError("std::bad_alloc"),
        MemoryError(),
        torch.OutOfMemoryError("CUDA"),
        torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
    ],
)
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
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(partial(asked.append, device)))
    assert kinds(ran(worker, 1)) == [InferenceFailed]
    assert asked == [], "the CPU lives"
    # No such device is needed: the pass fails one way or another.
    worker.device = torch.device("cuda", 0)
    assert kinds(ran(worker, 1)) == [InferenceFailed]
    assert asked == [worker.device]


def test_a_dead_device_is_no_images_fault(
    worker: Worker, segmentor: Segmentor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dead() -> None:
        raise RuntimeError("CUDA error")

    fail_beyond(segmentor, 0, RuntimeError("illegal memory access"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(dead))
    worker.device = torch.device("cuda", 0)
    with pytest.raises(DeviceError, match="failed for good"):
        ran(worker, 2)


# --- graphs


def test_batches_of_a_graph_are_as_any(worker: Worker, recording: Callable[..., Any]) -> None:
    image = Image(torch.from_numpy(noise(32, 48)), (40, 60), wants_traces=True)
    (expected,) = worker.run("tiny", worker.stage([image])).outcomes
    worker._graphs = Graphs(4, recording)
    blank = Image(torch.zeros(32, 48, 3, dtype=torch.uint8), (32, 48), wants_traces=False)
    # Once as it is, then by a graph, whose last batch was another.
    for _ in range(3):
        (outcome,) = worker.run("tiny", worker.stage([image])).outcomes
        assert isinstance(outcome, Segmentation)
        assert isinstance(expected, Segmentation)
        assert np.array_equal(outcome.mask, expected.mask)
        assert all(
            torch.equal(one.query, other.query) for one, other in zip(outcome.traces, expected.traces, strict=True)
        )
        assert list(outcome.timings.modules) == list(expected.timings.modules)
        worker.run("tiny", worker.stage([blank]))
    worker.unload("tiny")
    assert not worker._graphs._shapes


def test_graphs_give_way_to_a_pass_that_runs_out_of_memory(
    worker: Worker, segmentor: Segmentor, recording: Callable[..., Any]
) -> None:
    worker._graphs = Graphs(4, recording)
    for _ in range(2):
        ran(worker, 1)

    def check(module: object, inputs: tuple[torch.Tensor]) -> None:
        if any(worker._graphs._shapes.values()) or len(inputs[0]) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")

    segmentor.register_forward_pre_hook(check)
    fitted = ran(worker, 4)
    assert (kinds(fitted), fitted.fits) == ([Segmentation] * 4, None), "it was not the batch that was too large"
    split = ran(worker, 8)
    assert (kinds(split), split.fits) == ([Segmentation] * 8, 4)


def test_graphs_stay_where_nothing_lacks_memory(
    worker: Worker, segmentor: Segmentor, spec: ModelSpec, recording: Callable[..., Any]
) -> None:
    worker._graphs = Graphs(4, recording)
    for _ in range(2):
        ran(worker, 1)
    (graph,) = worker._graphs._shapes.values()
    fail_beyond(segmentor, 1, RuntimeError("bad"))
    assert kinds(ran(worker, 2)) == [Segmentation] * 2
    worker.load(spec, "another")
    assert graph in worker._graphs._shapes.values()


def test_graphs_give_way_to_a_model_that_finds_no_room(
    worker: Worker,
    segmentor: Segmentor,
    spec: ModelSpec,
    monkeypatch: pytest.MonkeyPatch,
    recording: Callable[..., Any],
) -> None:
    worker._graphs = Graphs(4, recording)
    for _ in range(2):
        ran(worker, 1)

    def load_model(spec: ModelSpec) -> Segmentor:
        if any(worker._graphs._shapes.values()):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return segmentor

    monkeypatch.setattr("app.engine.worker.load_model", load_model)
    worker.load(spec, "another")
    assert list(worker._models) == ["tiny", "another"]


def test_warming_up_makes_the_graphs_and_room_for_them(
    worker: Worker, segmentor: Segmentor, recording: Callable[..., Any]
) -> None:
    worker._graphs = Graphs(4, recording)
    worker.warm_up("tiny")
    assert all(worker._graphs._shapes.values())

    def check(*_: object) -> None:
        if worker._graphs._shapes == before:
            raise torch.OutOfMemoryError("CUDA out of memory")

    before = dict(worker._graphs._shapes)
    segmentor.register_forward_pre_hook(check)
    worker.warm_up("tiny")
    assert all(worker._graphs._shapes.values())


@pytest.mark.parametrize(
    ("best", "fitting", "sizes"),
    [(8, 9, [8, 4, 2, 1]), (6, 9, [6, 3, 1]), (1, 9, [1]), (8, 2, [2, 1]), (8, 0, [1])],
)
def test_warming_up_begins_with_the_largest_batch(
    worker: Worker, segmentor: Segmentor, monkeypatch: pytest.MonkeyPatch, best: int, fitting: int, sizes: list[int]
) -> None:
    monkeypatch.setattr(Worker, "best_batch_size", best)
    monkeypatch.setattr("app.engine.worker.WARM_UP_PIXELS", fitting * 48 * 32)
    met: list[int] = []
    segmentor.register_forward_pre_hook(lambda module, inputs: met.append(len(inputs[0])))
    worker.warm_up("tiny")
    assert list(dict.fromkeys(met)) == sizes


def test_warming_up_goes_on_with_what_fits(
    worker: Worker, segmentor: Segmentor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Worker, "best_batch_size", 8)
    met: list[int] = []
    segmentor.register_forward_pre_hook(lambda module, inputs: met.append(len(inputs[0])))
    fail_beyond(segmentor, 3, torch.OutOfMemoryError("CUDA out of memory"))
    worker.warm_up("tiny")
    assert met == [8, 4, *[2] * 4, *[1] * 4], "alone twice, and twice as beside another"


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
