"""That the worker and its stand-in are what the engine asks for."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch

from app.engine.device import Device, Segmentation
from app.engine.worker import Worker
from app.timings import Timings
from models import Trace
from tests.fakes import FakeDevice

MEMBERS = {
    *("device", "slots", "best_batch_size", "stages_ahead"),
    *("enter", "load", "warm_up", "unload", "stage", "run", "memory"),
}


@pytest.mark.parametrize("kind", [Worker, FakeDevice])
def test_a_device_has_all_that_is_asked_of_it(kind: type[Device]) -> None:
    device: Device = Worker("cpu", 0) if kind is Worker else FakeDevice()
    assert {name for name in vars(Device) if not name.startswith("_")} == MEMBERS
    for name in MEMBERS:
        asked, given = getattr(Device, name), getattr(device, name)
        if callable(asked):
            wanted = list(inspect.signature(asked).parameters)[1:]
            assert list(inspect.signature(given).parameters) == wanted
    assert isinstance(device.device, torch.device)
    assert device.slots >= 1
    assert device.best_batch_size >= 1


def test_a_segmentation_counts_all_that_it_holds() -> None:
    ids = np.zeros((3, 4), dtype=np.uint8)
    trace = Trace("cca", 1, torch.zeros(2, 3, 4).half(), torch.zeros(2, 3, 4).half())
    assert Segmentation(ids, ids, (), Timings()).nbytes == 24
    assert Segmentation(ids, ids, (trace, trace), Timings()).nbytes == 24 + 2 * trace.nbytes
