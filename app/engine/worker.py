"""Runs batches on one device: uint8 images in, class ids out."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from app.engine.cores import Cores, compute_on
from app.engine.device import Outcome, Partial, Ran, Segmentation, find_device
from app.engine.graphs import MOST, Graphs
from app.engine.memory import clear, ran_out, reuse_heap
from app.engine.staging import Image, Staged, Staging
from app.engine.timing import ModuleTimer
from app.engine.tuning import tune, tune_on_cuda
from app.errors import DeviceError, InferenceFailed, OutOfMemory, ServiceError
from app.timings import Timings
from models import ModelError, ModelSpec, Output, Segmentor, Trace, load_model
from models.folding import fold_batch_norm
from models.operators import choose_operators
from models.ops.upsample import upsample_argmax, upsample_argmax_reference
from models.precision import Precision, precision_of
from models.transforms import blank_padding, normalize
from models.windows import list_views

Value = TypeVar("Value")

STAGES = ("preprocess", "forward", "postprocess")
BFLOAT16 = (8, 0)  # compute capability from which on a GPU multiplies it
WARM_UP_PIXELS = 4 << 20  # of the largest batch to warm up with: by default no batch is larger
NICENESS = 5  # of the threads that compute, so that the event loop need not queue for a core behind them


@dataclass(frozen=True)
class Resident:
    """A model on the device, ready to run."""

    spec: ModelSpec
    segmentor: Segmentor
    timer: ModuleTimer


class Worker:
    """Owns the device and the models on it. Threads that have `entered` call it, `slots` of them at once."""

    def __init__(self, device: str, threads: int, *, reduced: bool = True, reference_operators: bool = False) -> None:
        """
        Args:
            device: auto, cpu, cuda or cuda:N
            threads: CPU threads of a forward pass that runs alone; 0 leaves the choice to torch
            reduced: bfloat16, in part or whole, on a device that has it, where masks stay the same
            reference_operators: attend and upsample by the definitions, to check the fast operators by

        Raises:
            DeviceError: there is no such device
        """
        self.device = find_device(device)
        self.stages_ahead = self.device.type == "cuda"  # on a CPU a batch is where it has to be already
        if self.device.type == "cpu":
            reuse_heap()
        self._cores = Cores(threads, self.slots, self._be_nice) if self.device.type == "cpu" else None
        self._reduced = reduced
        self._reference_operators = reference_operators
        self._upsample = upsample_argmax_reference if reference_operators else upsample_argmax
        self._models: dict[str, Resident] = {}
        self._graphs = Graphs(MOST if self.device.type == "cuda" else 0)
        self._staging = Staging(self.device)

    @property
    def best_batch_size(self) -> int:
        """Images in a batch beyond which nothing is gained: measured on a CPU, a guess on CUDA."""
        return 8 if self.device.type == "cuda" else 1

    @property
    def slots(self) -> int:
        """Batches to run at once. Two on a CPU, which share its cores."""
        return 1 if self.device.type == "cuda" else 2

    def enter(self) -> None:
        """Prepare the calling thread, which may then call the rest."""
        if self._cores is None:
            torch.cuda.set_device(self.device)  # events are recorded on this thread's current device
            return
        compute_on(self._cores.share)
        self._be_nice()

    def load(self, spec: ModelSpec, key: str) -> Precision:
        """Put a model on the device, under a key by which the rest knows it; gives what it computes in there.

        Raises:
            ModelError: its file is not what it should be
            OutOfMemory: there is no room for it
            InferenceFailed: whatever else went wrong
        """
        load = partial(self._attempt, partial(self._load, spec), spec.name, f"no network can be made of {spec.weights}")
        loaded = load()
        if isinstance(loaded, OutOfMemory) and self._free_memory():
            loaded = load()
        if isinstance(loaded, ServiceError):
            raise loaded
        self._models[key] = loaded
        return precision_of(loaded.segmentor)

    def warm_up(self, key: str) -> None:
        """Run a model as requests will, so that none pays for what is made at the first passes.

        Raises:
            OutOfMemory, InferenceFailed: it can't run
        """
        spec = self._models[key].spec
        long_side, short_side = spec.preprocessing.scale
        # Windows are what a model that slides is given.
        usual = list_views((short_side, long_side), spec.preprocessing, spec.inference)[0].input_size
        image = Image(torch.zeros(*usual, 3, dtype=torch.uint8), usual, wants_traces=True)
        for count in self._warm_up_batches(usual[0] * usual[1]):
            for beside in (False, False, True, True):  # alone if nothing runs, and as beside another
                outcomes, _ = self._pass(key, self.stage([image] * count), beside=beside)
                if isinstance(outcomes, OutOfMemory) and self._free_memory():
                    outcomes, _ = self._pass(key, self.stage([image] * count), beside=beside)
                if isinstance(outcomes, OutOfMemory) and count > 1:
                    break  # such batches will be split
                if isinstance(outcomes, ServiceError):
                    raise outcomes

    def unload(self, key: str) -> None:
        """Take a model that nobody runs any more from the device, and give its memory back to the system."""
        del self._models[key]
        self._graphs.forget(key)
        clear()
        self._give_back()

    def stage(self, images: Sequence[Image]) -> Staged:
        """Bring a batch to the device, while another may be running.

        Args:
            images: of one input size
        """
        return self._staging(images)

    def run(self, key: str, staged: Staged) -> Ran:
        """Segment the images of a batch. An image that fails fails alone.

        Raises:
            DeviceError: the device has failed for good
        """
        outcomes, share = self._pass(key, staged)
        if not isinstance(outcomes, ServiceError):
            return Ran(outcomes, share=share)
        count = len(staged.images)
        # Only out here, past the handler, does nothing hold on to the failed pass.
        if isinstance(outcomes, OutOfMemory) and self._free_memory():
            return self.run(key, staged)
        if count == 1:
            return Ran([outcomes], fits=0 if isinstance(outcomes, OutOfMemory) else None, share=share)
        first = self.run(key, staged.take(range(count // 2)))
        second = self.run(key, staged.take(range(count // 2, count)))
        outcomes_of_both = first.outcomes + second.outcomes
        if not isinstance(outcomes, OutOfMemory) and first.fits is None and second.fits is None:
            return Ran(outcomes_of_both, share=share)
        fits = max(count // 2 if half.fits is None else half.fits for half in (first, second))
        return Ran(outcomes_of_both, fits, share)

    def memory(self) -> dict[str, int]:
        """Bytes on the device by kind; nothing where torch doesn't count them."""
        if self.device.type != "cuda":
            return {}
        return {
            "allocated": torch.cuda.memory_allocated(self.device),
            "reserved": torch.cuda.memory_reserved(self.device),
        }

    def _warm_up_batches(self, pixels: int) -> list[int]:
        """Sizes of the batches to warm up with, the largest first, whose graph's memory the smaller ones share."""
        largest = max(1, min(self.best_batch_size, WARM_UP_PIXELS // pixels))
        return [largest >> halvings for halvings in range(largest.bit_length())]

    def _be_nice(self) -> None:
        with contextlib.suppress(OSError, AttributeError):  # Linux alone has priorities for threads
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)

    def _pass(self, key: str, staged: Staged, *, beside: bool = False) -> tuple[list[Outcome] | ServiceError, float]:
        """What came of a batch, and the share of the device that it had."""
        run = partial(self._pass_here, key, staged)
        if self._cores is None:
            return run(), 1.0
        return self._cores.run(run, beside=beside)

    def _pass_here(self, key: str, staged: Staged) -> list[Outcome] | ServiceError:
        height, width = staged.images[0].input_size
        return self._attempt(
            partial(self._run, key, staged), f"an input of {width}x{height}", "the model failed on this image"
        )

    def _attempt(self, function: Callable[[], Value], what: str, failure: str) -> Value | ServiceError:
        """
        Args:
            what: may not fit the memory
            failure: what to say if anything else goes wrong
        """
        memory = OutOfMemory(f"{what} does not fit the memory of {self.device}")
        try:
            return function()
        except ModelError:
            raise
        # The one blind except of the program: whatever the model raised, the caller must hear of it.
        except Exception as exc:  # noqa: BLE001
            if ran_out(exc):
                return memory
            self._check_device(exc)
            return InferenceFailed(failure).because(exc)

    def _load(self, spec: ModelSpec) -> Resident:
        segmentor = load_model(spec)
        fold_batch_norm(segmentor)
        segmentor.to(self.device)
        if self.device.type == "cuda" or segmentor.prefers_channels_last:
            segmentor.use_channels_last()
        choose_operators(segmentor, self.device, reference=self._reference_operators)
        if self._cores is not None:
            segmentor = tune(segmentor, spec, reduced=self._reduced, threads=(self._cores.share, self._cores.all))
        elif self._reduced and torch.cuda.get_device_capability(self.device) >= BFLOAT16:
            segmentor = tune_on_cuda(segmentor, spec)
        return Resident(spec, segmentor, ModuleTimer(segmentor, self.device))

    def _check_device(self, cause: Exception) -> None:
        """After an illegal access, say, all that follows on a CUDA device fails: then it's not the image."""
        if self.device.type != "cuda":
            return
        try:
            # Not the whole device, which must not be waited for while another thread captures a graph.
            torch.cuda.current_stream(self.device).synchronize()
        except RuntimeError:
            raise DeviceError(f"{self.device} has failed for good: {cause}") from cause

    @torch.inference_mode()
    def _run(self, key: str, staged: Staged) -> list[Outcome]:
        resident, images = self._models[key], staged.images
        timings = Timings(batch_size=len(images))
        resident.timer.reset()
        clock = resident.timer
        with clock.span("preprocess"):
            batch = normalize(staged.arrive(self.device), resident.spec.preprocessing)
            blank_padding(batch, [image.inside for image in images])
        with clock.span("forward"):
            output = self._graphs.run(key, resident.segmentor, clock, batch)
        with clock.span("postprocess"):
            with clock.span("upsample_argmax"):
                masks = [
                    self._mask(image, output, index, resident.segmentor.align_corners)
                    for index, image in enumerate(images)
                ]
            results: list[Outcome] = [
                Partial(timings)
                if mask is None
                else Segmentation(
                    mask[0].cpu().numpy(),
                    mask[1].cpu().numpy(),
                    _traces(image, output, index) if image.assembly is None else image.assembly.traces,
                    timings,
                )
                for index, (image, mask) in enumerate(zip(images, masks, strict=True))
            ]
        # On CUDA these are the device's own times: a host clock would see only how long the launches took.
        timings.modules = clock.collect()
        timings.stages = {stage: timings.modules.pop(stage) for stage in STAGES}
        return results

    def _mask(self, image: Image, output: Output, index: int, align_corners: bool) -> tuple[Tensor, Tensor] | None:
        """Class ids and confidence [H, W] uint8 of an image in a batch; None while others of its passes are missing."""
        logits = output.logits[index]
        if image.assembly is None:
            return self._upsample(logits, image.input_size, image.original, align_corners=align_corners)
        if image.assembly.add(image.part, logits, _traces(image, output, index)):
            return image.assembly.merge(align_corners=align_corners)
        return None

    def _free_memory(self) -> bool:
        """True if graphs were freed too, so that what has failed is worth another try."""
        made_room = self._graphs.make_room()
        gc.collect()
        self._give_back()
        return made_room

    def _give_back(self) -> None:
        """Return what torch keeps of the device's memory for reuse."""
        if self.device.type == "cuda":
            with self._graphs.no_capture():
                torch.cuda.empty_cache()


def _traces(image: Image, output: Output, index: int) -> tuple[Trace, ...]:
    return tuple(trace.of_image(index) for trace in output.traces) if image.wants_traces else ()
