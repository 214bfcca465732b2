from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from app.engine.device import Segmentation
from app.engine.engine import Engine
from app.engine.scheduler import Policy
from app.engine.staging import Image
from app.engine.worker import Worker
from app.errors import DeadlineExceeded, DeadlineUnreachable, NotReady, QueueFull, UnknownModel
from app.metrics import Metrics
from models import ModelSpec, Segmentor
from models.inference import segment_image
from models.transforms import resize
from tests.app.engine.callers import (
    LONG,
    NBYTES,
    ask,
    asked,
    images_total,
    picture,
    replies,
    sample,
    segmented,
    started,
)
from tests.fakes import BAD, FakeDevice, until

POLICY = Policy(max_batch_size=4, max_batch_pixels=1 << 20, max_queue_size=6, max_queue_bytes=1 << 20)
TWO_SLOTS = Policy(max_batch_size=1, max_batch_pixels=1 << 20, max_queue_size=6, max_queue_bytes=1 << 20, slots=2)
AHEAD = [2, 3, 4, 5]  # a full batch, which is staged while the one before it runs


@pytest.fixture
def device() -> FakeDevice:
    return FakeDevice()


@pytest.fixture
async def engine(device: FakeDevice, spec: ModelSpec, metrics: Metrics) -> AsyncIterator[Engine]:
    """Not yet started."""
    engine = Engine(device, [spec], POLICY, metrics, LONG)
    yield engine
    device.gate.set()
    await engine.stop(10)


@pytest.fixture
async def two_slots(device: FakeDevice, spec: ModelSpec, metrics: Metrics) -> AsyncIterator[Engine]:
    device.slots = 2
    engine = Engine(device, [spec], TWO_SLOTS, metrics, LONG)
    yield engine
    device.gate.set()
    await engine.stop(10)


def prepared(spec: ModelSpec, pixels: NDArray[np.uint8], *, wants_traces: bool) -> Image:
    original = pixels.shape[0], pixels.shape[1]
    resized = resize(torch.from_numpy(pixels), spec.preprocessing.input_size(original))
    return Image(resized, original, wants_traces)


async def held(engine: Engine, device: FakeDevice, value: int = 1) -> asyncio.Task[Segmentation]:
    """A caller whose image is on the device, which is busy with it until its gate is opened."""
    device.shut()
    caller = await ask(engine, value)
    await device.is_entered()
    return caller


# --- results


async def test_results_go_to_their_own_caller(engine: Engine, device: FakeDevice, metrics: Metrics) -> None:
    await started(engine)
    for values in (range(20, 26), range(30, 36)):
        assert await replies(await asked(engine, values)) == list(values)
    assert all(len(batch) <= POLICY.max_batch_size for batch in device.batches)
    assert images_total(metrics, "ok") == 12


async def test_what_waits_while_the_device_is_busy_becomes_one_batch(engine: Engine, device: FakeDevice) -> None:
    await started(engine)
    callers = [await held(engine, device), *await asked(engine, [2, 3, 4, 5, 6])]
    assert not engine.is_stuck
    device.gate.set()
    assert await replies(callers) == [1, 2, 3, 4, 5, 6]
    assert device.batches == [[1], [2, 3, 4, 5], [6]]


async def test_images_come_back_at_their_own_size(engine: Engine) -> None:
    await started(engine)
    for original in ((64, 96), (7, 200), (1, 1)):
        result = await segmented(engine, picture(9, original))
        assert result.mask.shape == original


async def test_each_result_has_its_own_record_of_timings(engine: Engine, device: FakeDevice, metrics: Metrics) -> None:
    await started(engine)
    callers = [await held(engine, device), *await asked(engine, [2, 3])]
    device.gate.set()
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


async def test_an_unknown_model_is_named_and_not_counted(engine: Engine, metrics: Metrics) -> None:
    """Or callers could make series of any name."""
    for start in (False, True):
        if start:
            await started(engine)
        with pytest.raises(UnknownModel, match=r"'nope'.*tiny"), engine.admitted("nope", "a", 0, LONG):
            pass
    assert sample(metrics, "images_total", model="nope", outcome="rejected") is None


async def test_with_a_real_worker_many_callers_get_their_own_masks(
    spec: ModelSpec, segmentor: Segmentor, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.engine.worker.load_model", lambda spec: segmentor)
    worker = Worker("cpu", 1)
    engine = Engine(worker, [spec], Policy(4, 1 << 20, 64, 1 << 24, worker.slots), metrics, LONG)
    await started(engine)
    rng = np.random.default_rng(0)
    shapes = [(32, 48), (40, 60), (48, 32), (90, 60), (33, 50), (16, 24)] * 2
    pictures = [np.kron(rng.integers(0, 256, (4, 4, 3)), np.ones((h // 4, w // 4, 1))) for h, w in shapes]
    arrays = [picture.astype(np.uint8) for picture in pictures]
    results = await asyncio.gather(
        *(segmented(engine, prepared(spec, pixels, wants_traces=index % 2 == 0)) for index, pixels in enumerate(arrays))
    )
    await engine.stop(10)
    for index, (pixels, result) in enumerate(zip(arrays, results, strict=True)):
        ids, _ = segment_image(segmentor, torch.from_numpy(pixels), spec.preprocessing)
        assert (result.mask == ids.numpy()).mean() > 0.999
        assert len(result.traces) == (2 if index % 2 == 0 else 0)


# --- batches on the device, and the one ahead of them


async def test_two_slots_run_side_by_side(two_slots: Engine, device: FakeDevice) -> None:
    await started(two_slots)
    device.shut()
    callers = await asked(two_slots, [1, 2, 3, 4])
    await until(lambda: len(device.batches) == 2 and len(device.staged) == 3)
    assert device.batches in ([[1], [2]], [[2], [1]])
    assert [3] in device.staged, "the next one is ready"
    assert two_slots.queue_size == 1
    device.gate.set()
    assert await replies(callers) == [1, 2, 3, 4]


async def test_a_full_batch_is_staged_while_one_runs(engine: Engine, device: FakeDevice) -> None:
    await started(engine)
    callers = [await held(engine, device), *await asked(engine, AHEAD[:-1])]
    assert engine.queue_size == 3, "it may grow yet"
    callers += await asked(engine, AHEAD[-1:])
    await until(lambda: device.staged == [[1], AHEAD])
    assert device.batches == [[1]], "one at a time is run"
    callers += await asked(engine, [6, 7, 8, 9])
    assert engine.queue_size == 4, "one ahead is enough"
    device.gate.set()
    assert await replies(callers) == list(range(1, 10))
    assert device.batches == [[1], AHEAD, [6, 7, 8, 9]]


async def test_who_leaves_while_its_batch_is_staged_is_not_run(
    engine: Engine, device: FakeDevice, metrics: Metrics
) -> None:
    await started(engine)
    first, ahead = await held(engine, device), await asked(engine, AHEAD)
    await until(lambda: AHEAD in device.staged)
    ahead[1].cancel()
    assert await replies([ahead[1]]) == ["CancelledError"]
    device.gate.set()
    assert await replies([first, *ahead]) == [1, 2, "CancelledError", 4, 5]
    assert device.batches == [[1], [2, 4, 5]]
    assert sample(metrics, "batch_size_sum", model="tiny") == 4
    assert sample(metrics, "wasted_seconds_total", model="tiny") == 0


async def test_a_staged_batch_without_callers_is_not_run(engine: Engine, device: FakeDevice, metrics: Metrics) -> None:
    await started(engine)
    first, ahead = await held(engine, device), await asked(engine, AHEAD)
    await until(lambda: AHEAD in device.staged)
    for caller in ahead:
        caller.cancel()
    assert await replies(ahead) == ["CancelledError"] * 4
    device.gate.set()
    assert await replies([first, await ask(engine, 6)]) == [1, 6]
    assert device.batches == [[1], [6]]
    assert sample(metrics, "batch_size_count", model="tiny") == 2


async def test_who_expires_while_its_batch_is_staged_is_not_run(engine: Engine, device: FakeDevice) -> None:
    await started(engine)
    first, ahead = await held(engine, device), await asked(engine, AHEAD[:-1])
    hurried = await ask(engine, AHEAD[-1], allowed=0.05)
    await until(lambda: AHEAD in device.staged)
    assert await replies([hurried]) == ["DeadlineExceeded"]
    device.gate.set()
    assert await replies([first, *ahead]) == [1, 2, 3, 4]
    assert device.batches == [[1], [2, 3, 4]]


# --- callers that leave, images that fail


@pytest.mark.parametrize("cancelled", [0, 1, 3])
async def test_one_cancelled_caller_leaves_its_batch_mates_alone(
    engine: Engine, device: FakeDevice, metrics: Metrics, cancelled: int
) -> None:
    await started(engine)
    first, mates = await held(engine, device), await asked(engine, AHEAD)
    await device.goes_on_to_the_next()
    mates[cancelled].cancel()
    device.gate.set()
    expected: list[int | str] = [1, 2, 3, 4, 5]
    expected[cancelled + 1] = "CancelledError"
    assert await replies([first, *mates]) == expected
    assert images_total(metrics, "cancelled") == 1


async def test_a_caller_that_leaves_while_its_batch_runs_harms_no_one(engine: Engine, device: FakeDevice) -> None:
    failures = await started(engine)
    caller = await held(engine, device)
    caller.cancel()
    assert await replies([caller]) == ["CancelledError"]
    device.gate.set()
    assert await replies([await ask(engine, 2)]) == [2]
    assert failures == []


async def test_time_spent_on_lost_callers_is_counted(engine: Engine, device: FakeDevice, metrics: Metrics) -> None:
    def seconds() -> tuple[float, float]:
        busy = sample(metrics, "device_busy_seconds_total", device="cpu") or 0.0
        return busy, sample(metrics, "wasted_seconds_total", model="tiny") or 0.0

    await started(engine)
    first, (stays, leaves) = await held(engine, device), await asked(engine, [2, 3])
    await device.goes_on_to_the_next()
    assert await replies([first]) == [1]
    busy, wasted = seconds()
    assert (busy > 0, wasted) == (True, 0.0)
    leaves.cancel()
    late = await ask(engine, 4, allowed=0.05)
    assert await replies([leaves, late]) == ["CancelledError", "DeadlineExceeded"]
    device.gate.set()
    assert await replies([stays]) == [2]
    assert device.batches == [[1], [2, 3]], "who expired in the queue was not run"
    assert seconds()[1] == pytest.approx((seconds()[0] - busy) / 2), "one of the two was run for nobody"


async def test_a_caller_that_leaves_the_queue_frees_its_place(engine: Engine, device: FakeDevice) -> None:
    await started(engine)
    callers = [await held(engine, device), *await asked(engine, AHEAD)]
    waiting = await asked(engine, range(6, 6 + POLICY.max_queue_size))
    waiting[2].cancel()
    assert await replies([waiting[2]]) == ["CancelledError"]
    assert engine.queue_size == POLICY.max_queue_size - 1
    waiting += await asked(engine, [99])
    device.gate.set()
    assert await replies([*callers, *waiting]) == [1, *AHEAD, 6, 7, "CancelledError", 9, 10, 11, 99]
    assert all(8 not in batch for batch in device.batches)


async def test_a_caller_that_leaves_before_its_image_is_decoded_frees_its_place(
    engine: Engine, device: FakeDevice, metrics: Metrics
) -> None:
    await started(engine)
    arriving = await asked(engine, [1, 2], decoded=asyncio.Event())
    assert engine.queue_size == 2
    for caller in arriving:
        caller.cancel()
    assert await replies(arriving) == ["CancelledError"] * 2
    assert engine.queue_size == 0
    assert images_total(metrics, "cancelled") == 2
    assert device.staged == []


async def test_the_mates_of_a_failed_image_succeed(engine: Engine, device: FakeDevice, metrics: Metrics) -> None:
    failures = await started(engine)
    callers = [await held(engine, device), *await asked(engine, [2, BAD, 4])]
    device.gate.set()
    assert await replies(callers) == [1, 2, "InferenceFailed", 4]
    assert (images_total(metrics, "ok"), images_total(metrics, "error")) == (3, 1)
    assert failures == []


# --- deadlines and admission


async def test_a_deadline_passes_in_the_queue_on_time(engine: Engine, device: FakeDevice, metrics: Metrics) -> None:
    await started(engine)
    first = await held(engine, device)
    before = time.monotonic()
    assert await replies([await ask(engine, 2, allowed=0.05)]) == ["DeadlineExceeded"]
    assert time.monotonic() - before >= 0.05
    assert engine.queue_size == 0
    device.gate.set()
    assert await replies([first]) == [1]
    assert device.batches == [[1]]
    assert images_total(metrics, "expired") == 1


async def test_a_deadline_passes_on_the_device_on_time(engine: Engine, device: FakeDevice) -> None:
    failures = await started(engine)
    device.shut()
    before = time.monotonic()
    late = await ask(engine, 1, allowed=0.05)
    assert await replies([late]) == ["DeadlineExceeded"]
    assert time.monotonic() - before >= 0.05
    assert not device.gate.is_set()
    device.gate.set()
    assert await replies([await ask(engine, 2)]) == [2]
    assert failures == []


async def test_a_deadline_passes_before_the_image_is_decoded(
    engine: Engine, device: FakeDevice, metrics: Metrics
) -> None:
    await started(engine)
    decoded = asyncio.Event()
    callers = await asked(engine, [1], allowed=0.02, decoded=decoded)
    await until(lambda: engine.queue_size == 0)
    decoded.set()
    assert await replies(callers) == ["DeadlineExceeded"]
    assert device.staged == []
    assert images_total(metrics, "expired") == 1


async def test_one_late_caller_leaves_its_batch_mates_alone(engine: Engine, device: FakeDevice) -> None:
    await started(engine)
    callers = [await held(engine, device), await ask(engine, 2), await ask(engine, 3, allowed=0.5)]
    await device.goes_on_to_the_next()
    assert device.batches == [[1], [2, 3]]
    assert await replies(callers[2:]) == ["DeadlineExceeded"]
    device.gate.set()
    assert await replies(callers) == [1, 2, "DeadlineExceeded"]


async def test_of_who_has_been_answered_no_deadline_passes(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or each request would look through the whole queue once more, long after it was answered."""
    passed: list[float] = []
    monkeypatch.setattr(engine, "_expire", passed.append)
    await started(engine)
    assert await replies([await ask(engine, 1, allowed=0.3)]) == [1]
    await asyncio.sleep(0.4)
    assert passed == []


async def test_a_deadline_that_has_passed_already_is_answered(engine: Engine, device: FakeDevice) -> None:
    await started(engine)
    device.shut()
    assert await replies([await ask(engine, 1, allowed=-1.0)]) == ["DeadlineExceeded"]


async def test_a_full_queue_refuses_at_once(engine: Engine, device: FakeDevice, metrics: Metrics) -> None:
    await started(engine)
    callers = [await held(engine, device), *await asked(engine, range(2, 6 + POLICY.max_queue_size))]
    with pytest.raises(QueueFull) as caught:
        await segmented(engine, picture(99))
    assert (caught.value.limit, caught.value.actual) == (6, 7)
    assert caught.value.retry_after is not None
    device.gate.set()
    assert await replies(callers) == list(range(1, 12))
    assert images_total(metrics, "rejected") == 1
    assert sample(metrics, "rejected_total", model="tiny", reason="queue-full") == 1


async def test_images_that_are_not_decoded_yet_have_places(engine: Engine, device: FakeDevice) -> None:
    await started(engine)
    decoded = asyncio.Event()
    arriving = await asked(engine, range(POLICY.max_queue_size), decoded=decoded)
    assert await replies([await ask(engine, 99)]) == ["QueueFull"]
    decoded.set()
    assert await replies(arriving) == list(range(POLICY.max_queue_size))


async def test_the_door_can_be_tried_before_there_is_an_image(
    engine: Engine, device: FakeDevice, metrics: Metrics
) -> None:
    await started(engine)
    engine.check_room("tiny", "a", NBYTES, time.monotonic() + LONG)
    callers = [await held(engine, device), *await asked(engine, range(2, 6 + POLICY.max_queue_size))]
    with pytest.raises(QueueFull):
        engine.check_room("tiny", "b", NBYTES, time.monotonic() + LONG)
    assert images_total(metrics, "rejected") == 1
    assert sample(metrics, "rejected_total", model="tiny", reason="queue-full") == 1
    device.gate.set()
    await replies(callers)
    engine.check_room("tiny", "c", NBYTES, time.monotonic() + LONG)


async def test_a_job_is_charged_its_image_and_what_its_caller_holds(engine: Engine, device: FakeDevice) -> None:
    await started(engine)
    callers = [await held(engine, device), *await asked(engine, [2])]
    image = picture(3)
    used, limit = 2 * image.pixels.nbytes + NBYTES, POLICY.max_queue_bytes
    with pytest.raises(QueueFull) as caught:
        await segmented(engine, image, nbytes=limit - used + 1)
    assert (caught.value.limit, caught.value.actual) == (limit, limit + 1)
    assert engine.queue_size == 1, "it lost the place that it had before its image was known"
    callers.append(asyncio.create_task(segmented(engine, image, nbytes=limit - used)))
    await until(lambda: engine.queue_size == 2)
    device.gate.set()
    assert await replies(callers) == [1, 2, 3]


async def test_who_comes_back_is_charged_its_image_once(engine: Engine, device: FakeDevice) -> None:
    await started(engine)
    callers = [await held(engine, device), *await asked(engine, [2])]
    image = picture(3)
    nbytes = POLICY.max_queue_bytes - 2 * image.pixels.nbytes - NBYTES + 1
    with pytest.raises(QueueFull):
        await segmented(engine, image, nbytes=nbytes, caller="x")
    device.gate.set()
    assert await replies(callers) == [1, 2]
    callers = [await held(engine, device), asyncio.create_task(segmented(engine, image, nbytes=nbytes, caller="x"))]
    callers.append(asyncio.create_task(segmented(engine, picture(4), nbytes=NBYTES - 1)))
    await until(lambda: engine.queue_size == 2)
    device.gate.set()
    assert await replies(callers) == [1, 3, 4]


async def test_a_deadline_out_of_reach_is_refused_once_costs_are_known(engine: Engine, device: FakeDevice) -> None:
    await started(engine)
    for value in range(1, 7):
        assert await replies([await ask(engine, value)]) == [value]
    first = await held(engine, device)
    with pytest.raises(DeadlineUnreachable):
        await segmented(engine, picture(2), allowed=-LONG)
    device.gate.set()
    assert await replies([first]) == [1]


async def test_answers_are_compared_with_what_was_predicted(
    engine: Engine, device: FakeDevice, metrics: Metrics
) -> None:
    await started(engine)
    for value in range(1, 12):
        assert await replies([await ask(engine, value)]) == [value]
    assert 0 < (sample(metrics, "wait_ratio_count", model="tiny") or 0) < 11, "the first ones had no prediction"


@pytest.mark.parametrize(("error", "learns"), [(DeadlineExceeded("encoded late"), True), (OSError("hung up"), False)])
async def test_an_answer_given_up_as_late_is_learnt_from(engine: Engine, error: Exception, learns: bool) -> None:
    await started(engine)
    for value in range(1, 7):
        assert await replies([await ask(engine, value)]) == [value]
    with contextlib.suppress(type(error)), engine.admitted("tiny", "a", NBYTES, time.monotonic() + LONG) as job:
        assert job.predicted is not None
        raise error
    assert (job.predicted is None) is learns, "it is compared once"


async def test_turns_are_compared_with_what_was_promised(engine: Engine, device: FakeDevice, metrics: Metrics) -> None:
    await started(engine)
    callers = [await held(engine, device), *await asked(engine, range(2, 6 + POLICY.max_queue_size))]
    assert await replies(await asked(engine, [97, 98])) == ["QueueFull"] * 2
    assert sample(metrics, "retry_after_ratio_count") == 0
    device.gate.set()
    assert await replies(callers) == list(range(1, 12))
    assert sample(metrics, "retry_after_ratio_count") == 2


async def test_observe_brings_the_gauges_up_to_date(engine: Engine, device: FakeDevice, metrics: Metrics) -> None:
    await started(engine)
    callers = [await held(engine, device), *await asked(engine, [2, 3])]
    engine.observe()
    assert sample(metrics, "queue_depth", model="tiny") == 2
    assert sample(metrics, "device_memory_bytes", device="cpu", kind="allocated") == 5
    device.gate.set()
    await replies(callers)
    engine.observe()
    assert sample(metrics, "queue_depth", model="tiny") == 0
    assert sample(metrics, "queue_predicted_wait_seconds", model="tiny") == 0


async def test_two_slots_count_as_one_device(two_slots: Engine, device: FakeDevice, metrics: Metrics) -> None:
    await started(two_slots)
    device.shut()
    before = time.monotonic()
    callers = await asked(two_slots, [1, 2])
    await until(lambda: len(device.batches) == 2)
    await asyncio.sleep(0.2)
    device.gate.set()
    assert await replies(callers) == [1, 2]
    busy = sample(metrics, "device_busy_seconds_total", device="cpu")
    assert busy is not None
    assert 0.2 <= busy <= time.monotonic() - before, "no device is busy for longer than there is time"


# --- start and stop


async def test_before_the_models_are_loaded_it_is_not_ready(
    engine: Engine, device: FakeDevice, metrics: Metrics
) -> None:
    device.shut()
    engine.start(lambda: None)
    await device.is_entered()
    assert engine.state == "loading"
    with pytest.raises(NotReady, match="loading"):
        await segmented(engine, picture(1))
    with pytest.raises(NotReady, match="loading"):
        engine.check_room("tiny", "a", NBYTES, time.monotonic() + LONG)
    device.gate.set()
    await until(lambda: engine.state == "ready")
    assert await replies([await ask(engine, 2)]) == [2]
    assert sample(metrics, "model_info", model="tiny", dataset="none", classes="11", device="cpu") == 1


async def test_stop_finishes_what_was_accepted_and_takes_no_more(engine: Engine, device: FakeDevice) -> None:
    await started(engine)
    decoded = asyncio.Event()
    callers = [await held(engine, device), *await asked(engine, [2, 3, 4, 5, 6])]
    callers += await asked(engine, [7, 8], decoded=decoded)
    stopping = asyncio.create_task(engine.stop(LONG))
    await until(lambda: engine.state == "draining")
    assert await replies([await ask(engine, 9)]) == ["NotReady"]
    device.gate.set()
    assert await replies(callers[:6]) == [1, 2, 3, 4, 5, 6]
    assert not stopping.done(), "two images are decoded still"
    decoded.set()
    assert await replies(callers) == [1, 2, 3, 4, 5, 6, 7, 8]
    await asyncio.wait_for(stopping, 60)
    assert not engine.is_stuck
    with pytest.raises(RuntimeError):
        engine._threads.call(int)  # they have ended


async def test_a_batch_that_has_outlived_its_callers_ends_before_the_engine(engine: Engine, device: FakeDevice) -> None:
    """Or a process that is asked to end would say that its device is stuck."""
    await started(engine)
    device.shut()
    late = await ask(engine, 1, allowed=0.05)
    await device.is_entered()
    assert await replies([late]) == ["DeadlineExceeded"]
    stopping = asyncio.create_task(engine.stop(LONG))
    done, _ = await asyncio.wait([stopping], timeout=0.1)
    assert not done
    assert engine.is_stuck
    device.gate.set()
    await asyncio.wait_for(stopping, 60)
    assert not engine.is_stuck


async def test_stop_refuses_what_is_left_after_the_drain_timeout(
    engine: Engine, device: FakeDevice, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "app.engine.engine")
    await started(engine)
    decoded = asyncio.Event()
    callers = [await held(engine, device), *await asked(engine, [2, 3]), *await asked(engine, [4], decoded=decoded)]
    await asyncio.wait_for(engine.stop(0.05), 60)
    assert "drained: 0 images finished, 4 refused" in caplog.text
    decoded.set()
    assert await replies(callers) == ["NotReady"] * 4
    assert await replies([await ask(engine, 5)]) == ["NotReady"]
    assert images_total(metrics, "rejected") == 5
    assert engine.is_stuck, "the first batch runs still"


async def test_a_batch_that_stop_keeps_from_beginning_is_no_failure(
    engine: Engine, device: FakeDevice, caplog: pytest.LogCaptureFixture
) -> None:
    failures = await started(engine)
    callers = [await held(engine, device), *await asked(engine, AHEAD)]
    await until(lambda: AHEAD in device.staged)
    await asyncio.wait_for(engine.stop(0.05), 60)
    assert await replies(callers) == ["NotReady"] * 5
    device.gate.set()
    await until(lambda: not engine.is_stuck)
    assert (engine.state, failures, device.batches) == ("draining", [], [[1]])
    assert [record.message for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")] == []


async def test_stop_while_loading_is_quick(engine: Engine, device: FakeDevice) -> None:
    failures: list[str] = []
    device.shut()
    engine.start(lambda: failures.append("failed"))
    await device.is_entered()
    await asyncio.wait_for(engine.stop(LONG), 30)
    device.gate.set()
    assert (engine.state, failures) == ("draining", [])


async def test_stop_without_start(engine: Engine) -> None:
    await asyncio.wait_for(engine.stop(LONG), 30)


# --- traces


async def test_the_log_holds_a_trace_of_the_traffic(
    engine: Engine, device: FakeDevice, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "app.engine.accounts")
    await started(engine)
    device.shut()
    callers = await asked(engine, range(1, 2 + 4 + POLICY.max_queue_size))  # one runs, four are staged
    with pytest.raises(QueueFull):
        engine.check_room("tiny", "late", 77, time.monotonic() + LONG)
    device.gate.set()
    await replies(callers)
    lines = [
        json.loads(record.message.removeprefix("trace ")) for record in caplog.records if "trace" in record.message
    ]
    refused = [line for line in lines if line["height"] is None]
    assert [(line["nbytes"], line["width"], line["decode"]) for line in refused] == [(77, None, 0.0)]
    done = [line for line in lines if line["height"] is not None]
    assert {(line["model"], line["height"], line["width"], line["nbytes"]) for line in done} == {
        ("tiny", 32, 48, NBYTES)
    }
    assert all(line["deadline"] == pytest.approx(LONG, abs=1) for line in lines)
