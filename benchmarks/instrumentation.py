"""What it costs to time each module, and to count and trace each request, against the work that is measured.

`python -m benchmarks.instrumentation [--rounds N]` prints a table and writes benchmarks/results/instrumentation.json.
On a shared machine the difference of two whole passes drowns in noise. So the hooks are also timed by themselves, on
the same modules with their work taken out, and so are the metrics and the spans of one request.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from torch import Tensor, nn

from app.engine.timing import ModuleTimer
from app.metrics import Metrics
from app.timings import Timings
from app.traces import Answered, Spans
from benchmarks.machine import describe
from models import Segmentor, create_model, get_spec
from models.folding import fold_batch_norm

MODEL = "ccnet-mobilenetv2-camvid"
SIZE = get_spec(MODEL).preprocessing.input_size((360, 480))
STAGES = ("read", "decode", "queue", "preprocess", "forward", "postprocess", "encode")
RESULTS = Path(__file__).parent / "results" / "instrumentation.json"


def repeat(run: Callable[[], object], times: int) -> float:
    """CPU seconds of one call."""
    started = time.process_time()
    for _ in range(times):
        run()
    return (time.process_time() - started) / times


class Hollow(nn.Module):
    """Calls hooked modules as often as one pass does, each with its work taken out."""

    def __init__(self, segmentor: Segmentor, timed: bool) -> None:
        super().__init__()
        names = segmentor.timed_modules()
        self.modules_called = [(nn.Identity(), len(called)) for called in names.values()]
        if timed:
            hollow = {
                identity: called for (identity, _), called in zip(self.modules_called, names.values(), strict=True)
            }
            stand_in = type("StandIn", (), {"timed_modules": lambda self: hollow})()
            self.timer = ModuleTimer(stand_in, torch.device("cpu"))

    def forward(self, x: Tensor) -> Tensor:
        for module, calls in self.modules_called:
            for _ in range(calls):
                x = module(x)
        return x


def hooks_alone(segmentor: Segmentor, times: int = 2000) -> float:
    """CPU seconds that the hooks of one pass take, its spans and their collection among them."""
    plain, timed, x = Hollow(segmentor, timed=False), Hollow(segmentor, timed=True), torch.zeros(1)

    def with_spans() -> None:
        for name in ("preprocess", "forward", "postprocess", "upsample_argmax"):
            with timed.timer.span(name):
                pass
        timed(x)
        timed.timer.collect()

    return repeat(with_spans, times) - repeat(lambda: plain(x), times)


def metrics_alone(segmentor: Segmentor, times: int = 2000) -> float:
    """CPU seconds of all that is counted of one request which is a batch by itself."""
    metrics = Metrics()
    modules = {name: 0.01 for names in segmentor.timed_modules().values() for name in names}
    timings = Timings(dict.fromkeys(STAGES, 0.01), modules)

    def count() -> None:
        metrics.http_request("POST", "/segment", 200, 0.1)
        metrics.image(MODEL, "ok")
        metrics.wait_ratio(MODEL, 1.0)
        metrics.stages(MODEL, timings)
        metrics.batch(MODEL, "full", 1)
        metrics.device("cpu", 0.1)
        metrics.wasted(MODEL, 0.0)
        metrics.modules(MODEL, "cpu", timings.modules)

    return repeat(count, times)


def spans_alone(segmentor: Segmentor, times: int = 2000) -> float:
    """CPU seconds of a request's spans, but for sending them, which another thread does."""
    spans = Spans(BatchSpanProcessor(InMemorySpanExporter()))
    modules = {name: 0.01 for names in segmentor.timed_modules().values() for name in names}
    timings = Timings(dict.fromkeys(STAGES, 0.01), modules)
    noted: dict[str, str | int] = {"request_id": "0" * 32, "model": MODEL, "passes": 1, "batch_size": 1}
    now = time.perf_counter()
    return repeat(lambda: spans.write(Answered("POST", "/segment", 200, {}, now - 1, now, timings, noted)), times)


def passes(segmentor: Segmentor, rounds: int) -> tuple[float, float]:
    """Median CPU seconds of a pass without and with the module timer, taking turns."""
    timed = copy.deepcopy(segmentor)
    timer = ModuleTimer(timed, torch.device("cpu"))
    image = torch.randn(1, 3, *SIZE).contiguous(memory_format=torch.channels_last)
    seconds: dict[str, list[float]] = {"without": [], "with": []}
    for _ in range(rounds):
        seconds["without"].append(repeat(lambda: segmentor(image), 1))
        seconds["with"].append(repeat(lambda: (timed(image), timer.collect()), 1))
    return statistics.median(seconds["without"]), statistics.median(seconds["with"])


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    segmentor = create_model(MODEL)
    fold_batch_norm(segmentor)
    segmentor.use_channels_last()
    without, with_timer = passes(segmentor, rounds)
    hooks, metrics = hooks_alone(segmentor), metrics_alone(segmentor)
    rows = {
        "pass without the module timer": without,
        "pass with it": with_timer,
        "its hooks alone": hooks,
        "metrics of one request": metrics,
        "spans of one request": spans_alone(segmentor),
    }
    print(f"{MODEL} at {SIZE[1]}x{SIZE[0]}, torch {torch.__version__}, {torch.get_num_threads()} threads, CPU time\n")
    for name, seconds in rows.items():
        print(f"{name:<32}{1000 * seconds:10.3f} ms{100 * seconds / without:9.3f} %")
    found = {"measured_on": {**describe(torch.device("cpu")), "rounds": rounds}, "seconds": rows}
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
