from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from app.engine.engine import Engine
from app.engine.scheduler import Policy
from app.engine.worker import Image, Outcome, Segmentation, Worker
from app.errors import (
    DeadlineUnreachable,
    InferenceFailed,
    NotReady,
    QueueFull,
    ServiceError,
    UnknownModel,
)
from app.metrics import Metrics
from app.timings import Timings
from models import ModelSpec, Segmentor
from models.inference import segment_image
from models.transforms import resize

POLICY = Policy(max_batch_size=4, max_batch_pixels=1 << 20, max_queue_size=6, max_queue_bytes=1 << 20)
LONG = 60.0
BAD = 13  # an image of this value fails


class FakeWorker:
    """Answers with the image's first value, as id of every pixel; holds loads and batches while its gate is shut."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.error: Exception | None = None
        self.answers_missing = 0

    def load(self, spec: ModelSpec) -> None:
        self.entered.set()
        self.gate.wait(30)
        if self.error is not None:
            raise self.error

    def run(self, model: str, images: Sequence[Image]) -> list[Outcome]:
        values = [int(image.pixels[0, 0, 0]) for image in images]
        self.batches.append(values)
        gate = self.gate
        self.entered.set()
        gate.wait(30)
        if self.error is not None:
            raise self.error
        timings = Timings({"forward": 0.01}, {"stem": 0.01})
        outcomes = [self._outcome(value, image, timings) for value, image in zip(values, images, strict=True)]
        return outcomes[self.answers_missing :]

    def memory(self) -> dict[str, int]:
        return {"allocated": 5}

    def _outcome(self, value: int, image: Image, timings: Timings) -> Outcome:
        if value == BAD:
            return InferenceFailed("the model failed on this image")
        mask = np.full(image.original, value, dtype=np.uint8)
        return Segmentation(mask, mask, (), timings)

    def shut(self) -> None:
        """Hold the next batch; one that is held already waits for the gate it met."""
        self.entered.clear()
        self.gate = threading.Event()

    async def goes_on_to_the_next(self) -> None:
        """Let the held batch end, and hold the one after it."""
        gate = self.gate
        self.shut()
        gate.set()
        await self.is_entered()

    async def is_entered(self) -> None:
        assert await asyncio.to_thread(self.entered.wait, 10)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def worker() -> FakeWorker:
    return FakeWorker()


@pytest.fixture
async def engine(worker: FakeWorker, spec: ModelSpec, metrics: Metrics) -> AsyncIterator[Engine]:
    """Not yet started."""
    engine = Engine(cast(Worker, worker), [spec], POLICY, metrics)
    yield engine
    worker.gate.set()
    await engine.stop(10)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - no event tells of it
            await asyncio.sleep(0)


async def started(engine: Engine) -> list[str]:
    """Ready to serve; the list gets an entry with every call of `on_failure`."""
    failures: list[str] = []
    engine.start(lambda: failures.append("failed"))
    await until(lambda: engine.state != "loading")
    return failures


def ask(engine: Engine, value: int, timeout: float = LONG) -> asyncio.Task[Segmentation]:
    image = Image(torch.full((32, 48, 3), value, dtype=torch.uint8), (32, 48), wants_traces=False)
    deadline = asyncio.get_running_loop().time() + timeout
    return asyncio.create_task(engine.segment("tiny", image, deadline, nbytes=100))


def prepared(spec: ModelSpec, pixels: NDArray[np.uint8], *, wants_traces: bool) -> Image:
    original = pixels.shape[0], pixels.shape[1]
    resized = resize(torch.from_numpy(pixels), spec.preprocessing.input_size(original))
    return Image(resized, original, wants_traces)


async def ask_in_turn(engine: Engine, values: Sequence[int], allowed: float = LONG) -> list[asyncio.Task[Segmentation]]:
    """Callers whose jobs wait in this order: the device must be busy."""
    callers = []
    for value in values:
        size = engine.queue_size
        callers.append(ask(engine, value, allowed))
        await until(lambda size=size: engine.queue_size > size)  # type: ignore[misc]
    return callers


async def replies(callers: Sequence[asyncio.Task[Segmentation]]) -> list[int | str]:
    """Each caller's id, or the name of its error."""
    async with asyncio.timeout(10):
        ended = await asyncio.gather(*callers, return_exceptions=True)
    return [int(reply.mask[0, 0]) if isinstance(reply, Segmentation) else type(reply).__name__ for reply in ended]


def images_total(metrics: Metrics, outcome: str) -> float | None:
    return metrics.registry.get_sample_value("seglens_images_total", {"model": "tiny", "outcome": outcome})


def sample(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"seglens_{name}", labels)


# --- results


async def test_results_go_to_their_own_caller(engine: Engine, worker: FakeWorker, metrics: Metrics) -> None:
    await started(engine)
    for values in (range(20, 26), range(30, 36)):
        assert await replies([ask(engine, value) for value in values]) == list(values)
    assert all(len(batch) <= POLICY.max_batch_size for batch in worker.batches)
    assert images_total(metrics, "ok") == 12


async def test_what_waits_while_the_device_is_busy_becomes_one_batch(engine: Engine, worker: FakeWorker) -> None:
    await started(engine)
    worker.shut()
    callers = [ask(engine, 1)]
    await worker.is_entered()
    callers += await ask_in_turn(engine, [2, 3, 4, 5, 6])
    worker.gate.set()
    assert await replies(callers) == [1, 2, 3, 4, 5, 6]
    assert worker.batches == [[1], [2, 3, 4, 5], [6]]


async def test_images_come_back_at_their_own_size(engine: Engine) -> None:
    await started(engine)
    deadline = asyncio.get_running_loop().time() + LONG
    for original in ((64, 96), (7, 200), (1, 1)):
        image = Image(torch.full((32, 48, 3), 9, dtype=torch.uint8), original, wants_traces=False)
        result = await engine.segment("tiny", image, deadline, nbytes=0)
        assert result.mask.shape == original


async def test_each_result_has_its_own_record_of_timings(engine: Engine, worker: FakeWorker, metrics: Metrics) -> None:
    await started(engine)
    worker.shut()
    callers = [ask(engine, 1)]
    await worker.is_entered()
    callers += await ask_in_turn(engine, [2, 3])
    worker.gate.set()
    first, second, third = await asyncio.gather(*callers)
    for result in (first, second, third):
        assert list(result.timings.stages) == ["queue", "forward"]
        assert result.timings.modules == {"stem": 0.01}
    assert second.timings is not third.timings
    assert second.timings.stages["queue"] >= third.timings.stages["queue"] >= 0
    labels = {"model": "tiny", "module": "stem", "device": "cpu"}
    assert sample(metrics, "module_duration_seconds_count", **labels) == 2, "modules count once a pass"
    assert sample(metrics, "batches_total", model="tiny", reason="idle") == 2
    assert sample(metrics, "batch_size_sum", model="tiny") == 3


async def test_an_unknown_model_is_named(engine: Engine) -> None:
    await started(engine)
    with pytest.raises(UnknownModel, match=r"'nope'.*tiny"):
        await engine.segment("nope", Image(torch.zeros(4, 4, 3, dtype=torch.uint8), (4, 4), False), 1e9, nbytes=0)


async def test_with_a_real_worker_many_callers_get_their_own_masks(
    spec: ModelSpec, segmentor: Segmentor, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.engine.worker.create_model", lambda name: segmentor)
    engine = Engine(Worker("cpu", 0, metrics), [spec], Policy(4, 1 << 20, 64, 1 << 24), metrics)
    await started(engine)
    rng = np.random.default_rng(0)
    shapes = [(32, 48), (40, 60), (48, 32), (90, 60), (33, 50), (16, 24)] * 2
    pictures = [np.kron(rng.integers(0, 256, (4, 4, 3)), np.ones((h // 4, w // 4, 1))) for h, w in shapes]
    arrays = [picture.astype(np.uint8) for picture in pictures]
    deadline = asyncio.get_running_loop().time() + LONG
    results = await asyncio.gather(
        *(
            engine.segment("tiny", prepared(spec, pixels, wants_traces=index % 2 == 0), deadline, nbytes=0)
            for index, pixels in enumerate(arrays)
        )
    )
    await engine.stop(10)
    for index, (pixels, result) in enumerate(zip(arrays, results, strict=True)):
        ids, _ = segment_image(segmentor, torch.from_numpy(pixels), spec.preprocessing)
        assert (result.mask == ids.numpy()).mean() > 0.999
        assert len(result.traces) == (2 if index % 2 == 0 else 0)


# --- callers that leave, images that fail


@pytest.mark.parametrize("cancelled", [0, 1, 3])
async def test_one_cancelled_caller_leaves_its_batch_mates_alone(
    engine: Engine, worker: FakeWorker, metrics: Metrics, cancelled: int
) -> None:
    await started(engine)
    worker.shut()
    first = ask(engine, 1)
    await worker.is_entered()
    mates = await ask_in_turn(engine, [2, 3, 4, 5])
    await worker.goes_on_to_the_next()
    mates[cancelled].cancel()
    worker.gate.set()
    expected: list[int | str] = [1, 2, 3, 4, 5]
    expected[cancelled + 1] = "CancelledError"
    assert await replies([first, *mates]) == expected
    assert images_total(metrics, "cancelled") == 1


async def test_a_caller_that_leaves_while_its_batch_runs_harms_no_one(engine: Engine, worker: FakeWorker) -> None:
    failures = await started(engine)
    worker.shut()
    caller = ask(engine, 1)
    await worker.is_entered()
    caller.cancel()
    assert await replies([caller]) == ["CancelledError"]
    worker.gate.set()
    assert await replies([ask(engine, 2)]) == [2]
    assert failures == []


async def test_a_caller_that_leaves_the_queue_frees_its_place(engine: Engine, worker: FakeWorker) -> None:
    await started(engine)
    worker.shut()
    first = ask(engine, 1)
    await worker.is_entered()
    waiting = await ask_in_turn(engine, range(2, 2 + POLICY.max_queue_size))
    waiting[2].cancel()
    assert await replies([waiting[2]]) == ["CancelledError"]
    assert engine.queue_size == POLICY.max_queue_size - 1
    waiting += await ask_in_turn(engine, [99])
    worker.gate.set()
    assert await replies([first, *waiting]) == [1, 2, 3, "CancelledError", 5, 6, 7, 99]
    assert all(4 not in batch for batch in worker.batches)


async def test_the_mates_of_a_failed_image_succeed(engine: Engine, worker: FakeWorker, metrics: Metrics) -> None:
    failures = await started(engine)
    worker.shut()
    callers = [ask(engine, 1)]
    await worker.is_entered()
    callers += await ask_in_turn(engine, [2, BAD, 4])
    worker.gate.set()
    assert await replies(callers) == [1, 2, "InferenceFailed", 4]
    assert (images_total(metrics, "ok"), images_total(metrics, "error")) == (3, 1)
    assert failures == []


# --- deadlines and admission


async def test_a_deadline_passes_in_the_queue_on_time(engine: Engine, worker: FakeWorker, metrics: Metrics) -> None:
    await started(engine)
    worker.shut()
    first = ask(engine, 1)
    await worker.is_entered()
    loop = asyncio.get_running_loop()
    asked = loop.time()
    late = ask(engine, 2, timeout=0.05)
    assert await replies([late]) == ["DeadlineExceeded"]
    assert loop.time() - asked >= 0.05
    assert engine.queue_size == 0
    worker.gate.set()
    assert await replies([first]) == [1]
    assert worker.batches == [[1]]
    assert images_total(metrics, "expired") == 1


async def test_a_deadline_passes_on_the_device_on_time(engine: Engine, worker: FakeWorker) -> None:
    failures = await started(engine)
    worker.shut()
    loop = asyncio.get_running_loop()
    asked = loop.time()
    late = ask(engine, 1, timeout=0.05)
    await worker.is_entered()
    assert await replies([late]) == ["DeadlineExceeded"]
    assert loop.time() - asked >= 0.05
    assert not worker.gate.is_set()
    worker.gate.set()
    assert await replies([ask(engine, 2)]) == [2]
    assert failures == []


async def test_one_late_caller_leaves_its_batch_mates_alone(engine: Engine, worker: FakeWorker) -> None:
    await started(engine)
    worker.shut()
    first = ask(engine, 1)
    await worker.is_entered()
    callers = [*await ask_in_turn(engine, [2]), *await ask_in_turn(engine, [3], allowed=0.5)]
    await worker.goes_on_to_the_next()
    assert worker.batches == [[1], [2, 3]]
    assert await replies(callers[1:]) == ["DeadlineExceeded"]
    worker.gate.set()
    assert await replies([first, *callers]) == [1, 2, "DeadlineExceeded"]


async def test_a_deadline_that_has_passed_already_is_answered(engine: Engine, worker: FakeWorker) -> None:
    await started(engine)
    worker.shut()
    assert await replies([ask(engine, 1, timeout=-1.0)]) == ["DeadlineExceeded"]


async def test_a_full_queue_refuses_at_once(engine: Engine, worker: FakeWorker, metrics: Metrics) -> None:
    await started(engine)
    worker.shut()
    first = ask(engine, 1)
    await worker.is_entered()
    waiting = await ask_in_turn(engine, range(2, 2 + POLICY.max_queue_size))
    with pytest.raises(QueueFull) as caught:
        await ask(engine, 99)
    assert (caught.value.limit, caught.value.actual) == (6, 7)
    assert caught.value.retry_after is not None
    worker.gate.set()
    assert await replies([first, *waiting]) == [1, 2, 3, 4, 5, 6, 7]
    assert images_total(metrics, "rejected") == 1
    assert sample(metrics, "rejected_total", model="tiny", reason="queue-full") == 1


async def test_the_door_can_be_tried_before_there_is_an_image(
    engine: Engine, worker: FakeWorker, metrics: Metrics
) -> None:
    await started(engine)
    worker.shut()
    engine.check_room("tiny")
    first = ask(engine, 1)
    await worker.is_entered()
    waiting = await ask_in_turn(engine, range(2, 2 + POLICY.max_queue_size))
    with pytest.raises(QueueFull):
        engine.check_room("tiny")
    assert images_total(metrics, "rejected") == 1
    assert sample(metrics, "rejected_total", model="tiny", reason="queue-full") == 1
    worker.gate.set()
    await replies([first, *waiting])
    engine.check_room("tiny")


async def test_a_job_is_charged_its_image_and_what_its_caller_holds(engine: Engine, worker: FakeWorker) -> None:
    await started(engine)
    worker.shut()
    first = ask(engine, 1)
    await worker.is_entered()
    (second,) = await ask_in_turn(engine, [2])
    image = Image(torch.full((32, 48, 3), 3, dtype=torch.uint8), (32, 48), wants_traces=False)
    used, limit = 2 * image.pixels.nbytes + 100, POLICY.max_queue_bytes
    deadline = asyncio.get_running_loop().time() + LONG
    with pytest.raises(QueueFull) as caught:
        await engine.segment("tiny", image, deadline, nbytes=limit - used + 1)
    assert (caught.value.limit, caught.value.actual) == (limit, limit + 1)
    third = asyncio.create_task(engine.segment("tiny", image, deadline, nbytes=limit - used))
    await until(lambda: engine.queue_size == 2)
    worker.gate.set()
    assert await replies([first, second, third]) == [1, 2, 3]


async def test_a_deadline_out_of_reach_is_refused_once_costs_are_known(engine: Engine, worker: FakeWorker) -> None:
    await started(engine)
    for value in range(1, 7):
        assert await replies([ask(engine, value)]) == [value]
    worker.shut()
    first = ask(engine, 1)
    await worker.is_entered()
    with pytest.raises(DeadlineUnreachable):
        await ask(engine, 2, timeout=-LONG)
    worker.gate.set()
    assert await replies([first]) == [1]


async def test_observe_brings_the_gauges_up_to_date(engine: Engine, worker: FakeWorker, metrics: Metrics) -> None:
    await started(engine)
    worker.shut()
    callers = [ask(engine, 1)]
    await worker.is_entered()
    callers += await ask_in_turn(engine, [2, 3])
    engine.observe()
    assert sample(metrics, "queue_depth", model="tiny") == 2
    assert sample(metrics, "device_memory_bytes", device="cpu", kind="allocated") == 5
    worker.gate.set()
    await replies(callers)
    engine.observe()
    assert sample(metrics, "queue_depth", model="tiny") == 0
    assert sample(metrics, "queue_predicted_wait_seconds", model="tiny") == 0


# --- start and stop


async def test_before_the_models_are_loaded_it_is_not_ready(
    engine: Engine, worker: FakeWorker, metrics: Metrics
) -> None:
    worker.shut()
    engine.start(lambda: None)
    await worker.is_entered()
    assert engine.state == "loading"
    with pytest.raises(NotReady, match="loading"):
        await ask(engine, 1)
    with pytest.raises(NotReady, match="loading"):
        engine.check_room("tiny")
    worker.gate.set()
    await until(lambda: engine.state == "ready")
    assert await replies([ask(engine, 2)]) == [2]
    assert sample(metrics, "model_info", model="tiny", dataset="none", classes="11", device="cpu") == 1


async def test_stop_finishes_what_was_accepted_and_takes_no_more(engine: Engine, worker: FakeWorker) -> None:
    await started(engine)
    worker.shut()
    callers = [ask(engine, 1)]
    await worker.is_entered()
    callers += await ask_in_turn(engine, [2, 3, 4, 5, 6])
    stopping = asyncio.create_task(engine.stop(LONG))
    await until(lambda: engine.state == "draining")
    assert await replies([ask(engine, 7)]) == ["NotReady"]
    worker.gate.set()
    assert await replies(callers) == [1, 2, 3, 4, 5, 6]
    await asyncio.wait_for(stopping, 10)
    assert not engine.is_stuck


async def test_stop_refuses_what_is_left_after_the_drain_timeout(
    engine: Engine, worker: FakeWorker, metrics: Metrics
) -> None:
    await started(engine)
    worker.shut()
    callers = [ask(engine, 1)]
    await worker.is_entered()
    callers += await ask_in_turn(engine, [2, 3])
    await asyncio.wait_for(engine.stop(0.05), 10)
    assert await replies(callers) == ["NotReady"] * 3
    assert await replies([ask(engine, 4)]) == ["NotReady"]
    assert images_total(metrics, "rejected") == 4
    assert engine.is_stuck, "the first batch runs still"


async def test_stop_while_loading_is_quick(engine: Engine, worker: FakeWorker) -> None:
    failures: list[str] = []
    worker.shut()
    engine.start(lambda: failures.append("failed"))
    await worker.is_entered()
    await asyncio.wait_for(engine.stop(LONG), 10)
    worker.gate.set()
    assert (engine.state, failures) == ("draining", [])


async def test_stop_without_start(engine: Engine) -> None:
    await asyncio.wait_for(engine.stop(LONG), 10)


# --- a device that breaks


def breaks(worker: FakeWorker) -> None:
    worker.error = RuntimeError("CUDA error: an illegal memory access was encountered")


def answers_too_few(worker: FakeWorker) -> None:
    worker.answers_missing = 1


@pytest.mark.parametrize("fault", [breaks, answers_too_few])
async def test_when_the_device_breaks_everyone_is_answered(
    engine: Engine, worker: FakeWorker, metrics: Metrics, fault: Callable[[FakeWorker], None]
) -> None:
    failures = await started(engine)
    worker.shut()
    callers = [ask(engine, 1)]
    await worker.is_entered()
    callers += await ask_in_turn(engine, [2, 3, 4, 5, 6])
    fault(worker)
    worker.gate.set()
    assert await replies(callers) == ["InferenceFailed"] * 6
    assert (engine.state, failures) == ("failed", ["failed"])
    assert images_total(metrics, "error") == 6
    assert await replies([ask(engine, 7)]) == ["NotReady"]
    await asyncio.wait_for(engine.stop(LONG), 10)
    assert (engine.state, failures) == ("failed", ["failed"])


async def test_models_that_cannot_be_loaded_fail_the_engine(engine: Engine, worker: FakeWorker) -> None:
    worker.error = ServiceError("no such weights")
    failures = await started(engine)
    assert (engine.state, failures) == ("failed", ["failed"])
    assert await replies([ask(engine, 1)]) == ["NotReady"]


async def test_with_an_answer_missing_no_one_gets_anothers(engine: Engine, worker: FakeWorker) -> None:
    await started(engine)
    worker.shut()
    callers = [ask(engine, 1)]
    await worker.is_entered()
    callers += await ask_in_turn(engine, [2, 3, 4])
    await worker.goes_on_to_the_next()
    answers_too_few(worker)
    worker.gate.set()
    assert await replies(callers) == [1, "InferenceFailed", "InferenceFailed", "InferenceFailed"]
