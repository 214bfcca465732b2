"""Which shapes get a graph, and what becomes of it; graphs themselves need a GPU."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from app.engine.graphs import Graphs, copied
from app.engine.timing import ModuleTimer
from models import Output, Segmentor

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


class Captures:
    """Notes what is captured, and fails when told to."""

    def __init__(self, capture: Callable[..., Any]) -> None:
        self._capture = capture
        self.shapes: list[tuple[int, ...]] = []
        self.made: list[weakref.ref[Any]] = []
        self.error: Exception | None = None

    def __call__(self, segmentor: Segmentor, timer: ModuleTimer, batch: Tensor, beside: Any) -> Any:
        self.shapes.append(tuple(batch.shape))
        if self.error is not None:
            raise type(self.error)(*self.error.args)  # a fresh one, which holds on to nothing of an earlier pass
        graph = self._capture(segmentor, timer, batch, beside)
        self.made.append(weakref.ref(graph))
        return graph

    @property
    def alive(self) -> int:
        return sum(made() is not None for made in self.made)


@pytest.fixture
def captures(recording: Callable[..., Any]) -> Captures:
    return Captures(recording)


@pytest.fixture
def timer(segmentor: Segmentor) -> ModuleTimer:
    return ModuleTimer(segmentor, torch.device("cpu"))


@pytest.fixture
def run(segmentor: Segmentor, timer: ModuleTimer) -> Callable[..., Output]:
    """A pass of so many images of so many rows."""

    @torch.inference_mode()
    def run(graphs: Graphs, count: int = 1, height: int = 32, key: str = "tiny", seed: int = 0) -> Output:
        batch = torch.randn(count, 3, height, 48, generator=torch.Generator().manual_seed(seed))
        return graphs.run(key, segmentor, timer, batch)

    return run


Run = Callable[..., Output]


# --- which


def test_a_shape_gets_its_graph_when_it_comes_again(captures: Captures, run: Run) -> None:
    graphs = Graphs(4, captures)
    run(graphs)
    assert captures.shapes == []
    for _ in range(3):
        run(graphs)
    assert captures.shapes == [(1, 3, 32, 48)]
    for _ in range(2):
        run(graphs, count=2)
        run(graphs, height=40)
        run(graphs, key="other")
    assert captures.shapes[1:] == [(2, 3, 32, 48), (1, 3, 40, 48), (1, 3, 32, 48)]


def test_no_graphs_where_none_are_to_be_kept(captures: Captures, run: Run) -> None:
    graphs = Graphs(0, captures)
    for _ in range(3):
        run(graphs)
    assert captures.shapes == []
    assert not graphs.make_room()


def test_more_shapes_by_turns_than_are_kept_cost_no_captures(captures: Captures, run: Run) -> None:
    graphs = Graphs(3, captures)
    for count in (1, 2, 3, 4) * 3:
        run(graphs, count)
    assert captures.shapes == []


def test_the_least_recently_used_goes(captures: Captures, run: Run) -> None:
    graphs = Graphs(2, captures)
    for count in (1, 1, 2, 2, 1, 3, 3):
        run(graphs, count)
    assert [shape[0] for shape in captures.shapes] == [1, 2, 3]
    assert [made() is not None for made in captures.made] == [True, False, True]
    run(graphs, 1)
    assert len(captures.shapes) == 3, "it is there still"


def test_a_graph_shares_the_memory_of_another_that_is_there(captures: Captures, run: Run) -> None:
    graphs = Graphs(4, captures)
    for count in (2, 2, 1, 1):
        run(graphs, count)
    large, small = (made() for made in captures.made)
    assert large.beside is None
    assert small.beside() is large


def test_a_model_that_is_gone_leaves_no_graph(captures: Captures, run: Run) -> None:
    graphs = Graphs(4, captures)
    for key in ("tiny", "other") * 2:
        run(graphs, key=key)
    graphs.forget("tiny")
    assert captures.alive == 1
    run(graphs, key="other")
    assert len(captures.shapes) == 2, "the other's is there still"


# --- what it gives


def test_a_graph_gives_what_the_network_gives_for_each_batch(captures: Captures, run: Run) -> None:
    graphs = Graphs(4, captures)
    expected = [run(Graphs(0), seed=seed) for seed in (0, 1)]
    run(graphs)
    results = [run(graphs, seed=seed) for seed in (0, 1)]  # the first is still what it was after the second
    assert captures.alive == 1
    for result, wanted in zip(results, expected, strict=True):
        assert torch.equal(result.logits, wanted.logits)
        for one, other in zip(result.traces, wanted.traces, strict=True):
            assert torch.equal(one.query, other.query)
            assert torch.equal(one.key, other.key)
            assert (one.block, one.step, one.gamma) == (other.block, other.step, other.gamma)
    assert not torch.equal(results[0].logits, results[1].logits)


def test_a_copy_shares_no_memory(run: Run) -> None:
    output = run(Graphs(0))
    copy = copied(output)
    with torch.inference_mode():
        output.logits.zero_()
        output.traces[0].query.zero_()
    assert copy.logits.any()
    assert copy.traces[0].query.any()


def test_modules_of_a_replay_are_timed_as_any(captures: Captures, timer: ModuleTimer, run: Run) -> None:
    graphs = Graphs(4, captures)
    run(graphs)
    names = list(timer.collect())
    for _ in range(3):
        with timer.span("forward"):
            run(graphs)
        assert list(timer.collect()) == [*names, "forward"]


def test_no_two_replays_overlap(captures: Captures, run: Run, segmentor: Segmentor) -> None:
    graphs = Graphs(4, captures)
    for count in (1, 1, 2, 2):
        run(graphs, count)
    inside, most, both = [0], [0], threading.Barrier(2, timeout=30)

    def enter(*_: object) -> None:
        inside[0] += 1
        most[0] = max(most[0], inside[0])

    def leave(*_: object) -> None:
        inside[0] -= 1

    segmentor.register_forward_pre_hook(enter)
    segmentor.register_forward_hook(leave)

    def replay(count: int) -> None:
        both.wait()
        for _ in range(5):
            run(graphs, count)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(replay, (1, 2)))
    assert most == [1]


# --- failure


def test_a_model_that_cannot_be_captured_runs_without(
    captures: Captures, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    graphs = Graphs(4, captures)
    captures.error = RuntimeError("operation not permitted when stream is capturing")
    with caplog.at_level(logging.WARNING, "app.engine.graphs"):
        results = [run(graphs, count) for count in (1, 2) * 3]
    assert [len(result.logits) for result in results] == [1, 2] * 3
    assert len(captures.shapes) == 1
    assert [record.message for record in caplog.records] == [
        "tiny runs without CUDA graphs, which cannot be made of it: operation not permitted when stream is capturing"
    ]
    captures.error = None
    run(graphs, key="other")
    run(graphs, key="other")
    assert captures.alive == 1, "others have theirs"
    graphs.forget("tiny")  # as when it is replaced
    run(graphs)
    run(graphs)
    assert captures.alive == 2


def test_after_a_failed_capture_graphs_begin_anew_in_memory_of_their_own(captures: Captures, run: Run) -> None:
    graphs = Graphs(4, captures)
    for _ in range(2):
        run(graphs, key="other")
    captures.error = RuntimeError("operation failed due to a previous error during capture")
    for _ in range(2):
        run(graphs)
    captures.error = None
    for _ in range(2):
        run(graphs, key="other")
    graph = captures.made[1]()
    assert graph is not None
    assert graph.beside is None


FULL = [
    torch.OutOfMemoryError("CUDA out of memory"),
    # As where a graph is made of what was captured, or a library readies itself: no memory of torch's allocator.
    torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


@pytest.mark.parametrize("error", FULL, ids=lambda error: type(error).__name__)
def test_where_memory_runs_out_it_runs_without_and_fewer_are_kept(
    captures: Captures, run: Run, error: RuntimeError
) -> None:
    graphs = Graphs(4, captures)
    for count in (1, 1, 2):
        run(graphs, count)
    captures.error = error
    assert len(run(graphs, 2).logits) == 2
    assert captures.alive == 0
    captures.error = None
    for count in (1, 2, 3) * 2:
        run(graphs, count)
    assert len(captures.shapes) == 2, "only two are kept now"
    captures.error = error
    for _ in range(20):
        assert len(run(graphs, 3).logits) == 3
    assert len(captures.shapes) == 4, "the fewer there may be, the sooner it is given up"


def test_another_failure_of_a_pass_is_the_passes_own(captures: Captures, run: Run) -> None:
    graphs = Graphs(4, captures)
    captures.error = KeyError("conv1")
    run(graphs)
    with pytest.raises(KeyError):
        run(graphs)


def test_a_pass_that_needs_room_gets_that_of_the_graphs(captures: Captures, run: Run) -> None:
    graphs = Graphs(4, captures)
    run(graphs)
    assert not graphs.make_room(), "there is no graph yet"
    run(graphs)
    assert graphs.make_room()
    assert captures.alive == 0
    run(graphs)
    assert len(captures.shapes) == 1


def test_memory_is_given_back_between_captures(recording: Callable[..., Any], run: Run) -> None:
    """As when a model is replaced while its successor already serves, and gets its graphs."""
    capturing, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def slowly(*arguments: Any) -> Any:
        capturing.set()
        assert may_end.wait(30)
        ended.set()
        return recording(*arguments)

    graphs = Graphs(4, slowly)
    run(graphs)

    def give_back() -> bool:
        with graphs.no_capture():
            return ended.is_set()

    with ThreadPoolExecutor(2) as threads:
        threads.submit(run, graphs)
        assert capturing.wait(30)
        given_back = threads.submit(give_back)
        may_end.set()
        assert given_back.result(30)


# --- on a GPU


@pytest.mark.gpu
@gpu
def test_a_cuda_graph_gives_what_the_network_gives(segmentor: Segmentor) -> None:
    segmentor.cuda()
    timer = ModuleTimer(segmentor, torch.device("cuda"))
    graphs = Graphs(4)
    with torch.inference_mode():
        for count in (2, 1):
            batches = [torch.randn(count, 3, 320, 480, device="cuda") for _ in range(4)]
            wanted = [segmentor(batch) for batch in batches]
            timer.reset()
            results = [graphs.run("tiny", segmentor, timer, batch) for batch in batches]
            torch.cuda.synchronize()
            assert len(timer.collect()) == 11
            for one, other in zip(results, wanted, strict=True):
                torch.testing.assert_close(one.logits, other.logits)
                torch.testing.assert_close(one.traces[1].query, other.traces[1].query)
    assert len(list(filter(None, graphs._shapes.values()))) == 2


@pytest.mark.gpu
@gpu
def test_a_failed_capture_leaves_the_thread_as_it_was(segmentor: Segmentor) -> None:
    segmentor.cuda()
    timer = ModuleTimer(segmentor, torch.device("cuda"))

    def ask_the_device(module: object, inputs: object, output: Tensor) -> None:
        output.sum().item()  # which no capture allows

    segmentor.backbone.layer2.register_forward_hook(ask_the_device)
    graphs, stream = Graphs(4), torch.cuda.current_stream()
    batch = torch.randn(1, 3, 320, 480, device="cuda")
    with torch.inference_mode():
        first, *others = [graphs.run("tiny", segmentor, timer, batch) for _ in range(3)]
    assert torch.cuda.current_stream() == stream
    assert not any(graphs._shapes.values())
    for other in others:
        torch.testing.assert_close(other.logits, first.logits)
    # What two streams have used is free for others afterwards.
    before = torch.cuda.memory_stats()["active_bytes.all.current"]
    with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
        shared = torch.empty(1 << 20, device="cuda")
    shared.record_stream(stream)
    del shared
    torch.cuda.synchronize()
    torch.empty(1, device="cuda")  # at which torch looks
    assert torch.cuda.memory_stats()["active_bytes.all.current"] == before
