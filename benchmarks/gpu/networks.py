"""Whole networks: images a second by precision and batch, with and without CUDA graphs; what attention costs."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from app.engine.graphs import MOST, CudaGraph, Graphs
from app.engine.timing import ModuleTimer
from app.engine.worker import Worker
from benchmarks.gpu.measure import peak_of, seconds_of
from benchmarks.gpu.scope import DEVICE, Row, Scope
from benchmarks.traces import cost
from models import ModelSpec, Segmentor
from models.backbones.resnet import BLOCKS, ResNet
from models.folding import fold_batch_norm
from models.heads.ann import ANNHead
from models.heads.ccnet import CCHead
from models.heads.fcn import Head
from models.heads.non_local import NonLocalHead
from models.operators import choose_operators
from models.precision import lower_precision

HEADS: dict[str, Callable[[], Head]] = {
    "ccnet": lambda: CCHead(2048, 512, 19),
    "ann": lambda: ANNHead((1024, 2048), 512, 19),
    "nonlocal": lambda: NonLocalHead(2048, 512, 19),
}
PLAIN, TUNED = "float32", "bfloat16"


def network(head: str, depth: int, precision: str) -> Segmentor:
    """As the service runs it on CUDA, in bfloat16 whole; plain as it comes from a checkpoint."""
    segmentor = Segmentor(ResNet(BLOCKS[depth]), HEADS[head]()).eval().to(DEVICE)
    if precision == TUNED:
        fold_batch_norm(segmentor)
        segmentor.use_channels_last()
        choose_operators(segmentor, DEVICE)
        lower_precision(segmentor, "stem")
    return segmentor


def whole_models(scope: Scope, deadline: float) -> Iterator[Row]:
    """Plain float32 without a graph first: what the others are compared with. Ends in time, wherever that is."""
    for depth, head, precision in itertools.product(scope.depths, HEADS, (PLAIN, TUNED)):
        segmentor = network(head, depth, precision)
        layout = torch.channels_last if precision == TUNED else torch.contiguous_format
        timer: ModuleTimer | None = None
        for graph, size in itertools.product((False, True), scope.sizes):
            if graph:
                timer = timer or ModuleTimer(segmentor, DEVICE)  # once: its hooks stay
            for batch in scope.batches:
                if time.monotonic() > deadline:
                    print("out of time: the rest is left out")
                    return
                made: list[torch.Size] = []
                forward = segmentor if timer is None else by_graph(segmentor, timer, made)
                row: Row = {
                    "model": f"{head}_r{depth}-d8",
                    "size": f"{size[0]}x{size[1]}",
                    "type": precision,
                    "graph": "yes" if graph else "no",
                    "batch": batch,
                }
                try:
                    image = torch.randn(batch, 3, *size, device=DEVICE).contiguous(memory_format=layout)
                    row |= speed(forward, image)
                    yield row | ({"graph": "none"} if graph and not made else {})
                except torch.cuda.OutOfMemoryError:
                    yield row | {"images/s": 0.0, "MB": "too many"}
                    break


def by_graph(segmentor: Segmentor, timer: ModuleTimer, made: list[torch.Size]) -> Callable[[Tensor], object]:
    """As the service runs it, its modules timed.

    Args:
        made: takes each shape of batch that gets a graph; another runs as it is, and so do all on a CPU
    """

    def capture(segmentor: Segmentor, timer: ModuleTimer, batch: Tensor, beside: CudaGraph | None) -> CudaGraph:
        graph = CudaGraph(segmentor, timer, batch, beside)
        made.append(batch.shape)
        return graph

    graphs = Graphs(MOST, capture)

    def forward(image: Tensor) -> None:
        graphs.run("model", segmentor, timer, image)
        timer.reset()

    return forward


def speed(forward: Callable[[Tensor], object], image: Tensor) -> Row:
    peak = peak_of(lambda: forward(image))  # of the first pass, which has no graph yet
    forward(image)  # in which it gets one
    return {"images/s": len(image) / seconds_of(lambda: forward(image), graph=False), "MB": peak / 1e6}


def attention(spec: ModelSpec, scope: Scope) -> Iterator[Row]:
    """A pass through the service's worker with traces wanted, beside one without."""
    worker = Worker(DEVICE.type, 0)
    worker.enter()
    worker.load(spec, spec.name)
    long_side, short_side = spec.preprocessing.scale
    size = (short_side, long_side) if scope.checkpoint else (64, 96)
    yield {"model": spec.name, "size": f"{size[0]}x{size[1]}", **cost(worker, spec.name, size, scope.rounds)}
    worker.unload(spec.name)
