"""Arithmetic on what was measured. Standard library only: the client, the servers and the tests all share it."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

Row = dict[str, Any]
Figures = dict[str, float]

OK, NO_REPLY = 200, 0
REFUSED = (429, 503)
# What a row is of. Rounds apart, rows of one case are of one run: no median is over two versions.
CASE = ("section", "workload", "case", "server")


class Record(NamedTuple):
    """One request as its client saw it; times in seconds.

    Attributes:
        scheduled: when it was to be sent, counted from the start of the measured window; negative in the warm-up
        latency: from `scheduled` to the end of its reply
        status: of the reply, NO_REPLY if none came
        right: whether the reply is, byte for byte, the one expected
        promise: what the first refusal said it would take to be taken
        waited: what it did take, for a client that came back when it was told
        attempts: how often the client came
    """

    scheduled: float
    latency: float
    status: int
    right: bool
    promise: float | None = None
    waited: float | None = None
    attempts: int = 1


def percentile(values: Iterable[float], share: float) -> float:
    """The smallest value that at least this share of all values don't exceed; nan of nothing."""
    ordered = sorted(values)
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the straight line through points (x, y) that has the least squares."""
    return statistics.linear_regression(*zip(*points, strict=True)).slope


def poisson(rate: float, seconds: float, seed: int) -> Iterator[float]:
    """Times from 0 on at which clients come who know nothing of each other, `rate` a second on average."""
    generator, time = random.Random(seed), 0.0
    while (time := time + generator.expovariate(rate)) < seconds:
        yield time


def closed_figures(records: Sequence[Record], seconds: float) -> Figures:
    """Of clients that each send as soon as they are answered: what finished inside the window counts.

    A reply that is not the one expected is no answer: it is counted as wrong, and as nothing else.
    """
    inside = [record for record in records if 0 <= record.scheduled + record.latency < seconds]
    good, wrong = _answered(inside)
    return {
        "rate": len(good) / seconds,
        **_milliseconds("", [record.latency for record in good]),
        "failed": len(inside) - len(good) - wrong,
        "wrong": wrong,
    }


def open_figures(records: Sequence[Record], seconds: float, deadline: float, capacity: float) -> Figures:
    """Of clients that come when they come: what was scheduled inside the window counts, whenever it finished.

    Args:
        capacity: requests a second that the device could do at best
    """
    inside = [record for record in records if 0 <= record.scheduled < seconds]
    good, wrong = _answered(inside)
    refused = [record for record in inside if record.status in REFUSED]
    in_time = sum(record.latency <= deadline for record in good)
    unanswered = sum(record.status == NO_REPLY for record in inside)
    everyone = max(1, len(inside))
    return {
        "offered": len(inside) / seconds / capacity,
        "goodput": in_time / seconds / capacity,
        **_milliseconds("", [record.latency for record in good]),
        "refused": len(refused) / everyone,
        **_milliseconds("refused_", [record.latency for record in refused]),
        "late": (len(inside) - in_time - wrong - len(refused) - unanswered) / everyone,
        "unanswered": unanswered,
        "wrong": wrong,
    }


def return_figures(records: Sequence[Record]) -> Figures:
    """Of refused clients that came back when they were told, until they were taken: promise against outcome."""
    told = [(record.promise, record) for record in records if record.promise is not None]
    kept = [(promise, record.waited) for promise, record in told if record.waited is not None]
    errors = [abs(waited - promise) / promise for promise, waited in kept if promise > 0]
    return {
        "refused": len(told) / max(1, len(records)),
        "taken": len(kept) / max(1, len(told)),
        "late": sum(record.status not in (OK, NO_REPLY, *REFUSED) for _, record in told) / max(1, len(told)),
        "promise_p50": percentile([promise for promise, _ in kept], 0.5),
        "waited_p50": percentile([waited for _, waited in kept], 0.5),
        "error_p50": percentile(errors, 0.5),
        "error_p90": percentile(errors, 0.9),
        "attempts_p50": percentile([record.attempts for _, record in told], 0.5),
        "attempts_max": max((record.attempts for _, record in told), default=1),
    }


def _answered(records: Sequence[Record]) -> tuple[list[Record], int]:
    """Those with the reply that was expected, and how many had another."""
    replied = [record for record in records if record.status == OK]
    good = [record for record in replied if record.right]
    return good, len(replied) - len(good)


def _milliseconds(prefix: str, latencies: Sequence[float]) -> Figures:
    return {f"{prefix}p{share}": 1000 * percentile(latencies, share / 100) for share in (50, 95, 99)}


def without(rows: Sequence[Row], case: Row) -> list[Row]:
    """The rows of other cases: all rounds of an earlier run are gone, of which there may have been more."""
    return [row for row in rows if any(row[name] != case[name] for name in CASE)]


def over_rounds(rows: Sequence[Row], name: str) -> tuple[float, float, float]:
    """Median, least and most of one figure; nan where no row has it."""
    values = [row[name] for row in rows if row.get(name) is not None and row[name] == row[name]]
    if not values:
        return math.nan, math.nan, math.nan
    return statistics.median(values), min(values), max(values)
