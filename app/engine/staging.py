"""Brings the images of a batch to the device in one tensor."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from app.engine.assembly import Assembly
from models.ops.upsample import Size


@dataclass(frozen=True)
class Image:
    """One image, or a part of one, ready for the device.

    Attributes:
        pixels: [h, w, 3] uint8 RGB at the network's input size
        original: size of the image, and of its mask
        wants_traces: keep what the attention maps need
        assembly: of an image that needs several passes, or is mirrored, what makes its mask of them
        part: which of these passes it is
        inside: size of what `pixels` show, where the rest, below and on the right, stands for the mean
    """

    pixels: Tensor
    original: Size
    wants_traces: bool
    assembly: Assembly | None = None
    part: int = 0
    inside: Size | None = None

    @property
    def input_size(self) -> Size:
        return self.pixels.shape[0], self.pixels.shape[1]


@dataclass(frozen=True)
class Staged:
    """
    Attributes:
        pixels: [B, h, w, 3] uint8 of the images; None if they are still to be put together
        copied: on CUDA, the event that the pixels have arrived
    """

    images: tuple[Image, ...]
    pixels: Tensor | None = None
    copied: torch.cuda.Event | None = None

    def take(self, indices: Sequence[int]) -> Staged:
        """Some of the images, in that order."""
        images = tuple(self.images[index] for index in indices)
        if len(images) == len(self.images):
            return self
        return Staged(images)

    def arrive(self, device: torch.device) -> Tensor:
        """The pixels, on the device, for the current stream.

        Raises:
            torch.OutOfMemoryError, MemoryError, RuntimeError: no room for them
        """
        if self.pixels is None:
            return torch.stack([image.pixels for image in self.images]).to(device)
        if self.copied is not None:
            stream = torch.cuda.current_stream(device)
            stream.wait_event(self.copied)
            # Else the allocator could give the memory away as soon as the copying stream is done with it.
            self.pixels.record_stream(stream)
        return self.pixels


class Staging(threading.local):
    """Each thread stages on a CUDA stream of its own, so that a batch travels while the one before computes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._pinned = torch.empty(0, dtype=torch.uint8)
        self._copied: torch.cuda.Event | None = None  # that what is pinned has left for the device

    def __call__(self, images: Sequence[Image]) -> Staged:
        """
        Args:
            images: of one input size
        """
        pixels = [image.pixels for image in images]
        try:
            if self._stream is None:
                return Staged(tuple(images), pixels[0].unsqueeze(0) if len(pixels) == 1 else torch.stack(pixels))
            host = torch.stack(pixels, out=self._buffer(len(pixels), pixels[0]))
            with torch.cuda.stream(self._stream):
                arriving = host.to(self._device, non_blocking=True)
            self._copied = self._stream.record_event()
            return Staged(tuple(images), arriving, self._copied)
        except (MemoryError, RuntimeError):
            return Staged(tuple(images))  # the pass will run into whatever it is, and knows what to do

    def _buffer(self, count: int, like: Tensor) -> Tensor:
        """Pinned memory that is used again, once this thread's last batch has left it."""
        size = count * like.numel()
        if self._copied is not None:
            self._copied.synchronize()
        if self._pinned.numel() < size:
            self._pinned = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        return self._pinned[:size].view(count, *like.shape)
