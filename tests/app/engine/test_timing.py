from __future__ import annotations

import time
from itertools import count
from typing import Any

import pytest
import torch
from torch import nn

from app.engine.timing import Clock, CudaClock, ModuleTimer
from models import Segmentor

NAMES = ["stem", "layer1", "layer2", "layer3", "layer4", "reduction", "cca_1", "cca_2", "convb", "bottleneck"]
CPU = torch.device("cpu")


@pytest.fixture
def timer(segmentor: Segmentor) -> ModuleTimer:
    return ModuleTimer(segmentor, CPU)


def forward(segmentor: Segmentor, size: tuple[int, int] = (32, 48)) -> Any:
    with torch.inference_mode():
        return segmentor(torch.randn(1, 3, *size))


def test_every_module_and_each_call_of_the_recurrent_one_has_its_name(timer: ModuleTimer, segmentor: Segmentor) -> None:
    forward(segmentor)
    seconds = timer.collect()
    assert sorted(seconds) == sorted([*NAMES, "classifier"])
    assert all(duration > 0 for duration in seconds.values())


def test_each_call_is_one_span(
    timer: ModuleTimer, segmentor: Segmentor, monkeypatch: pytest.MonkeyPatch, step_clock: Clock
) -> None:
    monkeypatch.setattr(timer, "_clock", step_clock)
    forward(segmentor)
    assert set(timer.collect().values()) == {1.0}
    forward(segmentor)
    forward(segmentor)
    assert set(timer.collect().values()) == {2.0}, "names begin anew with each pass"


def test_collect_starts_anew(timer: ModuleTimer, segmentor: Segmentor) -> None:
    assert timer.collect() == {}
    forward(segmentor)
    timer.collect()
    assert timer.collect() == {}


def test_what_is_recorded_is_kept_out_of_the_pass_and_counts_when_it_is_added(
    timer: ModuleTimer, segmentor: Segmentor, monkeypatch: pytest.MonkeyPatch, step_clock: Clock
) -> None:
    monkeypatch.setattr(timer, "_clock", step_clock)
    with timer.span("preprocess"):
        pass
    with timer.recorded() as spans:
        forward(segmentor)
    assert list(timer.collect()) == ["preprocess"]
    for _ in range(2):
        timer.add(spans)
        assert list(timer.collect()) == [*NAMES, "classifier"]
    forward(segmentor)
    assert list(timer.collect()) == [*NAMES, "classifier"], "the recurrent module's first call is the first still"


def test_a_recording_that_fails_leaves_the_pass_as_it_was(timer: ModuleTimer, segmentor: Segmentor) -> None:
    forward(segmentor)
    hook = segmentor.get_submodule("backbone.layer3").register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), timer.recorded():
        forward(segmentor)
    hook.remove()
    assert list(timer.collect()) == [*NAMES, "classifier"]


def test_a_span_times_what_is_no_module(timer: ModuleTimer) -> None:
    with timer.span("upsample_argmax"):
        sum(range(10_000))
    with timer.span("upsample_argmax"):
        sum(range(10_000))
    seconds = timer.collect()
    assert list(seconds) == ["upsample_argmax"]
    assert seconds["upsample_argmax"] > 0


@pytest.mark.parametrize(("name", "call"), [("layer3", 1), ("value_conv", 1), ("value_conv", 2)])
def test_a_failed_pass_leaves_nothing_behind(
    timer: ModuleTimer, segmentor: Segmentor, monkeypatch: pytest.MonkeyPatch, step_clock: Clock, name: str, call: int
) -> None:
    monkeypatch.setattr(timer, "_clock", step_clock)
    broken = next(module for path, module in segmentor.named_modules() if path.endswith(name))
    calls = count(1)

    def fail(module: nn.Module, inputs: object) -> None:
        if next(calls) == call:
            raise RuntimeError("broken")

    hook = broken.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="broken"):
        forward(segmentor)
    hook.remove()
    timer.reset()
    assert timer.collect() == {}
    forward(segmentor)
    seconds = timer.collect()
    assert list(seconds) == [*NAMES, "classifier"], "in the order they ran: the first call is the first again"
    assert set(seconds.values()) == {1.0}


def test_the_modules_together_take_no_longer_than_the_pass(timer: ModuleTimer, segmentor: Segmentor) -> None:
    with timer.span("forward"):
        forward(segmentor)
    seconds = timer.collect()
    assert 0 < sum(seconds.values()) - seconds["forward"] <= seconds["forward"]


def test_the_cuda_clock_waits_for_the_device() -> None:
    class Event:
        passed = False

        def synchronize(self) -> None:
            self.passed = True

        def elapsed_time(self, end: Event) -> float:
            assert end.passed, "device not ready"
            return 5.0

    clock: Any = CudaClock()
    assert clock.seconds(Event(), Event()) == 0.005


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_cuda_clock_measures_the_device(segmentor: Segmentor) -> None:
    device = torch.device("cuda")
    segmentor.to(device)
    timer = ModuleTimer(segmentor, device)
    batch = torch.randn(1, 3, 320, 480, device=device)
    with torch.inference_mode():
        for _ in range(3):
            segmentor(batch)
        torch.cuda.synchronize()
        timer.reset()
        started = time.perf_counter()
        segmentor(batch)
        torch.cuda.synchronize()
        elapsed = time.perf_counter() - started
    seconds = timer.collect()
    assert sorted(seconds) == sorted([*NAMES, "classifier"])
    assert 0 < sum(seconds.values()) <= elapsed


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_events_are_used_again() -> None:
    clock = CudaClock()
    start, end = clock.mark(), clock.mark()
    torch.cuda.synchronize()
    assert clock.seconds(start, end) >= 0
    assert {clock.mark(), clock.mark()} == {start, end}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_events_of_a_graph_are_marked_by_each_replay_and_used_for_nothing_else() -> None:
    clock, graph = CudaClock(), torch.cuda.CUDAGraph()
    x = torch.zeros(1 << 20, device="cuda")
    with torch.cuda.graph(graph):
        start = clock.mark()
        x.add_(1)
        end = clock.mark()
    for _ in range(2):
        graph.replay()
        torch.cuda.synchronize()
        assert clock.seconds(start, end) > 0
    assert clock.mark() not in (start, end)
