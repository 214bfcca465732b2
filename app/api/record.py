"""A result as it is kept: all that any later request for it can be answered from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from app.engine.device import Segmentation
from models import ModelSpec

OVERHEAD = 12_000  # bytes: what a result of a single cell takes beside its arrays, about


@dataclass(frozen=True)
class Record:
    """
    Attributes:
        upload: the image as it came; overlays decode it again, which is cheaper than keeping it decoded
        kept: it can be fetched again; false if it is larger than the whole store
    """

    id: str
    spec: ModelSpec
    upload: bytes
    segmentation: Segmentation
    kept: bool = True

    @property
    def nbytes(self) -> int:
        return len(self.upload) + self.segmentation.nbytes + OVERHEAD

    @cached_property
    def areas(self) -> NDArray[np.int64]:
        """How many pixels of the mask each class has, as far as the last that has any."""
        return np.bincount(self.segmentation.mask.ravel())

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the image."""
        height, width = self.segmentation.mask.shape
        return width, height
