"""Images that need several passes: windows share batches with others', and a caller is answered as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import numpy as np
import pytest
import torch

from app.engine.device import Segmentation
from app.engine.engine import Engine
from app.engine.prepare import prepare
from app.engine.scheduler import Policy
from app.engine.worker import Worker
from app.errors import OutOfMemory
from app.metrics import Metrics
from models import ModelSpec, Segmentor
from models.inference import segment_image
from models.windows import WHOLE, Inference
from tests.app.engine.callers import LONG, Caller, ask, picture, replies, sample, segmented, started, windows
from tests.app.engine.test_prepare import noise
from tests.app.engine.test_worker import fits
from tests.fakes import BAD, FakeDevice, until

POLICY = Policy(max_batch_size=4, max_batch_pixels=1 << 20, max_queue_size=20, max_queue_bytes=1 << 20)
SLIDE = Inference("slide", crop=(16, 16), stride=(12, 12))


@pytest.fixture
def device() -> FakeDevice:
    return FakeDevice()


@pytest.fixture
async def engine(device: FakeDevice, spec: ModelSpec, metrics: Metrics) -> AsyncIterator[Engine]:
    engine = Engine(device, [spec], POLICY, metrics, LONG)
    await started(engine)
    yield engine
    device.gate.set()
    await engine.stop(10)


async def ask_for(engine: Engine, values: Sequence[int], allowed: float = LONG) -> Caller:
    caller = asyncio.create_task(segmented(engine, windows(values), allowed))
    await asyncio.sleep(0)
    return caller


async def busy(engine: Engine, device: FakeDevice) -> Caller:
    device.shut()
    caller = await ask(engine, 1)
    await device.is_entered()
    return caller


async def test_windows_share_batches_with_other_requests(engine: Engine, device: FakeDevice, metrics: Metrics) -> None:
    first = await busy(engine, device)
    callers = [await ask_for(engine, values) for values in ([2, 3, 4, 5, 6], [7, 8], [9])]
    await until(lambda: len(device.staged) == 2)
    assert engine.queue_size == 4, "each pass counts, and four are staged"
    device.gate.set()
    assert await replies([first, *callers]) == [1, 6, 8, 9]
    assert device.batches == [[1], [2, 3, 4, 5], [6, 7, 8, 9]]
    assert sample(metrics, "images_total", model="tiny", outcome="ok") == 4
    assert sample(metrics, "batch_size_sum", model="tiny") == 9


async def test_a_callers_record_is_the_sum_of_its_batches(engine: Engine, device: FakeDevice) -> None:
    first = await busy(engine, device)
    caller = await ask_for(engine, range(2, 9))  # in two batches
    device.gate.set()
    result = (await asyncio.gather(first, caller))[1]
    assert list(result.timings.stages) == ["queue", "forward"]
    assert (result.timings.stages["forward"], result.timings.modules) == (0.02, {"stem": 0.02})


async def test_a_caller_that_leaves_takes_all_its_windows_along(engine: Engine, device: FakeDevice) -> None:
    first = await busy(engine, device)
    leaves, stays = await ask_for(engine, range(2, 9)), await ask_for(engine, [20, 21])
    await until(lambda: len(device.staged) == 2)
    leaves.cancel()
    assert await replies([leaves]) == ["CancelledError"]
    assert engine.queue_size == 2
    device.gate.set()
    assert await replies([first, stays]) == [1, 21]
    assert device.batches == [[1], [20, 21]], "not even those that were staged are run"


async def test_windows_of_a_caller_whose_time_is_up_are_not_run(engine: Engine, device: FakeDevice) -> None:
    first = await busy(engine, device)
    late = await ask_for(engine, range(2, 9), allowed=0.05)
    assert await replies([late]) == ["DeadlineExceeded"]
    assert engine.queue_size == 0
    device.gate.set()
    assert await replies([first, await ask_for(engine, [20, 21])]) == [1, 21]
    assert [2, 3, 4, 5] not in device.batches


async def test_one_bad_window_fails_its_image_alone(engine: Engine, device: FakeDevice) -> None:
    first = await busy(engine, device)
    bad, good = await ask_for(engine, [2, BAD, 3, 4, 5, 6, 7, 8, 9]), await ask_for(engine, [20, 21])
    device.gate.set()
    assert await replies([first, bad, good]) == [1, "InferenceFailed", 21]
    assert engine.queue_size == 0
    assert 9 not in [value for batch in device.batches for value in batch], "what waited still was given up"


async def test_more_windows_than_places_are_refused_at_the_door(engine: Engine, device: FakeDevice) -> None:
    first = await busy(engine, device)
    waiting = await ask_for(engine, range(2, 12))  # four are staged, six wait
    await until(lambda: len(device.staged) == 2)
    refused, fits_still = await ask_for(engine, range(30, 45)), await ask_for(engine, range(30, 44))
    assert await replies([refused]) == ["QueueFull"]
    device.gate.set()
    assert await replies([first, waiting, fits_still]) == [1, 11, 43]


async def test_an_idle_server_takes_more_windows_than_it_has_places(engine: Engine) -> None:
    assert await replies([await ask_for(engine, range(100, 150))]) == [149]


async def test_unload_answers_who_has_windows_left(engine: Engine, device: FakeDevice) -> None:
    first = await busy(engine, device)
    waiting = await ask_for(engine, range(2, 12))
    unload = asyncio.create_task(engine.unload("tiny"))
    assert await replies([waiting]) == ["ModelNotLoaded"]
    device.gate.set()
    await asyncio.wait_for(unload, 60)
    assert await replies([first]) == [1]


async def test_with_a_real_worker_all_kinds_of_callers_get_their_own_masks(
    spec: ModelSpec, segmentor: Segmentor, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.engine.worker.load_model", lambda spec: segmentor)
    worker = Worker("cpu", 1)
    engine = Engine(worker, [spec], Policy(4, 1 << 20, 1000, 1 << 26, worker.slots), metrics, LONG)
    await started(engine)
    inferences = (
        WHOLE,
        SLIDE,
        Inference(scales=(0.5, 1.0), flip=True),
        Inference("slide", (16, 16), (12, 12), (1.25,)),
    )
    callers, expected = [], []
    for index in range(12):
        pixels = np.kron(noise(8 + index % 3, 12 + index % 5), np.ones((4, 4, 1), np.uint8))
        inference = inferences[index % len(inferences)]
        expected.append(segment_image(segmentor, torch.from_numpy(pixels), spec.preprocessing, inference)[0].numpy())
        callers.append(segmented(engine, prepare(pixels, spec, inference, wants_traces=False)))
    results = await asyncio.gather(*callers)
    await engine.stop(10)
    for result, ids in zip(results, expected, strict=True):
        assert (result.mask == ids).mean() > 0.999


async def test_windows_that_do_not_fit_together_are_run_in_halves(
    spec: ModelSpec, segmentor: Segmentor, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    check = fits(2, sizes)
    monkeypatch.setattr("app.engine.worker.load_model", lambda spec: segmentor)
    engine = Engine(Worker("cpu", 1), [spec], POLICY, metrics, LONG)
    await started(engine)
    segmentor.register_forward_pre_hook(lambda module, inputs: check(inputs[0]))
    pixels = np.kron(noise(8, 12), np.ones((4, 4, 1), np.uint8))
    result = await segmented(engine, prepare(pixels, spec, SLIDE, wants_traces=False))
    await engine.stop(10)
    assert max(sizes) == 4
    ids, _ = segment_image(segmentor, torch.from_numpy(pixels), spec.preprocessing, SLIDE)
    assert (result.mask == ids.numpy()).mean() > 0.999


async def test_a_mask_that_does_not_fit_fails_alone(
    spec: ModelSpec, segmentor: Segmentor, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    def merge(self: object, *, align_corners: bool) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("app.engine.worker.load_model", lambda spec: segmentor)
    monkeypatch.setattr("app.engine.assembly.Assembly.merge", merge)
    engine = Engine(Worker("cpu", 1), [spec], POLICY, metrics, LONG)
    await started(engine)
    images = prepare(noise(32, 48), spec, SLIDE, wants_traces=False)
    ends = await asyncio.gather(segmented(engine, images), segmented(engine, picture(1)), return_exceptions=True)
    await engine.stop(10)
    assert isinstance(ends[0], OutOfMemory)
    assert isinstance(ends[1], Segmentation)
