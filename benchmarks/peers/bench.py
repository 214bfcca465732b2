"""One run of the benchmark: what it was asked for, its files, its tunings, what it has found."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from benchmarks.machine import commit, describe
from benchmarks.peers.catalog import OURS, REDUCED, Server, ours, peers, reduced
from benchmarks.peers.figures import CASE, Figures, Row, closed_figures, without
from benchmarks.peers.images import Bodies, streets, tiny
from benchmarks.peers.measure import PATIENT, Client, Running, serving
from benchmarks.peers.network import Network
from benchmarks.peers.pipeline import create_pipeline
from benchmarks.peers.plan import Plan
from benchmarks.peers.processes import ServerFailed
from benchmarks.peers.tuning import Tuning

TUNED_AT = 16  # clients

Item = TypeVar("Item")


@dataclass(frozen=True)
class Options:
    """
    Attributes:
        python: of the peers' environment
        servers: names of those to measure
        seconds, warmup: of one measurement; a tuning is tried for half as long
        tune: "once": where no tuning is known, "again": always, "never": the first of the grid will do
        soak: seconds of the soak
    """

    python: str
    servers: tuple[str, ...]
    rounds: int
    seconds: float
    warmup: float
    tune: str
    soak: float
    output: Path


class Bench:
    def __init__(self, options: Options, scratch: Path) -> None:
        known = json.loads(options.output.read_text()) if options.output.is_file() else {}
        self.options = options
        self.rows: list[Row] = known.get("rows", [])
        self.scratch = scratch
        self._commit = commit()
        self._machines: dict[str, dict[str, str | int]] = known.get("machines", {})
        self._measured: set[tuple[str, ...]] = set()
        self._tuned: dict[str, dict[str, Any]] = known.get("tuned", {})
        self._tuned_now: dict[tuple[str, str], Tuning] = {}
        self._bodies: dict[tuple[str, int, bool], Bodies] = {}

    def servers(self, workload: str) -> list[Server]:
        own = [ours(workload), *([reduced()] if workload == "real" else [])]
        every = [*own, *peers(Path(self.options.python))]
        return [server for server in every if server.name in self.options.servers]

    def bodies(self, workload: str, sizes: int = 1, *, reduced: bool = False) -> Bodies:
        """What a workload sends and expects; the images of the null workload are the emulated one's.

        Args:
            reduced: the masks are those of the plain loop in bfloat16 in part
        """
        key = workload, sizes, reduced
        if key not in self._bodies:
            self._bodies[key] = self._new_bodies(*key)
        return self._bodies[key]

    def serving(
        self, server: Server, base: Tuning, bodies: Bodies, settings: Mapping[str, str] = PATIENT
    ) -> AbstractContextManager[Running]:
        """The server as it is best tuned for a workload."""
        return self._serving(server, self._tuning(server, base), bodies, settings)

    def tunings(self) -> list[str]:
        """What was chosen for each peer, a line for each workload."""
        return [
            f"{server}, {workload}: {tuning_of(found['best'])}; {max(found['tried'].values()):.1f} req/s when tried"
            for workload, servers in self._tuned.items()
            for server, found in servers.items()
        ]

    def plan(self, **how: Any) -> Plan:
        return Plan(seconds=self.options.seconds, warmup=self.options.warmup, **how)

    def closed(self, up: Running, bodies: Bodies, clients: int) -> Figures:
        """So many clients that send as soon as they are answered."""
        records, usage = up.drive(bodies, self.plan(clients=clients))
        figures = closed_figures(records, self.options.seconds)
        served = figures["rate"] * self.options.seconds
        return {**figures, **usage, "cpu_ms": 1000 * usage["cpu_seconds"] / max(1.0, served)}

    def note(self, section: str, workload: str, case: str, row: tuple[str, int], figures: Figures) -> None:
        """Keep a row, on disk too, so that a run that is broken off is not lost.

        It says what it was measured with: a file holds rows of several runs, versions and lengths.

        Args:
            row: server and round
        """
        new: Row = {"section": section, "workload": workload, "case": case, "server": row[0], "round": row[1]}
        key = tuple(new[name] for name in CASE)
        if key not in self._measured:
            self._measured.add(key)
            self.rows = without(self.rows, new)
        new |= {"commit": self._commit, "seconds": self.options.seconds}
        tuning = self._tuned_now.get((workload, row[0]))
        if tuning is not None and row[0] not in (OURS, REDUCED):
            new["tuning"] = str(tuning)
        # JSON has no nan: the percentile of nothing is null.
        new |= {name: value if value == value else None for name, value in figures.items()}
        self.rows.append(new)
        self._write()
        shown = " ".join(f"{name} {value:.4g}" for name, value in figures.items() if value)
        print(f"{section} {workload} {case} round {row[1]} {row[0]}: {shown}", flush=True)

    def _new_bodies(self, workload: str, sizes: int, reduced: bool) -> Bodies:
        if workload != "real":
            return tiny(self.scratch, sizes, create_pipeline(Tuning("emulated", pass_cost=(0.0, 0.0))))
        folder = self.scratch / ("reduced" if reduced else "exact")
        folder.mkdir(exist_ok=True)
        return streets(folder, Network(reduced=reduced))

    def _serving(
        self, server: Server, tuning: Tuning, bodies: Bodies, settings: Mapping[str, str]
    ) -> AbstractContextManager[Running]:
        client = Client(self.options.python, self.scratch, self.options.warmup)
        return serving(server, tuning, bodies, client, settings)

    def _tuning(self, server: Server, base: Tuning) -> Tuning:
        key = base.workload, server.name
        if key not in self._tuned_now:
            known = self._tuned.get(base.workload, {}).get(server.name)
            if server.is_ours:  # not tuned
                self._tuned_now[key] = base
            elif self.options.tune == "never":
                self._tuned_now[key] = server.grid(base)[0]
            elif known and self.options.tune == "once":
                self._tuned_now[key] = tuning_of(known["best"])
            else:
                self._tuned_now[key] = self._tune(server, base)
        return self._tuned_now[key]

    def _tune(self, server: Server, base: Tuning) -> Tuning:
        tried = [(tuning, self._try(server, tuning)) for tuning in server.grid(base)]
        best = choose(tried)
        print(f"{server.name}, {base.workload}: {best} is best", flush=True)
        rates = {str(tuning): rate for tuning, rate in tried}
        self._tuned.setdefault(base.workload, {})[server.name] = {"best": asdict(best), "tried": rates}
        self._write()
        return best

    def _try(self, server: Server, tuning: Tuning) -> float:
        bodies, seconds = self.bodies(tuning.workload), self.options.seconds / 2
        try:
            with self._serving(server, tuning, bodies, PATIENT) as up:
                records, _ = up.drive(bodies, Plan(clients=TUNED_AT, seconds=seconds, warmup=self.options.warmup))
        except ServerFailed as exc:
            print(f"{server.name} can't be run with {tuning}: {exc}", flush=True)
            return 0.0
        rate = closed_figures(records, seconds)["rate"]
        print(f"{server.name}, {tuning.workload}: {rate:.1f} req/s with {tuning}", flush=True)
        return rate

    def _write(self) -> None:
        self._machines[self._commit] = describe(torch.device("cpu")) | {"platform": platform.platform()}
        of_rows = {row.get("commit", "") for row in self.rows}
        machines = {name: machine for name, machine in self._machines.items() if name in of_rows}
        contents = {"machines": machines, "tuned": self._tuned, "rows": self.rows}
        self.options.output.parent.mkdir(exist_ok=True)
        self.options.output.write_text(json.dumps(contents, indent=1) + "\n")


def tuning_of(known: dict[str, Any]) -> Tuning:
    """A tuning as JSON holds it; there are no tuples in it."""
    return Tuning(**{**known, "pass_cost": tuple(known["pass_cost"])})


def choose(tried: Sequence[tuple[Tuning, float]]) -> Tuning:
    """The tuning of the highest rate; of equal ones the first.

    Raises:
        ServerFailed: none worked
    """
    best, rate = max(tried, key=lambda pair: pair[1])
    if not rate:
        raise ServerFailed("no tuning worked")
    return best


def rotated(items: Sequence[Item], turn: int) -> list[Item]:
    """The same in a circle, starting with another at each turn."""
    start = turn % max(1, len(items))
    return [*items[start:], *items[:start]]
