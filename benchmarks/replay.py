"""What other settings would have made of the same traffic: `python -m benchmarks.replay TRACE --slots 1 2`.

A trace is lines of JSON, one for each request: `at` what second it came, its `model`, `height` and `width` at the
network's input, `deadline` in seconds, `nbytes` and, if known, seconds of `decode`. The server's own scheduler is taken
through it in simulated time, once for each combination of the values given; each is a column of the table printed.
`--poisson RATE` makes such traffic up instead, and `--write` keeps it. A batch of n images takes a + b * n seconds.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import random
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from app.engine.jobs import Batch, Job, Lane
from app.engine.scheduler import Policy, Scheduler
from app.errors import Overloaded
from benchmarks.traffic import Request, poisson, read, write

CHANNELS = 3  # bytes of a decoded pixel
NETWORK = 0.001  # seconds that a caller needs at least to come back


@dataclass(frozen=True)
class Device:
    """Takes fixed + each * n seconds for a batch of n images, whatever else it runs.

    Attributes:
        noise: standard deviation of those seconds, as a share of them
        pixels: of an image that takes `each`, others in proportion; 0 if sizes make no difference
        stalls: when the next batch takes longer, and by how much
    """

    fixed: float
    each: float
    noise: float = 0.0
    pixels: float = 0.0
    stalls: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Callers:
    """What those do who are refused.

    Attributes:
        returning: share of them that come back when they are told, until they are let in
        whole_seconds: they read the header, in whole seconds, not the body
    """

    returning: float = 0.0
    whole_seconds: bool = False


@dataclass(eq=False)
class Visitor:
    """A request, and what became of it.

    Attributes:
        refusals: when it was refused, and how many seconds it was told
        taken, done, expired: when; None if never
    """

    request: Request
    caller: str
    returns: bool
    refusals: list[tuple[float, float]] = field(default_factory=list)
    taken: float | None = None
    done: float | None = None
    expired: float | None = None

    @property
    def attempts(self) -> int:
        return len(self.refusals) + (self.taken is not None)

    @property
    def ended(self) -> bool:
        return self.done is not None or self.expired is not None

    @property
    def ratio(self) -> float | None:
        """Seconds until it was let in, divided by those that it was told at first."""
        if not self.refusals or self.taken is None:
            return None
        first, told = self.refusals[0]
        return (self.taken - first) / told


@dataclass
class Outcome:
    """What became of all.

    Attributes:
        sizes: of the batches
        busy: seconds of the device's slots
        ratios: of seconds until a refused caller would have been let in to seconds told, and when that was noted
        seconds: until the last image was done
    """

    visitors: list[Visitor]
    slots: int
    sizes: list[int] = field(default_factory=list)
    busy: float = 0.0
    ratios: list[tuple[float, float]] = field(default_factory=list)
    seconds: float = 0.0

    def figures(self) -> dict[str, float]:
        done = [visitor for visitor in self.visitors if visitor.done is not None]
        waits = [visitor.done - visitor.taken for visitor in done if visitor.done and visitor.taken is not None]
        errors = [abs(ratio - 1) for _, ratio in self.ratios]
        return {
            "requests": len(self.visitors),
            "images done": len(done),
            "refused": sum(visitor.taken is None for visitor in self.visitors),
            "expired": sum(visitor.expired is not None for visitor in self.visitors),
            "images a second": len(done) / self.seconds if self.seconds else 0.0,
            "images a batch": statistics.fmean(self.sizes) if self.sizes else 0.0,
            "wait p50": percentile(waits, 0.50),
            "wait p95": percentile(waits, 0.95),
            "wait p99": percentile(waits, 0.99),
            "device busy": self.busy / self.seconds / self.slots if self.seconds else 0.0,
            "retry-after error": percentile(errors, 0.5),
        }


class Simulation:
    """A scheduler, a device and callers, in simulated time."""

    def __init__(self, policy: Policy, device: Device, callers: Callers | None = None, seed: int = 0) -> None:
        self.scheduler: Scheduler[Visitor] = Scheduler(policy)
        self.now = 0.0
        self._device = device
        self._callers = callers or Callers()
        self._stalls = sorted(device.stalls)
        self._random = random.Random(seed)
        self._order = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._free = policy.slots
        self._formed: deque[Batch[Visitor]] = deque()
        self._outcome = Outcome([], policy.slots)

    def run(self, requests: Iterable[Request], until: float = math.inf) -> Outcome:
        """All requests, and what follows from them until then."""
        for number, request in enumerate(requests):
            visitor = Visitor(request, str(number), self._random.random() < self._callers.returning)
            self._outcome.visitors.append(visitor)
            self._at(request.at, partial(self._visit, visitor))
        while self._events and self._events[0][0] <= until:
            self.now, _, event = heapq.heappop(self._events)
            event()
        return self._outcome

    def _at(self, moment: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (moment, next(self._order), event))

    def _visit(self, visitor: Visitor) -> None:
        request = visitor.request
        job = Job(request.model, visitor.caller, request.nbytes, self.now + request.deadline, visitor)
        try:
            self.scheduler.admit(job, self.now)
        except Overloaded as exc:
            self._refuse(visitor, exc)
            return
        visitor.taken = self.now
        self._at(job.deadline, self._expire)
        self._at(self.now + request.decode, partial(self._submit, job))

    def _refuse(self, visitor: Visitor, refusal: Overloaded) -> None:
        wait = refusal.retry_after or 0.0
        visitor.taken = None
        visitor.refusals.append((self.now, wait))
        if visitor.returns:
            wait = max(1, math.ceil(wait)) if self._callers.whole_seconds else wait
            self._at(self.now + wait + NETWORK, partial(self._visit, visitor))

    def _submit(self, job: Job[Visitor]) -> None:
        request = job.payload.request
        if job.payload.ended:
            return
        nbytes = request.nbytes + CHANNELS * request.height * request.width
        try:
            self.scheduler.submit(job, Lane(request.model, (request.height, request.width)), nbytes, self.now)
        except Overloaded as exc:
            self._refuse(job.payload, exc)
            return
        self._dispatch()

    def _expire(self) -> None:
        for job in self.scheduler.expire(self.now):
            if not job.payload.ended:
                job.payload.expired = self.now

    def _dispatch(self) -> None:
        while (batch := self.scheduler.next_batch(self.now)) is not None:
            self._formed.append(batch)
        while self._free and self._formed:
            self._start(self._formed.popleft())

    def _start(self, batch: Batch[Visitor]) -> None:
        batch.started = self.now
        present = [job for job in batch.jobs if not job.payload.ended]
        seconds = self._seconds(batch.lane, len(present)) if present else 0.0
        self._free -= 1
        self._at(self.now + seconds, partial(self._complete, batch, present, seconds))

    def _seconds(self, lane: Lane, size: int) -> float:
        scale = lane.pixels / self._device.pixels if self._device.pixels else 1.0
        seconds = self._device.fixed + self._device.each * size * scale
        seconds *= max(0.1, self._random.gauss(1.0, self._device.noise))
        if self._stalls and self._stalls[0][0] <= self.now:
            seconds += self._stalls.pop(0)[1]
        return seconds

    def _complete(self, batch: Batch[Visitor], present: Sequence[Job[Visitor]], seconds: float) -> None:
        self._free += 1
        self._outcome.busy += seconds
        self._outcome.seconds = self.now
        if present:
            self._outcome.sizes.append(len(present))
        self.scheduler.completed(batch, len(present), seconds / self._outcome.slots, self.now)
        self._dispatch()
        for job in present:
            if not job.payload.ended:
                job.payload.done = self.now
                self.scheduler.answered(job, self.now)
        self._outcome.ratios += [(self.now, ratio) for ratio in self.scheduler.retry_ratios()]


def percentile(values: Iterable[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else math.nan


def table(columns: Sequence[tuple[dict[str, str], dict[str, float]]]) -> str:
    """Settings and figures of each column, without the settings that are the same in all."""
    varied = [name for name in columns[0][0] if len({settings[name] for settings, _ in columns}) > 1]
    rows = [[name, *(settings[name] for settings, _ in columns)] for name in varied]
    rows += [[name, *(_number(figures[name]) for _, figures in columns)] for name in columns[0][1]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows
    )


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def _pair(text: str, separator: str, kind: Callable[[str], float]) -> tuple[float, float]:
    first, second = text.split(separator)
    return kind(first), kind(second)


def compare(requests: Sequence[Request], args: argparse.Namespace) -> str:
    pixels = statistics.fmean(request.height * request.width for request in requests)
    names = "max_batch_size", "max_batch_pixels", "max_queue_size", "max_queue_bytes", "slots", "cost", "returning"
    columns = []
    for values in itertools.product(*(getattr(args, name) for name in names)):
        *limits, cost, returning = values
        device = Device(*_pair(cost, ",", float), noise=args.noise, pixels=pixels)
        simulation = Simulation(Policy(*limits), device, Callers(returning, args.whole_seconds))
        settings = dict(zip(names, map(str, values), strict=True))
        columns.append((settings, simulation.run(requests).figures()))
    return table(columns)


def main(arguments: Sequence[str] | None = None) -> None:
    args = _arguments(arguments)
    if args.poisson is None:
        requests = read(args.trace)
    else:
        sizes = [(int(height), int(width)) for height, width in (_pair(size, "x", int) for size in args.sizes)]
        requests = poisson(args.poisson, args.seconds, sizes, args.deadline)
    if not requests:
        raise SystemExit("no requests: a server logs them with SEGLENS_LOG_LEVEL=debug, their sizes once decoded")
    if args.write is not None:
        write(args.write, requests)
    print(compare(requests, args))


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    traffic = parser.add_mutually_exclusive_group(required=True)
    traffic.add_argument("trace", type=Path, nargs="?", help="file of JSON lines")
    traffic.add_argument("--poisson", type=float, metavar="RATE", help="requests a second, without a trace")
    parser.add_argument("--seconds", type=float, default=60.0, help="of such traffic (%(default)s)")
    parser.add_argument("--sizes", nargs="+", default=["512x512"], metavar="HxW", help="of its images (512x512)")
    parser.add_argument("--deadline", type=float, default=1.0, help="of its requests, in seconds (%(default)s)")
    parser.add_argument("--write", type=Path, metavar="TRACE", help="keep it")
    parser.add_argument("--max-batch-size", type=int, nargs="+", default=[8], metavar="N")
    parser.add_argument("--max-batch-pixels", type=int, nargs="+", default=[4 << 20], metavar="N")
    parser.add_argument("--max-queue-size", type=int, nargs="+", default=[128], metavar="N")
    parser.add_argument("--max-queue-bytes", type=int, nargs="+", default=[256 << 20], metavar="N")
    parser.add_argument("--slots", type=int, nargs="+", default=[1], metavar="N")
    parser.add_argument("--cost", nargs="+", default=["0.02,0.0025"], metavar="A,B", help="a and b; b at the mean size")
    parser.add_argument("--noise", type=float, default=0.05, help="of a batch's seconds (%(default)s)")
    parser.add_argument("--returning", type=float, nargs="+", default=[0.0], metavar="SHARE", help="of refused callers")
    parser.add_argument("--whole-seconds", action="store_true", help="they read the header, not the body")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
