"""What runs the bundled models fastest on this CPU: eager torch, ours, and three compilers.

`python -m benchmarks.backends [--rounds N] [--threads N ...] [--models NAME ...] [--images FOLDER]` prints a table for
each model and number of threads, and puts it into benchmarks/results/backends.json in place of the one before; what
isn't measured again stays, with the versions it was measured with. Timed is one image from the network's input to its
class ids, all backends taking turns; masks are compared over the sample picture and drawn streets, or the pictures of a
folder. ONNX Runtime and OpenVINO take part where they are installed (pip install onnx onnxscript onnxruntime openvino).
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from app.engine.memory import reuse_heap
from app.engine.prepare import prepare
from app.engine.tuning import make_fast
from app.imaging import decode, encode_rgb
from benchmarks.machine import describe
from models import ModelSpec, Output, Segmentor, create_model, get_spec, list_models
from models.folding import fold_batch_norm
from models.fused import has_bfloat16
from models.ops.upsample import upsample_argmax
from models.transforms import normalize
from training.scenes import draw_street

Forward = Callable[[Tensor], Tensor]  # image [1, 3, H, W] to logits [1, K, h, w]

NAMES = tuple(spec.name for spec in list_models())
SAMPLE = Path(__file__).parents[1] / "app/web/sample.jpg"
RESULTS = Path(__file__).parent / "results" / "backends.json"
STREETS = 7
THREADS = (1, 2)  # as in the service on two cores
LIBRARIES = ("onnx", "onnxscript", "onnxruntime", "openvino")


class Exported(nn.Module):
    """The network as tensors alone: logits, then query and key of each attention block."""

    def __init__(self, segmentor: Segmentor) -> None:
        super().__init__()
        self.segmentor = segmentor

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        output = self.segmentor(image)
        return output.logits, *(part for trace in output.traces for part in (trace.query, trace.key))


def logits_of(segmentor: Callable[[Tensor], Output]) -> Forward:
    def forward(image: Tensor) -> Tensor:
        logits: Tensor = segmentor(image).logits
        return logits

    return forward


def fused(segmentor: Segmentor, image: Tensor, *, reduced: bool) -> Forward:
    own = copy.deepcopy(segmentor)
    make_fast(own, image, THREADS, reduced=reduced)
    return logits_of(own)


def inductor(segmentor: Segmentor) -> Forward:
    import torch._inductor.config

    torch._inductor.config.freezing = True
    return logits_of(torch.compile(copy.deepcopy(segmentor)))


def onnx_runtime(path: str, threads: int) -> Forward:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda image: torch.from_numpy(session.run(None, {name: image.contiguous().numpy()})[0])


def openvino(path: str, threads: int, precision: str) -> Forward:
    import openvino

    options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    request = openvino.Core().compile_model(path, "CPU", options).create_infer_request()
    return lambda image: torch.from_numpy(request.infer([image.contiguous().numpy()], share_inputs=True)[0])


def backends(segmentor: Segmentor, image: Tensor, threads: int, folder: str) -> Iterator[tuple[str, Forward]]:
    """All that can run here, each made as it is asked for."""
    yield "eager", logits_of(segmentor)
    yield "ours, float32", fused(segmentor, image, reduced=False)
    if has_bfloat16():
        yield "ours, bfloat16 in part", fused(segmentor, image, reduced=True)
    yield "inductor, frozen", inductor(segmentor)
    if not find_spec("onnxscript"):
        return
    path = f"{folder}/model.onnx"
    plain = Exported(segmentor).eval()
    torch.onnx.export(plain, (image.contiguous(),), path, dynamo=True, external_data=False, verbose=False)
    if find_spec("onnxruntime"):
        yield "ONNX Runtime", onnx_runtime(path, threads)
    if find_spec("openvino"):
        yield "OpenVINO, float32", openvino(path, threads, "f32")
        yield "OpenVINO, bfloat16", openvino(path, threads, "bf16")


def measured_on(rounds: int, folder: Path | None) -> dict[str, str | int]:
    """What a table was measured with: machine and threads, library versions, rounds and pictures."""
    libraries = {name: version(name) for name in LIBRARIES if find_spec(name)}
    pictures = f"sample and {STREETS} drawn streets" if folder is None else f"{len(list(folder.iterdir()))} in a folder"
    machine = {**describe(torch.device("cpu")), "bfloat16": has_bfloat16()}
    return {**machine, **libraries, "rounds": rounds, "pictures": pictures}


def pictures(spec: ModelSpec, folder: Path | None) -> list[Tensor]:
    """Inputs of the network, all of the first one's size."""
    files = [SAMPLE.read_bytes(), *(encode_rgb(draw_street(seed)[0]) for seed in range(STREETS))]
    if folder is not None:
        files = [path.read_bytes() for path in sorted(folder.iterdir())]
    inputs = []
    for data in files:
        image = prepare(decode(data, 1 << 30), spec, spec.inference, wants_traces=False)[0]
        inputs.append(normalize(image.pixels[None], spec.preprocessing))
    return [image for image in inputs if image.shape == inputs[0].shape]


def mask(logits: Tensor, image: Tensor) -> Tensor:
    size = (image.shape[2], image.shape[3])
    return upsample_argmax(logits[0], size, size, align_corners=False)[0]


def measure(name: str, threads: int, rounds: int, folder: Path | None) -> dict[str, dict[str, float]]:
    spec = get_spec(name)
    segmentor = create_model(name)
    fold_batch_norm(segmentor)
    segmentor.use_channels_last()
    inputs = pictures(spec, folder)
    image = inputs[0]
    runs: dict[str, Forward] = {}
    rows: dict[str, dict[str, float]] = {}
    want = [mask(segmentor(each).logits, each) for each in inputs]
    with tempfile.TemporaryDirectory() as scratch:
        started = time.perf_counter()
        for backend, forward in backends(segmentor, image, threads, scratch):
            forward(image)
            ready = time.perf_counter() - started
            same = [
                (mask(forward(each), each) == other).double().mean().item()
                for each, other in zip(inputs, want, strict=True)
            ]
            rows[backend] = {"agreement": statistics.mean(same), "least agreement": min(same), "seconds to make": ready}
            runs[backend] = forward
            started = time.perf_counter()
    cpu: dict[str, list[float]] = {backend: [] for backend in runs}
    wall: dict[str, list[float]] = {backend: [] for backend in runs}
    for _ in range(rounds):
        for backend, forward in runs.items():
            started, started_cpu = time.perf_counter(), time.process_time()
            mask(forward(image), image)
            wall[backend].append(time.perf_counter() - started)
            cpu[backend].append(time.process_time() - started_cpu)
    for backend, row in rows.items():
        row["cpu ms"] = 1000 * statistics.median(cpu[backend])
        row["ms"] = 1000 * statistics.median(wall[backend])
    return rows


def show(rows: dict[str, dict[str, float]]) -> None:
    eager = rows["eager"]["cpu ms"]
    print(f"{'':<26}{'CPU ms':>8}{'of eager':>10}{'ms':>8}{'masks as eager, %':>20}{'least':>10}{'s to make':>11}")
    for backend, row in rows.items():
        print(
            f"{backend:<26}{row['cpu ms']:8.1f}{row['cpu ms'] / eager:10.2f}{row['ms']:8.1f}"
            f"{100 * row['agreement']:20.3f}{100 * row['least agreement']:10.3f}{row['seconds to make']:11.1f}"
        )


@torch.inference_mode()
def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--models", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--images", type=Path)
    given = parser.parse_args(arguments)
    reuse_heap()
    tables = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for threads in given.threads:
        torch.set_num_threads(threads)
        for name in given.models:
            rows = measure(name, threads, given.rounds, given.images)
            print(f"\n{name}, {threads} threads, torch {torch.__version__}")
            show(rows)
            table = {"measured_on": measured_on(given.rounds, given.images), "rows": rows}
            tables.setdefault(name, {})[str(threads)] = table
            RESULTS.write_text(json.dumps(tables, indent=2) + "\n")


if __name__ == "__main__":
    main()
