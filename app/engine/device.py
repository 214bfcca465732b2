"""What the engine asks of a device, and what it gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from app.engine.staging import Image, Staged
from app.errors import DeviceError, ServiceError
from app.timings import Timings
from models import ModelSpec, Trace
from models.precision import Precision


def find_device(name: str) -> torch.device:
    """The device of a name: auto, cpu, cuda (the first) or cuda:N.

    Raises:
        DeviceError: there is no such device
    """
    count = torch.cuda.device_count()
    kind, _, number = (("cuda" if count else "cpu") if name == "auto" else name).partition(":")
    if kind != "cuda":
        return torch.device(kind)
    index = int(number or 0)  # a thread can be set to a device with a number alone
    if index >= count:
        raise DeviceError(
            f"no device {name}: SEGLENS_DEVICE names it, but torch {torch.__version__} sees {count} CUDA devices"
        )
    return torch.device("cuda", index)


@dataclass(frozen=True)
class Segmentation:
    """What the network said of one image.

    Attributes:
        mask: [H, W] uint8 class ids at the original size
        confidence: [H, W] uint8, the softmax probability of each id, 255 being 1
        traces: of each attention block, if they were wanted
        timings: of its batch
    """

    mask: NDArray[np.uint8]
    confidence: NDArray[np.uint8]
    traces: tuple[Trace, ...]
    timings: Timings

    @property
    def nbytes(self) -> int:
        return self.mask.nbytes + self.confidence.nbytes + sum(trace.nbytes for trace in self.traces)


@dataclass(frozen=True)
class Partial:
    """One pass of an image that needs more."""

    timings: Timings


Outcome = Segmentation | Partial | ServiceError


@dataclass(frozen=True)
class Ran:
    """What became of a batch.

    Attributes:
        outcomes: one per image, in order
        fits: if the device ran out of memory, the most images that it took at once
        share: of the device that the batch had
    """

    outcomes: list[Outcome]
    fits: int | None = None
    share: float = 1.0


class Device(Protocol):
    """What runs batches: the worker, or a stand-in for it."""

    @property
    def device(self) -> torch.device: ...

    @property
    def slots(self) -> int:
        """Batches to run at once, each by a thread of its own."""

    @property
    def best_batch_size(self) -> int:
        """Images in a batch beyond which nothing is gained."""

    @property
    def stages_ahead(self) -> bool:
        """Whether a thread of its own stages the next batch. It costs more than it saves where nothing is copied."""

    def enter(self) -> None:
        """Prepare the calling thread, which may then call the rest."""

    def load(self, spec: ModelSpec, key: str) -> Precision:
        """Put a model on the device, under a key by which the rest knows it; gives what it computes in there.

        Raises:
            ModelError: its file is not what it should be
            OutOfMemory: there is no room for it
            InferenceFailed: whatever else went wrong
        """

    def warm_up(self, key: str) -> None:
        """Run a model as requests will, so that none pays for what is made at the first passes.

        Raises:
            OutOfMemory, InferenceFailed: it can't run
        """

    def unload(self, key: str) -> None:
        """Take a model that nobody runs any more from the device, and give its memory back to the system."""

    def stage(self, images: Sequence[Image]) -> Staged:
        """Bring images of one input size to the device, while another batch may be running."""

    def run(self, key: str, staged: Staged) -> Ran:
        """Segment the images of a batch. An image that fails fails alone.

        Raises:
            DeviceError: the device has failed for good
        """

    def memory(self) -> dict[str, int]:
        """Bytes on the device by kind; nothing where they are not counted."""
