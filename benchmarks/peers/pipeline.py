"""What every peer does with a request, so that only the server around it differs: bytes, image, mask, PNG."""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from app.imaging import Array, decode, encode_ids
from benchmarks.peers.tuning import Tuning

MAX_PIXELS = 40_000_000
# An accelerator is one device, however many processes share it.
DEVICE_LOCK = Path(tempfile.gettempdir()) / "seglens-emulated-device"


class Pipeline(Protocol):
    """The three steps; an image is whatever `decode` makes of it."""

    def decode(self, body: bytes) -> Any: ...

    def predict(self, images: Sequence[Any]) -> list[Any]:
        """One mask per image, in order; images of several shapes take a pass for each shape."""
        ...

    def encode(self, mask: Any) -> bytes: ...


class Emulated:
    """A device on which a pass of n images takes a + b * n seconds, and no CPU time."""

    def __init__(self, pass_cost: tuple[float, float]) -> None:
        self._cost = pass_cost

    def decode(self, body: bytes) -> Array:
        return decode(body, MAX_PIXELS)

    def predict(self, images: Sequence[Array]) -> list[Array]:
        return by_shape(images, lambda image: image.shape, self._run)

    def encode(self, mask: Array) -> bytes:
        return encode_ids(mask)

    def _run(self, images: Sequence[Array]) -> list[Array]:
        if any(self._cost):  # a pass that costs nothing does not even ask for the device
            occupy_device(self._cost, len(images))
        return [np.zeros(image.shape[:2], np.uint8) for image in images]


def create_pipeline(tuning: Tuning) -> Pipeline:
    if tuning.workload == "real":
        # Here, so that torch isn't in the memory of servers that don't need it.
        from benchmarks.peers.network import Network

        return Network()
    return Emulated(tuning.pass_cost)


def occupy_device(pass_cost: tuple[float, float], images: int) -> None:
    """Hold the one emulated device for as long as a pass of so many images takes."""
    lock = os.open(DEVICE_LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        time.sleep(pass_cost[0] + pass_cost[1] * images)
    finally:
        os.close(lock)


def by_shape(
    images: Sequence[Any], shape: Callable[[Any], object], run: Callable[[Sequence[Any]], list[Any]]
) -> list[Any]:
    """Run images of each shape together, as a tensor holds one shape only; results in the order of the images."""
    places: dict[object, list[int]] = {}
    for place, image in enumerate(images):
        places.setdefault(shape(image), []).append(place)
    results: dict[int, Any] = {}
    for group in places.values():
        results |= zip(group, run([images[place] for place in group]), strict=True)
    return [results[place] for place in range(len(images))]
