"""What serving costs beside the model: our server and five others under the same loads.

`python -m benchmarks.serving --peers-python PATH` takes hours; `--only` and `--servers` cut it in pieces, whose results
are merged into benchmarks/results/serving.json: a server's rows of a case replace all that it had there, and each says
at which commit it was measured, for how many seconds and how the peer was tuned. PATH is the Python of an environment
with what benchmarks/peers/requirements.txt lists; the client runs there too. One server is up at a time, and each round
starts with another, so that a noisy neighbour disturbs all alike.

* real: the bundled CCNet, JPEG in, PNG out, for clients that send as soon as they are answered
* emulated: on an emulated accelerator, where a pass of n images costs a + b * n seconds and no CPU time
* null: no model at all; what is left is the server, with a tiny PNG to decode and one to encode
* overload: clients that come when they come, at up to three times what the device can do, on both devices
* soak (`--soak SECONDS`): our server's memory under a thousand image sizes
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.bench import Bench, Options, rotated
from benchmarks.peers.catalog import MAX_BATCH, OURS, REDUCED, Server, ours, peers
from benchmarks.peers.figures import OK, Figures, closed_figures, open_figures, return_figures, slope
from benchmarks.peers.images import many_sizes
from benchmarks.peers.measure import bare
from benchmarks.peers.plan import Plan
from benchmarks.peers.report import tables
from benchmarks.peers.tuning import Tuning

RESULTS = Path(__file__).parent / "results" / "serving.json"
PASS_COST = (0.020, 0.0025)  # seconds of an emulated pass: of itself, and of each image
OPTIMUM = MAX_BATCH / (PASS_COST[0] + PASS_COST[1] * MAX_BATCH)  # images a second
REAL, EMULATED, NULL = Tuning("real"), Tuning("emulated", pass_cost=PASS_COST), Tuning("null", pass_cost=(0.0, 0.0))
BARE = ((1, 2), (2, 1), (2, 2))  # replicas, threads of a pass
ALONE, TOGETHER = BARE[:2]  # the best for one image at a time, and for several
SATURATING = 64  # clients
DEADLINES = {"real": 2.0, "emulated": 0.5}  # seconds
GRACE = 5.0  # seconds after its deadline at which a request that had to be answered counts as forgotten
RETURN_PATIENCE = 120.0  # seconds
SOAK_SIZES, SOAK_DRAWS, SOAK_CLIENTS, SOAK_INTERVAL = 1000, 100_000, 4, 10.0


@dataclass(frozen=True)
class Scope:
    """
    Attributes:
        real, null: numbers of clients
        sizes: how many sizes the images on the emulated device have
        factors: loads that are offered, as parts of what the device can do
        overloaded: devices that they are offered to
        idle: seconds without a request
    """

    real: tuple[int, ...] = (1, 4, 16, 64)
    null: tuple[int, ...] = (1, 16, 64)
    sizes: tuple[int, ...] = (1, 2, 4)
    factors: tuple[float, ...] = (0.5, 0.8, 1.2, 2.0, 3.0)
    overloaded: tuple[str, ...] = ("emulated", "real")
    idle: float = 5.0


FULL = Scope()
QUICK = Scope(real=(4,), null=(16,), sizes=(2,), factors=(3.0,), overloaded=("emulated",), idle=1.0)


def real(bench: Bench, scope: Scope) -> None:
    bodies = bench.bodies("real")
    for turn in range(bench.options.rounds):
        for layout, reduced in rotated(list(itertools.product(BARE, (False, True))), turn):
            name = f"{layout[0]} x {layout[1]} threads" + (", bfloat16 in part" if reduced else "")
            with bare(layout, bodies, reduced=reduced) as loop:
                bench.note("real", "real", "no server", (name, turn), loop(bench.options.seconds))
        for server in rotated(bench.servers("real"), turn):
            beside_loops(bench, (server, turn), scope)


def null(bench: Bench, scope: Scope) -> None:
    for turn in range(bench.options.rounds):
        for server in rotated(bench.servers("null"), turn):
            closed(bench, NULL, (server, turn), scope.null, scope.idle)


def beside_loops(bench: Bench, row: tuple[Server, int], scope: Scope) -> None:
    """One server, its loads by turns with a loop that has none: the machine's pace drifts by more than they differ."""
    server, turn = row
    bodies, seconds = bench.bodies("real", reduced=server.name == REDUCED), bench.options.seconds
    with (
        bare(ALONE, bodies, reduced=server.name == REDUCED) as alone,
        bare(TOGETHER, bodies, reduced=server.name == REDUCED) as together,
        bench.serving(server, REAL, bodies) as up,
    ):
        bench.note("idle", "real", "idle", (server.name, turn), up.idle(scope.idle))
        for count in scope.real:
            loop = alone if count == 1 else together
            before = loop(seconds / 2)["rate"]
            figures = bench.closed(up, bodies, count)
            figures["loop"] = (before + loop(seconds / 2)["rate"]) / 2
            figures["of_loop"] = figures["rate"] / figures["loop"]
            bench.note("real", "real", f"{count} clients", (server.name, turn), figures)


def closed(bench: Bench, base: Tuning, row: tuple[Server, int], clients: tuple[int, ...], idle: float) -> None:
    """One server, idle and with more and more clients."""
    (server, turn), workload = row, base.workload
    bodies = bench.bodies(workload, reduced=server.name == REDUCED)
    with bench.serving(server, base, bodies) as up:
        bench.note("idle", workload, "idle", (server.name, turn), up.idle(idle))
        for count in clients:
            figures = bench.closed(up, bodies, count)
            bench.note(workload, workload, f"{count} clients", (server.name, turn), figures)


def emulated(bench: Bench, scope: Scope) -> None:
    for turn in range(bench.options.rounds):
        for server in rotated(bench.servers("emulated"), turn):
            with bench.serving(server, EMULATED, bench.bodies("emulated")) as up:
                for sizes in scope.sizes:
                    bodies = bench.bodies("emulated", sizes)
                    up.check(bodies)
                    figures = bench.closed(up, bodies, SATURATING)
                    figures["of_optimum"] = figures["rate"] / OPTIMUM
                    bench.note("emulated", "emulated", f"{sizes} sizes", (server.name, turn), figures)


def overload(bench: Bench, scope: Scope) -> None:
    for name in scope.overloaded:
        base, capacity = (EMULATED, OPTIMUM) if name == "emulated" else (REAL, real_capacity(bench))
        for turn in range(bench.options.rounds):
            for factor in scope.factors:
                for server in rotated(bench.servers(name), turn):
                    figures = offered(bench, server, base, capacity, factor * capacity)
                    bench.note("overload", name, f"{factor:g} x capacity", (server.name, turn), figures)
            if OURS in bench.options.servers:
                load = max(scope.factors)
                figures = returning(bench, base, capacity, load * capacity)
                bench.note("returns", name, f"{load:g} x capacity", (OURS, turn), figures)


def real_capacity(bench: Bench) -> float:
    """Images a second of the best loop without a server."""
    seconds, bodies = bench.options.seconds / 2, bench.bodies("real")
    with contextlib.ExitStack() as loops:
        best = max(loops.enter_context(bare(layout, bodies))(seconds)["rate"] for layout in BARE)
    print(f"capacity: {best:.1f} images a second", flush=True)
    return best


def offered(bench: Bench, server: Server, base: Tuning, capacity: float, rate: float) -> Figures:
    """A server of its own, so that no backlog is handed on; peers know no deadline, so their clients hang up."""
    bodies = bench.bodies(base.workload, reduced=server.name == REDUCED)
    deadline = DEADLINES[base.workload]
    if server.is_ours:
        plan = bench.plan(rate=rate, patience=deadline + GRACE, headers=timeout_header(deadline))
    else:
        plan = bench.plan(rate=rate, patience=deadline)
    with bench.serving(server, base, bodies, settings={}) as up:
        records, usage = up.drive(bodies, plan)
    return {**open_figures(records, plan.seconds, deadline, capacity), **usage, "capacity": capacity}


def returning(bench: Bench, base: Tuning, capacity: float, rate: float) -> Figures:
    """Ours, every refused client coming back when it was told."""
    bodies, headers = bench.bodies(base.workload), timeout_header(DEADLINES[base.workload])
    plan = bench.plan(rate=rate, headers=headers, patience=RETURN_PATIENCE, comes_back=True)
    with bench.serving(ours(base.workload), base, bodies, settings={}) as up:
        records, usage = up.drive(bodies, plan)
    lasted = plan.warmup + max(record.scheduled + record.latency for record in records)
    done = sum(record.status == OK for record in records)
    return {**return_figures(records), **usage, "busy": done / lasted / capacity, "capacity": capacity}


def timeout_header(deadline: float) -> dict[str, str]:
    return {"X-Request-Timeout-Seconds": str(deadline)}


def soak(bench: Bench, scope: Scope) -> None:
    seconds = bench.options.soak
    bodies = many_sizes(bench.scratch, SOAK_SIZES, SOAK_DRAWS, seed=0)
    plan = Plan(clients=SOAK_CLIENTS, seconds=seconds)
    # As it comes, results kept and all: they and what is done about the gaps they leave are most of its memory.
    with bench.serving(ours("real"), REAL, bench.bodies("real"), settings={}) as up:
        records, meter = up.observe(bodies, plan, SOAK_INTERVAL, watch=print_memory)
    # In the first half caches and the result store fill up.
    later = [(elapsed / 3600, rss) for elapsed, _, rss in meter.memory if elapsed >= seconds / 2]
    counts = closed_figures([record._replace(right=True) for record in records], seconds)  # no mask is compared
    figures = {"rate": counts["rate"], "failed": counts["failed"], **meter.figures, "slope": slope(later)}
    figures["seconds"] = seconds
    bench.note("soak", "real", f"{SOAK_SIZES} sizes", (OURS, 0), figures)


def print_memory(elapsed: float, pss: float, rss: float) -> None:
    print(f"{elapsed:8.0f} s  resident {rss:6.0f} MB, proportional {pss:6.0f} MB", flush=True)


RUN: dict[str, Callable[[Bench, Scope], None]] = {
    "real": real,
    "emulated": emulated,
    "null": null,
    "overload": overload,
    "soak": soak,
}


def main() -> None:
    arguments = parse()
    with tempfile.TemporaryDirectory(prefix="serving-") as scratch:
        bench = Bench(options(arguments, Path(scratch)), Path(scratch))
        for section in arguments.only.split(","):
            if section != "soak" or arguments.soak:
                RUN[section](bench, QUICK if arguments.quick else FULL)
        print("\n".join(["", *bench.tunings(), tables(bench.rows)]))


def options(arguments: argparse.Namespace, scratch: Path) -> Options:
    quick = arguments.quick
    return Options(
        python=arguments.peers_python,
        servers=tuple(arguments.servers.split(",")),
        rounds=1 if quick else arguments.rounds,
        seconds=1.0 if quick else arguments.seconds,
        warmup=0.5 if quick else arguments.warmup,
        tune="never" if quick else arguments.tune,
        soak=arguments.soak,
        output=arguments.output or (scratch / "quick.json" if quick else RESULTS),
    )


def parse(given: Sequence[str] | None = None) -> argparse.Namespace:
    every = [OURS, REDUCED, *(peer.name for peer in peers(Path()))]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers-python", required=True, help="Python of the peers' and the client's environment")
    parser.add_argument("--only", default=",".join(RUN), help="sections, of: %(default)s")
    parser.add_argument("--servers", default=",".join(every), help="of: %(default)s")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=12.0, help="of each measurement (%(default)s)")
    parser.add_argument("--warmup", type=float, default=3.0, help="seconds before each (%(default)s)")
    parser.add_argument("--tune", choices=("once", "again", "never"), default="once", help="try the peers' tunings")
    parser.add_argument("--soak", type=float, default=0.0, help="seconds of the soak; none without it")
    parser.add_argument("--quick", action="store_true", help="one short round, untuned: whether it runs at all")
    parser.add_argument("--output", type=Path, help=f"results to add to ({RESULTS}; with --quick none)")
    arguments = parser.parse_args(given)
    for option, known in (("only", list(RUN)), ("servers", every)):
        if unknown := [name for name in getattr(arguments, option).split(",") if name not in known]:
            parser.error(f"--{option} has no {', '.join(unknown)}; there are {', '.join(known)}")
    return arguments


if __name__ == "__main__":
    main()
