"""Times the named modules of a network where they run, without ever making the device wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn

from models import Segmentor


class Clock(Protocol):
    """Marks moments on a device; only `seconds` waits until the device has passed them."""

    def mark(self) -> Any: ...

    def seconds(self, start: Any, end: Any) -> float: ...


class HostClock:
    def mark(self) -> float:
        return time.perf_counter()

    def seconds(self, start: float, end: float) -> float:
        return end - start


class GraphEvent(torch.cuda.Event):
    """An event within a CUDA graph, marked again by every replay."""


class CudaClock:
    """Events on the current stream, used again once they have been read, unless they belong to a graph."""

    def __init__(self) -> None:
        self._free: list[torch.cuda.Event] = []

    def mark(self) -> torch.cuda.Event:
        event: torch.cuda.Event
        if torch.cuda.is_current_stream_capturing():
            event = GraphEvent(enable_timing=True, external=True)  # type: ignore[no-untyped-call]
        elif self._free:
            event = self._free.pop()
        else:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        end.synchronize()  # a pass that gives nothing to the host yet has not waited for it
        elapsed: float = start.elapsed_time(end) / 1000
        self._free += [event for event in (start, end) if not isinstance(event, GraphEvent)]
        return elapsed


Span = tuple[str, Any, Any]  # name, start, end


class Pass(threading.local):
    """What the passes of one thread leave behind; passes of one network run side by side on several."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.open: dict[nn.Module, Any] = {}
        self.spans: list[Span] = []
        self.calls: dict[nn.Module, int] = {}


class ModuleTimer:
    """Hooks on a segmentor's timed modules, for as long as the segmentor lives."""

    def __init__(self, segmentor: Segmentor, device: torch.device) -> None:
        self._clock: Clock = CudaClock() if device.type == "cuda" else HostClock()
        self._names = segmentor.timed_modules()
        self._pass = Pass()
        for module in self._names:
            module.register_forward_pre_hook(self._enter)
            module.register_forward_hook(self._leave)

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Time a piece of work that is no module."""
        start = self._clock.mark()
        yield
        self._pass.spans.append((name, start, self._clock.mark()))

    @contextmanager
    def recorded(self) -> Iterator[list[Span]]:
        """The spans of what runs within, kept out of the pass that is under way."""
        under_way = vars(self._pass).copy()
        self._pass.begin()
        try:
            yield self._pass.spans
        finally:
            vars(self._pass).update(under_way)

    def add(self, spans: Sequence[Span]) -> None:
        """Count spans that were recorded, and have been marked anew since."""
        self._pass.spans += spans

    def collect(self) -> dict[str, float]:
        """Seconds by name since the last call, once the device has done the work."""
        seconds: dict[str, float] = {}
        for name, start, end in self._pass.spans:
            seconds[name] = seconds.get(name, 0.0) + self._clock.seconds(start, end)
        self.reset()
        return seconds

    def reset(self) -> None:
        """Forget what a failed pass left behind."""
        self._pass.begin()

    def _enter(self, module: nn.Module, inputs: object) -> None:
        self._pass.open[module] = self._clock.mark()

    def _leave(self, module: nn.Module, inputs: object, output: object) -> None:
        names = self._names[module]
        call = self._pass.calls.get(module, 0)
        self._pass.calls[module] = call + 1
        self._pass.spans.append((names[call % len(names)], self._pass.open.pop(module), self._clock.mark()))
