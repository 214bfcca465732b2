from __future__ import annotations

import copy
import gc
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from app.engine.device import Outcome, Ran, Segmentation
from app.engine.memory import settle
from app.engine.staging import Image
from app.engine.worker import NICENESS, Worker
from app.errors import InferenceFailed, OutOfMemory
from models import CheckpointError, ModelSpec, Segmentor
from models.backbones.mobilenet import MobileNetV2
from models.heads.ccnet import CCHead
from models.inference import segment_image
from models.ops.criss_cross import criss_cross_attention_reference
from models.ops.upsample import upsample_argmax, upsample_argmax_reference
from models.transforms import IMAGENET_MEAN, IMAGENET_STD

INPUT = (32, 48)
ORIGINALS = ((32, 48), (64, 96), (31, 47), (100, 150), (8, 12), (32, 48), (40, 60), (33, 50))
POISON = 255  # no other pixel of these images is as bright


def pictures(count: int = 8, *, traces: Sequence[int] = (), poisoned: Sequence[int] = ()) -> list[Image]:
    generator = torch.Generator().manual_seed(1)
    images = []
    for index in range(count):
        # Coarse patches: ids then differ from one picture to the next.
        patches = torch.randint(0, 250, (1, 3, 4, 6), generator=generator).float()
        pixels = nn.functional.interpolate(patches, INPUT)[0].permute(1, 2, 0).to(torch.uint8).contiguous()
        if index in poisoned:
            pixels[0, 0] = POISON
        images.append(Image(pixels, ORIGINALS[index], index in traces))
    return images


def ran(worker: Worker, images: Sequence[Image], model: str = "tiny") -> Ran:
    return worker.run(model, worker.stage(images))


def outcomes_of(worker: Worker, images: Sequence[Image]) -> list[Outcome]:
    return ran(worker, images).outcomes


def succeeded(outcomes: Sequence[Outcome]) -> list[Segmentation]:
    results = [outcome for outcome in outcomes if isinstance(outcome, Segmentation)]
    assert len(results) == len(outcomes)
    return results


def agreement(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    assert one.shape == other.shape
    return float((one == other).mean())


def on_every_pass(segmentor: Segmentor, check: Callable[[Tensor], None]) -> None:
    segmentor.register_forward_pre_hook(lambda module, inputs: check(inputs[0]))


def raise_on_poison(batch: Tensor) -> None:
    # 254 in blue, the channel that normalisation leaves brightest.
    if batch.max() > (POISON - 1 - IMAGENET_MEAN[2]) / IMAGENET_STD[2]:
        raise RuntimeError("poisoned")


def fits(limit: int, sizes: list[int]) -> Callable[[Tensor], None]:
    """A device with memory for so many images at a time; notes what it was asked for."""

    def check(batch: Tensor) -> None:
        sizes.append(len(batch))
        if len(batch) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")

    return check


# --- results


def test_a_batch_gives_what_its_images_give_alone(worker: Worker) -> None:
    images = pictures()
    together = succeeded(outcomes_of(worker, images))
    alone = [succeeded(outcomes_of(worker, [image]))[0] for image in images]
    for index, (one, other) in enumerate(zip(together, alone, strict=True)):
        # Sums in another order may tip the scales where two classes are even.
        assert agreement(one.mask, other.mask) > 0.999
        assert np.abs(one.confidence.astype(int) - other.confidence).max() <= 2
        assert one.mask.shape == one.confidence.shape == ORIGINALS[index]
    # The test would see results in the wrong order: no two pictures of one size look alike.
    assert agreement(together[0].mask, together[5].mask) < 0.9


def test_masks_are_those_of_the_model_without_a_server(worker: Worker, segmentor: Segmentor, spec: ModelSpec) -> None:
    image = pictures(1)[0]
    ids, confidence = segment_image(segmentor, image.pixels, spec.preprocessing)
    result = succeeded(outcomes_of(worker, [image]))[0]
    assert result.mask.dtype == result.confidence.dtype == np.uint8
    assert agreement(result.mask, ids.numpy()) > 0.999
    assert np.abs(result.confidence.astype(int) - confidence.numpy()).max() <= 2
    assert len(np.unique(result.mask)) > 1


def test_two_models_are_told_apart(worker: Worker, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    class Constant(Segmentor):
        def forward(self, image: Tensor) -> Any:
            output = super().forward(image)
            output.logits[:, 3] = 1e6
            return output

    def build(spec: ModelSpec) -> Segmentor:
        parts = worker._models["tiny"].segmentor
        return Constant(parts.backbone, parts.decode_head).eval()

    monkeypatch.setattr("app.engine.worker.load_model", build)
    worker.load(replace(spec, name="constant"), "constant")
    assert (succeeded(ran(worker, pictures(1), "constant").outcomes)[0].mask == 3).all()
    assert not (succeeded(outcomes_of(worker, pictures(1)))[0].mask == 3).all()


def test_reference_operators_are_the_definitions(
    segmentor: Segmentor, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.engine.worker.load_model", {spec: segmentor}.__getitem__)
    worker = Worker("cpu", 0, reduced=False, reference_operators=True)
    worker.load(spec, spec.name)
    attention = segmentor.get_submodule("decode_head.cca")
    assert (attention.attend, worker._upsample) == (criss_cross_attention_reference, upsample_argmax_reference)
    assert Worker("cpu", 0)._upsample is upsample_argmax


# --- traces


def test_traces_only_where_they_are_wanted(worker: Worker) -> None:
    results = succeeded(outcomes_of(worker, pictures(4, traces=[1, 3])))
    assert [len(result.traces) for result in results] == [0, 2, 0, 2]
    assert [(trace.block, trace.step) for trace in results[1].traces] == [("cca", 1), ("cca", 2)]
    assert results[1].nbytes > results[1].mask.nbytes + results[1].confidence.nbytes
    assert results[0].nbytes == results[0].mask.nbytes + results[0].confidence.nbytes


def test_traces_are_as_exact_as_the_pass_and_keep_no_batch_alive(worker: Worker) -> None:
    results = succeeded(outcomes_of(worker, pictures(3, traces=[0, 1, 2])))
    alone = succeeded(outcomes_of(worker, pictures(3, traces=[1])[1:2]))[0]
    for trace, expected in zip(results[1].traces, alone.traces, strict=True):
        for tensor, wanted in ((trace.query, expected.query), (trace.key, expected.key)):
            assert tensor.dtype == torch.float32
            assert tensor.untyped_storage().nbytes() == tensor.nbytes
            assert torch.allclose(tensor.float(), wanted.float(), atol=0.02, rtol=0.02)
    assert not torch.equal(results[0].traces[0].query, results[1].traces[0].query)


# --- failures


@pytest.mark.parametrize("poisoned", [[0], [5], [7], [2, 3], list(range(8))])
def test_an_image_that_fails_fails_alone(worker: Worker, segmentor: Segmentor, poisoned: list[int]) -> None:
    expected = succeeded(outcomes_of(worker, pictures()))
    on_every_pass(segmentor, raise_on_poison)
    outcomes, fits = (found := ran(worker, pictures(poisoned=poisoned))).outcomes, found.fits
    for index, outcome in enumerate(outcomes):
        if index in poisoned:
            assert isinstance(outcome, InferenceFailed)
            assert isinstance(outcome.__cause__, RuntimeError)
            assert "poisoned" not in outcome.detail, "what the model said is for the log"
        else:
            assert isinstance(outcome, Segmentation)
            assert agreement(outcome.mask, expected[index].mask) > 0.999
    assert len(outcomes) == 8
    assert fits is None, "it was not for want of memory"


@pytest.mark.parametrize(
    ("limit", "passes", "told"),
    [
        (8, [8], None),
        (4, [8, 4, 4], 4),
        (3, [8, 4, 2, 2, 4, 2, 2], 2),
        (1, [8, 4, 2, 1, 1, 2, 1, 1, 4, 2, 1, 1, 2, 1, 1], 1),
    ],
)
def test_a_batch_too_large_for_the_device_is_split(
    worker: Worker, segmentor: Segmentor, limit: int, passes: list[int], told: int | None
) -> None:
    sizes: list[int] = []
    on_every_pass(segmentor, fits(limit, sizes))
    done = ran(worker, pictures())
    assert [result.mask.shape for result in succeeded(done.outcomes)] == list(ORIGINALS)
    assert sizes == passes
    assert done.fits == told


@pytest.mark.parametrize("short", [1, 2], ids=["first", "second"])
def test_a_half_that_is_too_large_counts_though_the_batch_failed_otherwise(
    worker: Worker, segmentor: Segmentor, short: int
) -> None:
    errors = iter([RuntimeError("bad") if index == 0 else index == short and MemoryError() for index in range(5)])

    def check(batch: Tensor) -> None:
        if error := next(errors):
            raise error

    on_every_pass(segmentor, check)
    done = ran(worker, pictures())
    assert len(succeeded(done.outcomes)) == 8
    assert done.fits == 4, "of the other half"


def test_an_odd_batch_is_split_without_loss(worker: Worker, segmentor: Segmentor) -> None:
    on_every_pass(segmentor, fits(1, []))
    results = succeeded(outcomes_of(worker, pictures(5)))
    assert [result.mask.shape for result in results] == list(ORIGINALS[:5])


def test_an_image_too_large_for_the_device_is_told_so(worker: Worker, segmentor: Segmentor) -> None:
    on_every_pass(segmentor, fits(0, []))
    done = ran(worker, pictures(2))
    assert [type(outcome) for outcome in done.outcomes] == [OutOfMemory, OutOfMemory]
    assert "48x32" in str(done.outcomes[0])
    assert done.fits == 0


def test_only_some_of_a_staged_batch_are_run(worker: Worker) -> None:
    images = pictures()
    alone = [succeeded(outcomes_of(worker, [images[index]]))[0] for index in (6, 1)]
    some = succeeded(worker.run("tiny", worker.stage(images).take([6, 1])).outcomes)
    assert len(some) == 2
    assert all(agreement(one.mask, other.mask) > 0.999 for one, other in zip(some, alone, strict=True))


def test_two_threads_run_side_by_side(worker: Worker, segmentor: Segmentor) -> None:
    images = pictures()
    alone = [succeeded(outcomes_of(worker, [image]))[0] for image in images]
    assert worker.slots == 2
    both = threading.Barrier(worker.slots, timeout=30)

    def meet(*_: object) -> None:
        both.wait()

    hook = segmentor.get_submodule("backbone.layer2").register_forward_hook(meet)

    def run(image: Image) -> Segmentation:
        return succeeded(outcomes_of(worker, [image]))[0]

    with ThreadPoolExecutor(worker.slots, initializer=worker.enter) as threads:
        results = list(threads.map(run, images))
    hook.remove()
    for one, other in zip(results, alone, strict=True):
        assert agreement(one.mask, other.mask) > 0.999
        assert one.timings.modules.keys() == other.timings.modules.keys(), "each pass has a record of its own"


def test_the_worker_goes_on_after_a_failure(worker: Worker, segmentor: Segmentor) -> None:
    before = succeeded(outcomes_of(worker, pictures(2)))
    hook = segmentor.get_submodule("backbone.layer2").register_forward_hook(lambda *_: 1 / 0)
    assert isinstance(outcomes_of(worker, pictures(1))[0], InferenceFailed)
    hook.remove()
    after = succeeded(outcomes_of(worker, pictures(2)))
    assert all(np.array_equal(one.mask, other.mask) for one, other in zip(before, after, strict=True))


def test_a_failure_keeps_nothing_of_its_pass(worker: Worker, segmentor: Segmentor) -> None:
    on_every_pass(segmentor, raise_on_poison)
    outcome = outcomes_of(worker, pictures(1, poisoned=[0]))[0]
    assert isinstance(outcome, InferenceFailed)
    assert outcome.__cause__ is not None
    assert outcome.__cause__.__traceback__ is None
    (note,) = outcome.__cause__.__notes__
    assert "in raise_on_poison" in note, "the log is to tell where it failed"


def test_the_images_of_a_failure_wait_for_no_collector_of_garbage(worker: Worker, segmentor: Segmentor) -> None:
    on_every_pass(segmentor, raise_on_poison)
    gc.collect()
    gc.disable()
    try:
        images = pictures(1, poisoned=[0])
        pixels = weakref.ref(images[0].pixels)
        outcome = outcomes_of(worker, images)[0]
        del images, outcome
        assert pixels() is None
    finally:
        gc.enable()


# --- timings, loading, memory


def test_timings_have_the_stages_and_the_modules(worker: Worker) -> None:
    results = succeeded(outcomes_of(worker, pictures(3)))
    timings = results[0].timings
    assert list(timings.stages) == ["preprocess", "forward", "postprocess"]
    assert set(timings.modules) == {
        *("stem", "layer1", "layer2", "layer3", "layer4"),
        *("reduction", "cca_1", "cca_2", "convb", "bottleneck", "classifier", "upsample_argmax"),
    }
    assert all(seconds > 0 for seconds in [*timings.stages.values(), *timings.modules.values()])
    assert all(result.timings is timings for result in results), "a batch has one record"


def test_warming_up_takes_the_models_input_size(worker: Worker, segmentor: Segmentor) -> None:
    shapes: list[torch.Size] = []
    on_every_pass(segmentor, lambda batch: shapes.append(batch.shape))
    worker.warm_up("tiny")
    assert set(shapes) == {torch.Size([1, 3, 32, 48])}


def test_a_model_that_cannot_run_does_not_warm_up(worker: Worker, segmentor: Segmentor) -> None:
    on_every_pass(segmentor, fits(0, []))
    with pytest.raises(OutOfMemory):
        worker.warm_up("tiny")


@pytest.mark.parametrize(
    ("raised", "error"),
    [
        (CheckpointError("x.pth: holds NaN or infinite weights"), CheckpointError),
        (MemoryError(), OutOfMemory),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), OutOfMemory),
        (KeyError("conv1"), InferenceFailed),
    ],
)
def test_a_model_that_cannot_be_loaded_is_not_there(
    worker: Worker, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch, raised: Exception, error: type[Exception]
) -> None:
    def load_model(spec: ModelSpec) -> Segmentor:
        raise raised

    monkeypatch.setattr("app.engine.worker.load_model", load_model)
    with pytest.raises(error):
        worker.load(spec, "another")
    assert list(worker._models) == ["tiny"]


def test_an_unloaded_model_is_gone_from_memory(
    worker: Worker, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(spec: ModelSpec) -> Segmentor:
        return Segmentor(MobileNetV2(width=0.25), CCHead(80, 16, 11, query_channels=4)).eval()

    monkeypatch.setattr("app.engine.worker.load_model", build)
    worker.load(spec, "another")
    worker.warm_up("another")
    modules = [weakref.ref(module) for module in worker._models["another"].segmentor.modules()]
    settle()  # as the engine does, since when the collector no longer looks at them
    worker.unload("another")
    assert [module() for module in modules] == [None] * len(modules)
    assert list(worker._models) == ["tiny"]


def test_a_thread_that_enters_gets_its_share_of_the_cores_and_gives_way() -> None:
    worker = Worker("cpu", 4)

    def entered() -> tuple[int, int]:
        worker.enter()
        return torch.get_num_threads(), os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before = torch.get_num_threads(), os.getpriority(os.PRIO_PROCESS, 0)
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(entered).result() == (2, NICENESS)
    assert (torch.get_num_threads(), os.getpriority(os.PRIO_PROCESS, 0)) == before, "only that thread"


def test_a_thread_that_cannot_give_way_enters_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    worker = Worker("cpu", 4)
    monkeypatch.setattr(os, "setpriority", refuse)
    with ThreadPoolExecutor(1, initializer=worker.enter) as thread:
        assert thread.submit(torch.get_num_threads).result() == 2
    monkeypatch.delattr(os, "setpriority")
    with ThreadPoolExecutor(1, initializer=worker.enter) as thread:
        assert thread.submit(torch.get_num_threads).result() == 2


def test_no_memory_is_counted_on_the_cpu(worker: Worker) -> None:
    assert worker.memory() == {}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_what_the_cpu_gives(
    segmentor: Segmentor, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    plain = copy.deepcopy(segmentor)  # before it is loaded, whose operators are then a CPU's alone
    expected = succeeded(outcomes_of(request.getfixturevalue("worker"), pictures(traces=[0])))
    monkeypatch.setattr("app.engine.worker.load_model", lambda spec: plain)
    on_cuda = Worker("cuda", 0, reduced=False)
    on_cuda.enter()
    on_cuda.load(spec, spec.name)
    for _ in range(3):  # as it is, and by a CUDA graph
        results = succeeded(outcomes_of(on_cuda, pictures(traces=[0])))
        for one, other in zip(results, expected, strict=True):
            assert agreement(one.mask, other.mask) > 0.99
        assert results[0].traces[0].query.device.type == "cpu"
        assert results[0].timings.modules.keys() == expected[0].timings.modules.keys()
    assert on_cuda.memory()["allocated"] > 0


LOAD = """
import sys
from app.engine.worker import Worker
from models import get_spec
worker = Worker("cpu", 1)
worker.load(get_spec("ccnet-mobilenetv2-camvid"), "ccnet")
worker.warm_up("ccnet")
print(*(name for name in ("sympy", "torch._dynamo", "torch._inductor") if name in sys.modules))
"""


def test_torch_s_compiler_stays_out_of_memory() -> None:
    # A second of the start and 150 MB, for what the meta device and a few others load by the way.
    done = subprocess.run([sys.executable, "-c", LOAD], stdout=subprocess.PIPE, check=True, text=True)
    assert done.stdout == "\n"
