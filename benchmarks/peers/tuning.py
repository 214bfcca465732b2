"""What of a server is tuned before it is measured, and how a tuning reaches it: by its environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

PREFIX = "BENCHMARK_"
SPINS = "4000"


@dataclass(frozen=True)
class Tuning:
    """
    Attributes:
        workload: what a request costs: real, emulated or null
        max_batch: most images in one pass
        wait: seconds that a batch waits for company
        threads: CPU threads of one pass
        workers: processes (or replicas) that each run passes
        pass_cost: seconds of an emulated pass: of itself, and of each image in it
    """

    workload: str = "real"
    max_batch: int = 1
    wait: float = 0.0
    threads: int = 1
    workers: int = 1
    pass_cost: tuple[float, float] = (0.020, 0.0025)

    def environment(self) -> dict[str, str]:
        # Python's own setter would reach the calling thread alone, and servers pass work from thread to thread.
        threads = {name: str(self.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        # As `python -m app` has it, so that nobody's passes wait for one another otherwise.
        return threads | {
            "GOMP_SPINCOUNT": SPINS,
            f"{PREFIX}WORKLOAD": self.workload,
            f"{PREFIX}MAX_BATCH": str(self.max_batch),
            f"{PREFIX}WAIT": str(self.wait),
            f"{PREFIX}THREADS": str(self.threads),
            f"{PREFIX}WORKERS": str(self.workers),
            f"{PREFIX}PASS_COST": " ".join(map(str, self.pass_cost)),
        }

    @staticmethod
    def of(environment: Mapping[str, str] = os.environ) -> Tuning:
        fixed, each = environment[f"{PREFIX}PASS_COST"].split()
        return Tuning(
            workload=environment[f"{PREFIX}WORKLOAD"],
            max_batch=int(environment[f"{PREFIX}MAX_BATCH"]),
            wait=float(environment[f"{PREFIX}WAIT"]),
            threads=int(environment[f"{PREFIX}THREADS"]),
            workers=int(environment[f"{PREFIX}WORKERS"]),
            pass_cost=(float(fixed), float(each)),
        )

    def __str__(self) -> str:
        waits = f" after {1000 * self.wait:g} ms" if self.max_batch > 1 else ""
        return f"batch {self.max_batch}{waits}, {self.threads} threads x {self.workers} workers"
