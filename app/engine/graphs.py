"""Forward passes as CUDA graphs: hundreds of kernels in one launch, for each shape of batch that comes again."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache

import torch
from torch import Tensor

from app.engine.memory import ran_out
from app.engine.timing import ModuleTimer
from models import Output, Segmentor

log = logging.getLogger(__name__)

MOST = 32  # graphs at once; each keeps its own input and output, some MB an image, and all share the memory between


@cache
def capture_stream(device: torch.device) -> torch.cuda.Stream:
    """The one stream that all graphs are captured on.

    Torch has 32 streams and gives them out by turns. With a new one for each capture, as models come and go, it would
    one day be the stream that images are copied on, and their copy would become part of a graph.
    """
    stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return stream


@contextmanager
def _ended(pool: torch.cuda._POOL_HANDLE) -> Iterator[None]:
    """Around a capture: if it fails, tell torch's allocator that it is over.

    Torch itself does not, where CUDA rejects what was captured. The allocator would believe that the capture goes on,
    and free no memory that two streams have used, such as that of each staged batch.
    """
    try:
        yield
    except RuntimeError:
        with suppress(RuntimeError):  # it was over
            device = torch.cuda.current_device()
            torch._C._cuda_endAllocateToPool(device, pool)
            torch._C._cuda_releasePool(device, pool)
        raise


class CudaGraph:
    """A pass for batches of one shape: recorded once, and replayed on whatever batch it is given."""

    def __init__(self, segmentor: Segmentor, timer: ModuleTimer, batch: Tensor, beside: CudaGraph | None) -> None:
        """
        Args:
            timer: the segmentor's; it times the modules of every replay
            batch: any of its shape
            beside: another graph to share memory with, since no two run at once

        Raises:
            torch.OutOfMemoryError, RuntimeError: it can't be captured
        """
        self._timer = timer
        self._input = batch.clone()
        self._graph = torch.cuda.CUDAGraph()
        stream = capture_stream(batch.device)
        stream.wait_stream(torch.cuda.current_stream())
        self._pool: torch.cuda._POOL_HANDLE = torch.cuda.graph_pool_handle() if beside is None else beside._pool
        # The stream is entered here too, since torch would stay in it after a capture that failed.
        with torch.cuda.stream(stream):
            with timer.recorded():
                segmentor(self._input)  # so that libraries are ready, on this thread as well
            # "thread_local": other threads stage batches and load models meanwhile, and must not spoil the capture.
            capturing = torch.cuda.graph(self._graph, self._pool, stream, capture_error_mode="thread_local")
            with _ended(self._pool), timer.recorded() as self._spans, capturing:
                self._output: Output = segmentor(self._input)

    def __call__(self, batch: Tensor) -> Output:
        self._input.copy_(batch)
        self._graph.replay()
        self._timer.add(self._spans)
        return copied(self._output)


Capture = Callable[[Segmentor, ModuleTimer, Tensor, CudaGraph | None], CudaGraph]


class Graphs:
    """Runs networks: a batch of a shape that was seen lately by a graph of its own, any other as it is.

    Shapes that come once cost no capture, nor do more of them by turns than are kept: the least recently used is
    forgotten, whether it has its graph yet or not.
    """

    def __init__(self, most: int, capture: Capture = CudaGraph) -> None:
        """
        Args:
            most: shapes to keep; 0 for no graphs at all, as on a CPU
        """
        self._most = most
        self._capture = capture
        self._shapes: OrderedDict[tuple[str, torch.Size], CudaGraph | None] = OrderedDict()
        self._without: set[str] = set()  # models that can't be captured
        self._lock = threading.Lock()  # held from a replay to the copy of its result, which the next would write over

    def run(self, key: str, segmentor: Segmentor, timer: ModuleTimer, batch: Tensor) -> Output:
        """Logits and traces of a batch, in memory of their own.

        Args:
            key: of the model
            timer: the segmentor's

        Raises:
            torch.OutOfMemoryError, MemoryError, RuntimeError: of the pass; a failed capture is none, and is logged
        """
        if self._most and key not in self._without:
            with self._lock:
                graph = self._find(key, segmentor, timer, batch)
                if graph is not None:
                    return graph(batch)
        output: Output = segmentor(batch)
        return output

    def forget(self, key: str) -> None:
        """Free the graphs of a model that is no more."""
        with self._lock:
            for shape in [shape for shape in self._shapes if shape[0] == key]:
                del self._shapes[shape]
            self._without.discard(key)

    def make_room(self) -> bool:
        """Where memory has run out: free all graphs, and keep half as many from now on. False if there are none."""
        with self._lock:
            return any(self._shapes.values()) and self._make_room()

    @contextmanager
    def no_capture(self) -> Iterator[None]:
        """While none is made: as long as one is, torch's allocator gives back nothing of what it keeps for reuse."""
        with self._lock:
            yield

    def _find(self, key: str, segmentor: Segmentor, timer: ModuleTimer, batch: Tensor) -> CudaGraph | None:
        """The graph of a batch's shape, captured if it was seen before; None if it is to run as it is."""
        shape = (key, batch.shape)
        if shape not in self._shapes:
            self._shapes[shape] = None
            if len(self._shapes) > self._most:
                self._shapes.popitem(last=False)
            return None
        self._shapes.move_to_end(shape)
        graph = self._shapes[shape]
        if graph is None:
            graph = self._captured(key, segmentor, timer, batch)
            if graph is not None:
                self._shapes[shape] = graph
        return graph

    def _captured(self, key: str, segmentor: Segmentor, timer: ModuleTimer, batch: Tensor) -> CudaGraph | None:
        try:
            return self._capture(segmentor, timer, batch, next(filter(None, self._shapes.values()), None))
        except RuntimeError as exc:
            full = ran_out(exc)
            if not full:
                log.warning("%s runs without CUDA graphs, which cannot be made of it: %s", key, exc)
                self._without.add(key)
                self._shapes.clear()  # torch may take no other capture into the memory that they share
        if full:  # only past the handler does nothing hold on to what was captured of it
            self._make_room()
        return None

    def _make_room(self) -> bool:
        self._shapes.clear()
        self._most //= 2
        log.warning("memory has run out: no more than %d CUDA graphs from now on", self._most)
        return True


def copied(output: Output) -> Output:
    """The same in memory of its own."""
    return Output(output.logits.clone(), tuple(trace.mapped(torch.clone) for trace in output.traces))
