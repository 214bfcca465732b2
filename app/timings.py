"""The one record of where a request's time went: metrics, `Server-Timing` and the reply are written from it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Value = TypeVar("Value")


@dataclass
class Timings:
    """Seconds by stage of the request, and by module of the network for its batch's forward pass.

    Attributes:
        began: when a stage began that the host timed, by `time.perf_counter`
        batch_size: images in that pass; of several passes, in the largest
    """

    stages: dict[str, float] = field(default_factory=dict)
    modules: dict[str, float] = field(default_factory=dict)
    batch_size: int = 0
    began: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = self.began[name] = time.perf_counter()
        try:
            yield
        finally:
            self.stages[name] = time.perf_counter() - started

    def timed(self, name: str, function: Callable[Arguments, Value]) -> Callable[Arguments, Value]:
        """The function, timing itself as a stage: in a thread pool, the wait for a thread is then left out."""

        def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Value:
            with self.stage(name):
                return function(*args, **kwargs)

        return run

    def milliseconds(self) -> dict[str, float]:
        """Stages by name and modules as `module.<name>`, rounded to a microsecond."""
        modules = {f"module.{name}": seconds for name, seconds in self.modules.items()}
        return {name: round(seconds * 1000, 3) for name, seconds in {**self.stages, **modules}.items()}

    def server_timing(self) -> str:
        """Value of the `Server-Timing` header (W3C)."""
        return ", ".join(f"{name};dur={duration}" for name, duration in self.milliseconds().items())


def total(records: Iterable[Timings]) -> Timings:
    """All together, in a record of its own."""
    stages: Counter[str] = Counter()
    modules: Counter[str] = Counter()
    largest = 0
    for record in records:
        stages.update(record.stages)
        modules.update(record.modules)
        largest = max(largest, record.batch_size)
    return Timings(dict(stages), dict(modules), largest)
