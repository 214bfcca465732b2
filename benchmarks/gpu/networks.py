"""Whole networks: images a second by precision and batch, with and without CUDA graphs; what attention costs."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator

import torch
from torch import nn

from app.engine.graphs import MOST, Graphs
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
from models.heads.non_local import NonLocalHead
from models.operators import choose_operators
from models.precision import lower_precision

HEADS: dict[str, Callable[[], nn.Module]] = {
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
        timer = ModuleTimer(segmentor, DEVICE)
        for graph, size in itertools.product((False, True), scope.sizes):
            # The service's own graphs, by which it may run every shape that is measured.
            graphs = Graphs(MOST if graph and DEVICE.type == "cuda" else 0)
            for batch in scope.batches:
                if time.monotonic() > deadline:
                    print("out of time: the rest is left out")
                    return
                row: Row = {
                    "model": f"{head}_r{depth}-d8",
                    "size": f"{size[0]}x{size[1]}",
                    "type": precision,
                    "graph": "yes" if graph else "no",
                    "batch": batch,
                }
                try:
                    yield row | speed(segmentor, timer, graphs, (batch, 3, *size))
                except torch.cuda.OutOfMemoryError:
                    yield row | {"images/s": 0.0, "MB": float("inf")}
                    break


def speed(segmentor: Segmentor, timer: ModuleTimer, graphs: Graphs, shape: tuple[int, ...]) -> Row:
    image = torch.randn(shape, device=DEVICE).contiguous(memory_format=torch.channels_last)

    def run() -> None:
        graphs.run("model", segmentor, timer, image)
        timer.reset()

    peak = peak_of(run)  # of the first pass, which has no graph yet
    run()  # in which it gets one
    return {"images/s": shape[0] / seconds_of(run, graph=False), "MB": peak / 1e6}


def attention(spec: ModelSpec, scope: Scope) -> Iterator[Row]:
    """A pass through the service's worker with traces wanted, beside one without."""
    worker = Worker(DEVICE.type, 0)
    worker.enter()
    worker.load(spec, spec.name)
    long_side, short_side = spec.preprocessing.scale
    size = (short_side, long_side) if scope.checkpoint else (64, 96)
    yield {"model": spec.name, "size": f"{size[0]}x{size[1]}", **cost(worker, spec.name, size, scope.rounds)}
    worker.unload(spec.name)
