"""Runs batches on one device: uint8 images in, class ids out. Called from one thread only."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.engine.timing import ModuleTimer
from app.errors import DeviceError, InferenceFailed, OutOfMemory, ServiceError
from app.imaging import decode
from app.metrics import Metrics
from app.timings import Timings
from models import ModelSpec, Segmentor, Trace, create_model
from models.folding import fold_batch_norm
from models.ops.upsample import Size, upsample_argmax
from models.transforms import Preprocessing, normalize, resize

WARMUP_PASSES = 3
STAGES = ("preprocess", "forward", "postprocess")


@dataclass(frozen=True)
class Image:
    """One image, ready for the device.

    Attributes:
        pixels: [h, w, 3] uint8 RGB at the network's input size
        original: size of the image, and of its mask
        wants_traces: keep what the attention maps need
    """

    pixels: Tensor
    original: Size
    wants_traces: bool


def prepare(data: bytes, max_pixels: int, preprocessing: Preprocessing, wants_traces: bool) -> Image:
    """An image file, decoded and at the network's input size; the large array in between is let go.

    Raises:
        UnsupportedImage, TooLarge, MalformedBody: as `app.imaging.decode`
    """
    pixels = torch.from_numpy(decode(data, max_pixels))
    original = pixels.shape[0], pixels.shape[1]
    return Image(resize(pixels, preprocessing.input_size(original)), original, wants_traces)


def find_device(name: str) -> torch.device:
    """The device of a name: auto, cpu, cuda or cuda:N.

    Raises:
        DeviceError: there is no such device
    """
    count = torch.cuda.device_count()
    device = torch.device(("cuda" if count else "cpu") if name == "auto" else name)
    if device.type == "cuda" and (device.index or 0) >= count:
        raise DeviceError(f"no device {name}: torch {torch.__version__} sees {count} CUDA devices")
    return device


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


Outcome = Segmentation | ServiceError


@dataclass(frozen=True)
class Resident:
    """A model on the device, ready to run."""

    spec: ModelSpec
    segmentor: Segmentor
    timer: ModuleTimer


class Worker:
    """Owns the device and the models on it."""

    def __init__(self, device: str, threads: int, metrics: Metrics) -> None:
        """
        Args:
            device: auto, cpu, cuda or cuda:N
            threads: CPU threads of a forward pass; 0 leaves the choice to torch

        Raises:
            DeviceError: there is no such device
        """
        self.device = find_device(device)
        self._threads = threads
        self._metrics = metrics
        self._models: dict[str, Resident] = {}

    @property
    def best_batch_size(self) -> int:
        """Images in a batch beyond which nothing is gained: measured on a CPU, a guess on CUDA."""
        return 8 if self.device.type == "cuda" else 2

    def load(self, spec: ModelSpec) -> None:
        """Put a model on the device and run it, so that no request pays for the first pass."""
        if self._threads:
            torch.set_num_threads(self._threads)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # events are recorded on this thread's current device
        segmentor = create_model(spec.name)
        fold_batch_norm(segmentor)
        segmentor.to(self.device)
        if segmentor.prefers_channels_last:
            segmentor.use_channels_last()
        self._models[spec.name] = Resident(spec, segmentor, ModuleTimer(segmentor, self.device))
        long_side, short_side = spec.preprocessing.scale
        blank = torch.zeros(short_side, long_side, 3, dtype=torch.uint8)
        for _ in range(WARMUP_PASSES):
            self._run(spec.name, [Image(blank, (short_side, long_side), wants_traces=True)])

    def run(self, model: str, images: Sequence[Image]) -> list[Outcome]:
        """One outcome per image, in order. An image that fails fails alone.

        Args:
            images: of one input size

        Raises:
            DeviceError: the device has failed for good
        """
        outcomes = self._attempt(model, images)
        if isinstance(outcomes, ServiceError):
            if isinstance(outcomes, OutOfMemory):
                # Only out here, past the handler, does nothing hold on to the failed pass.
                self._free_memory()
                self._metrics.out_of_memory(model, "failed" if len(images) == 1 else "split")
            if len(images) == 1:
                return [outcomes]
            half = len(images) // 2
            return self.run(model, images[:half]) + self.run(model, images[half:])
        return outcomes

    def memory(self) -> dict[str, int]:
        """Bytes on the device by kind; nothing where torch doesn't count them."""
        if self.device.type != "cuda":
            return {}
        return {
            "allocated": torch.cuda.memory_allocated(self.device),
            "reserved": torch.cuda.memory_reserved(self.device),
        }

    def _attempt(self, model: str, images: Sequence[Image]) -> list[Outcome] | ServiceError:
        try:
            return self._run(model, images)
        except (torch.OutOfMemoryError, MemoryError):
            return self._out_of_memory(images)
        # The one blind except of the program: whatever the model raised, the caller must hear of it.
        except Exception as exc:  # noqa: BLE001
            # The traceback is kept for the log; the tensors in its frames would be kept with it.
            traceback.clear_frames(exc.__traceback__)
            if "DefaultCPUAllocator" in str(exc):  # torch has no type of its own for the host's memory
                return self._out_of_memory(images)
            self._check_device(exc)
            error = InferenceFailed("the model failed on this image")
            error.__cause__ = exc
            return error

    def _out_of_memory(self, images: Sequence[Image]) -> OutOfMemory:
        height, width = images[0].pixels.shape[:2]
        return OutOfMemory(f"an input of {width}x{height} does not fit the memory of {self.device}")

    def _check_device(self, cause: Exception) -> None:
        """After an illegal access, say, all that follows on a CUDA device fails: then it's not the image."""
        if self.device.type != "cuda":
            return
        try:
            torch.cuda.synchronize(self.device)
        except RuntimeError:
            raise DeviceError(f"{self.device} has failed for good: {cause}") from cause

    @torch.inference_mode()
    def _run(self, model: str, images: Sequence[Image]) -> list[Outcome]:
        resident, timings = self._models[model], Timings()
        resident.timer.reset()
        clock = resident.timer
        with clock.span("preprocess"):
            pixels = torch.stack([image.pixels for image in images]).to(self.device)
            batch = normalize(pixels, resident.spec.preprocessing)
        with clock.span("forward"):
            output = resident.segmentor(batch)
        input_size = batch.shape[2], batch.shape[3]
        with clock.span("postprocess"):
            with clock.span("upsample_argmax"):
                tails = [
                    upsample_argmax(logits, input_size, image.original, align_corners=resident.segmentor.align_corners)
                    for logits, image in zip(output.logits, images, strict=True)
                ]
            results: list[Outcome] = [
                Segmentation(
                    ids.cpu().numpy(),
                    confidence.cpu().numpy(),
                    tuple(trace.of_image(index) for trace in output.traces) if image.wants_traces else (),
                    timings,
                )
                for index, (image, (ids, confidence)) in enumerate(zip(images, tails, strict=True))
            ]
        # On CUDA these are the device's own times: a host clock would see only how long the launches took.
        timings.modules = clock.collect()
        timings.stages = {stage: timings.modules.pop(stage) for stage in STAGES}
        return results

    def _free_memory(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
