"""A tiny network behind the names that the engine looks models up by."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

from app.engine.graphs import copied
from app.engine.timing import Clock, ModuleTimer
from app.engine.worker import Worker
from app.metrics import Metrics
from models import ModelSpec, Output, Segmentor
from models.backbones.mobilenet import MobileNetV2
from models.classes import CAMVID
from models.heads.ccnet import CCHead
from models.transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocessing


class StepClock:
    """A second passes between any two marks."""

    def __init__(self) -> None:
        self.now = 0.0

    def mark(self) -> float:
        self.now += 1.0
        return self.now

    def seconds(self, start: float, end: float) -> float:
        return end - start


class Recording:
    """In place of a CUDA graph: one place for what it takes and puts out, modules timed when it is made."""

    def __init__(self, segmentor: Segmentor, timer: ModuleTimer, batch: torch.Tensor, beside: Recording | None) -> None:
        self._segmentor, self._timer = segmentor, timer
        self.beside = None if beside is None else weakref.ref(beside)
        self._input = batch.clone()
        with timer.recorded() as self._spans:
            self._output = segmentor(self._input)

    def __call__(self, batch: torch.Tensor) -> Output:
        self._input.copy_(batch)
        with self._timer.recorded():
            output = self._segmentor(self._input)
        for place, value in zip(self._tensors(self._output), self._tensors(output), strict=True):
            place.copy_(value)
        self._timer.add(self._spans)
        return copied(self._output)

    def _tensors(self, output: Output) -> list[torch.Tensor]:
        return [output.logits, *(tensor for trace in output.traces for tensor in (trace.query, trace.key))]


@pytest.fixture
def recording() -> type[Recording]:
    return Recording


@pytest.fixture
def step_clock() -> Clock:
    return StepClock()


@pytest.fixture
def spec() -> ModelSpec:
    return ModelSpec(
        name="tiny",
        title="Tiny",
        weights=Path("nowhere"),
        sha256="",
        classes=CAMVID,
        preprocessing=Preprocessing(scale=(48, 32), mean=IMAGENET_MEAN, std=IMAGENET_STD),
        miou=0.0,
        dataset="none",
        licence="none",
        source="none",
    )


@pytest.fixture
def segmentor() -> Segmentor:
    """Random weights with CamVid's eleven classes; attention that shows, and logits far enough apart to tell."""
    torch.manual_seed(0)
    head = CCHead(80, 16, 11, query_channels=4)
    network = Segmentor(MobileNetV2(width=0.25), head)
    nn.init.constant_(head.cca.gamma.scale, 0.5)
    nn.init.normal_(head.conv_seg.weight)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        network.train()(torch.randn(4, 3, 32, 48))
        # What all positions have in common decides between no classes.
        deviation, mean = torch.std_mean(network.eval()(torch.randn(64, 3, 16, 16)).logits, (0, 2, 3))
        head.conv_seg.weight.div_(deviation[:, None, None, None])
        head.conv_seg.bias.sub_(mean).div_(deviation)
    return network


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def worker(segmentor: Segmentor, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> Worker:
    """A real one, on the CPU, with the tiny network loaded."""
    monkeypatch.setattr("app.engine.worker.load_model", {spec: segmentor}.__getitem__)
    # In float32, which leaves the network the object that tests hook into.
    worker = Worker("cpu", 0, reduced=False)
    worker.load(spec, spec.name)
    return worker
