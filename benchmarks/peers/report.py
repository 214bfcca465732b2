"""Rows of figures as tables: the median over rounds, and how far the rounds lie apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.peers.figures import Row, over_rounds


class Column(NamedTuple):
    """
    Attributes:
        spread: whether the least and the most of the rounds are shown too
    """

    title: str
    name: str
    form: str = ".0f"
    scale: float = 1.0
    spread: bool = False


RATE = Column("req/s", "rate", ".1f", spread=True)
P50, P95, P99 = (Column(f"p{share} ms", f"p{share}") for share in (50, 95, 99))
CPU = Column("CPU ms/req", "cpu_ms", ".2f")
IDLE = Column("CPU %", "cpu_share", ".1f", 100)
MEMORY = (Column("PSS MB", "pss_mb"), Column("RSS MB", "rss_mb"))
OTHERS = Column("others %", "others_share", scale=100)
WRONG = (Column("failed", "failed"), Column("wrong", "wrong"))
CLOSED = (RATE, P50, P95, P99, CPU, *MEMORY, *WRONG, OTHERS)

COLUMNS: dict[str, tuple[Column, ...]] = {
    "real": (Column("of loop %", "of_loop", ".1f", 100, spread=True), *CLOSED),
    "emulated": (Column("of optimum %", "of_optimum", ".1f", 100, spread=True), *CLOSED),
    "null": CLOSED,
    "idle": (IDLE, *MEMORY, Column("processes", "processes"), OTHERS),
    "overload": (
        Column("goodput %", "goodput", ".1f", 100, spread=True),
        *(P50, P95, P99),
        Column("refused %", "refused", ".1f", 100),
        Column("p50 ms", "refused_p50", ".1f"),
        Column("p99 ms", "refused_p99", ".1f"),
        Column("late %", "late", ".1f", 100),
        Column("unanswered", "unanswered"),
        Column("wrong", "wrong"),
        OTHERS,
    ),
    "returns": (
        Column("refused %", "refused", ".1f", 100),
        Column("taken %", "taken", ".1f", 100),
        Column("late %", "late", ".1f", 100),
        Column("told s", "promise_p50", ".2f"),
        Column("waited s", "waited_p50", ".2f"),
        Column("error % p50", "error_p50", ".1f", 100),
        Column("p90", "error_p90", ".1f", 100),
        Column("attempts", "attempts_p50"),
        Column("most", "attempts_max"),
        Column("device busy %", "busy", ".1f", 100),
    ),
    "soak": (
        Column("req/s", "rate", ".1f"),
        Column("failed", "failed"),
        *MEMORY,
        Column("MB/hour", "slope", ".1f"),
    ),
}


def table(title: str, columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """One line a server, in the order in which they first came."""
    servers = list(dict.fromkeys(row["server"] for row in rows))
    cells = [["", *(column.title for column in columns), "measured"]]
    for server in servers:
        of_server = [row for row in rows if row["server"] == server]
        cells.append([server, *(_cell(column, of_server) for column in columns), _measured(of_server)])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(map(str.rjust, line, widths)) for line in cells]
    return "\n".join([f"\n{title}", *lines])


def tables(rows: Sequence[Row]) -> str:
    """A table for each section, workload and case, in the order in which they first came."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["section"], row["workload"], row["case"]), []).append(row)
    return "\n".join(
        table(", ".join(dict.fromkeys(group)), COLUMNS[group[0]], members) for group, members in groups.items()
    )


def _measured(rows: Sequence[Row]) -> str:
    """Where in the history of the code, and for how long: rows of one table may be of several runs."""
    found = [f"{row['commit'] or 'no commit'}, {row['seconds']:g} s" for row in rows]
    return "; ".join(dict.fromkeys(found))


def _cell(column: Column, rows: Sequence[Row]) -> str:
    numbers = [number * column.scale for number in over_rounds(rows, column.name)]
    if numbers[0] != numbers[0]:
        return "-"
    median, least, most = (format(number, column.form) for number in numbers)
    return f"{median} ({least}-{most})" if column.spread and len(rows) > 1 else median
