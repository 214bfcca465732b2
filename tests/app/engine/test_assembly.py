"""Passes in any order, on any thread, put together as the pure functions of `models` have it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from app.engine.assembly import Assembly
from app.engine.device import Partial, Segmentation
from app.engine.prepare import prepare
from app.engine.worker import Worker
from models import ModelSpec, Segmentor
from models.inference import segment_image
from models.windows import Inference, View, Window
from tests.app.engine.test_prepare import noise

INFERENCES = (
    Inference("slide", crop=(16, 16), stride=(12, 12)),
    Inference("slide", crop=(32, 24), stride=(20, 13), scales=(0.75, 1.5), flip=True),
    Inference(scales=(0.5, 1.0, 1.75), flip=True),
    Inference(scales=(2.0,)),
    Inference(flip=True),
    Inference("slide", crop=(40, 24), stride=(20, 13), scales=(1.0, 1.5), below_crop="pad", average="logits"),
    Inference("slide", crop=(40, 24), stride=(20, 13), scales=(1.0, 1.5), below_crop="whole", upsampling="bicubic"),
    Inference("slide", crop=(64, 64), stride=(20, 13), flip=True, below_crop="pad"),
    Inference(upsampling="once"),
    Inference(upsampling="bicubic"),
)


@pytest.mark.parametrize("inference", INFERENCES, ids=str)
@pytest.mark.parametrize("size", [(64, 96), (45, 31)])
def test_masks_are_those_of_the_pure_functions(
    worker: Worker, segmentor: Segmentor, spec: ModelSpec, inference: Inference, size: tuple[int, int]
) -> None:
    pixels = np.kron(noise(size[0] // 4, size[1] // 4), np.ones((4, 4, 1), np.uint8))
    images = prepare(pixels, spec, inference, wants_traces=False)
    order = np.random.default_rng(1).permutation(len(images))
    outcomes = [worker.run("tiny", worker.stage([images[index]])).outcomes[0] for index in order]
    assert [type(outcome) for outcome in outcomes] == [Partial] * (len(images) - 1) + [Segmentation]
    assert isinstance(outcomes[-1], Segmentation)
    ids, confidence = segment_image(segmentor, torch.from_numpy(pixels), spec.preprocessing, inference)
    assert len(np.unique(ids)) > 1
    assert (outcomes[-1].mask == ids.numpy()).mean() > 0.999
    assert np.abs(outcomes[-1].confidence.astype(int) - confidence.numpy()).max() <= 2


def test_windows_of_two_images_share_a_batch(worker: Worker, segmentor: Segmentor, spec: ModelSpec) -> None:
    pictures = [np.kron(noise(8, 12 + 4 * wider), np.ones((4, 4, 1), np.uint8)) for wider in (0, 1)]
    parts = [prepare(pixels, spec, INFERENCES[0], wants_traces=False) for pixels in pictures]
    both = [*parts[0], *parts[1]]
    mixed = [both[index] for index in np.random.default_rng(2).permutation(len(both))]
    outcomes = worker.run("tiny", worker.stage(mixed)).outcomes
    results = [outcome for outcome in outcomes if isinstance(outcome, Segmentation)]
    assert len(results) == 2
    for result, pixels in zip(sorted(results, key=lambda result: result.mask.shape), pictures, strict=True):
        ids, _ = segment_image(segmentor, torch.from_numpy(pixels), spec.preprocessing, INFERENCES[0])
        assert (result.mask == ids.numpy()).mean() > 0.999


def test_traces_come_with_the_mask_whichever_pass_is_last(worker: Worker, spec: ModelSpec) -> None:
    images = prepare(noise(32, 48), spec, Inference(scales=(1.0, 0.5)), wants_traces=True)
    for order in ((0, 1), (1, 0)):
        outcomes = [worker.run("tiny", worker.stage([images[index]])).outcomes[0] for index in order]
        assert isinstance(outcomes[-1], Segmentation)
        assert [trace.step for trace in outcomes[-1].traces] == [1, 2]


@pytest.mark.parametrize("attempt", range(20))
def test_one_of_many_threads_sees_that_all_are_there(attempt: int) -> None:
    view = View((4, 400), False, tuple(Window(0, left, 4, left + 4) for left in range(0, 400, 4)))
    assembly = Assembly((view,), (4, 400))
    with ThreadPoolExecutor(8) as threads:
        done = list(threads.map(lambda part: assembly.add(part, torch.full((2, 1, 1), float(part)), ()), range(100)))
    assert done.count(True) == 1


def test_what_waits_keeps_no_batch_alive() -> None:
    view = View((4, 8), False, (Window(0, 0, 4, 4), Window(0, 4, 4, 8)))
    assembly = Assembly((view,), (4, 8))
    batch = torch.zeros(8, 2, 1, 1)
    assembly.add(0, batch[3], ())
    assert assembly._logits[0].untyped_storage().nbytes() == batch[3].nbytes


def test_a_pass_that_is_run_again_counts_once() -> None:
    view = View((4, 8), False, (Window(0, 0, 4, 4), Window(0, 4, 4, 8)))
    assembly = Assembly((view,), (4, 8))
    first, second = torch.tensor([1.0, 0.0]).view(2, 1, 1), torch.tensor([0.0, 1.0]).view(2, 1, 1)
    assert not assembly.add(0, second, ())
    assert not assembly.add(0, first, ())
    assert assembly.add(1, second, ())
    ids, _ = assembly.merge(align_corners=False)
    assert ids.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]] * 4
