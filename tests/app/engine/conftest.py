"""A tiny network behind the names that the engine looks models up by."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from app.engine.timing import Clock
from app.engine.worker import Worker
from app.metrics import Metrics
from models import ModelSpec, Segmentor
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
    return network.eval()


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
