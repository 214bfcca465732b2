"""The model without a server: decode, forward and encode in a loop, in one process with so many threads.

`python -m benchmarks.peers.bare REPLICAS FILE... [--reduced]` answers each line on stdin, a number of seconds, with
images a second and CPU milliseconds an image over so long, as JSON: it is up all the time and can take turns with a
server. The threads of a pass are set by OMP_NUM_THREADS.
"""

from __future__ import annotations

import itertools
import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from app.engine.memory import reuse_heap
from benchmarks.peers.images import mask_of
from benchmarks.peers.network import Network

WARMUP = 0.5  # seconds
REDUCED = "--reduced"  # bfloat16 in part


def main(replicas: int, files: list[str], *, reduced: bool) -> None:
    reuse_heap()  # as our worker does: the bar is the best loop
    bodies = [Path(file).read_bytes() for file in files]
    together = threading.Barrier(replicas)

    def rate(duration: float) -> float:
        """Images a second of one replica, over so many seconds."""
        together.wait()
        started = time.perf_counter()
        for count, body in enumerate(itertools.cycle(bodies), 1):
            mask_of(body, network)
            if (elapsed := time.perf_counter() - started) >= duration:
                return count / elapsed
        raise ValueError("there are no images")

    with ThreadPoolExecutor(replicas) as threads:
        # Where it will run: once two threads have computed on all cores, OpenMP lets their helpers sleep all the time.
        network = threads.submit(lambda: Network(reduced=reduced)).result()
        for line in sys.stdin:
            list(threads.map(rate, [WARMUP] * replicas))
            cpu, started = time.process_time(), time.perf_counter()
            total = sum(threads.map(rate, [float(line)] * replicas))
            cpu_share = (time.process_time() - cpu) / (time.perf_counter() - started)
            print(json.dumps({"rate": total, "cpu_ms": 1000 * cpu_share / total}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), [file for file in sys.argv[2:] if file != REDUCED], reduced=REDUCED in sys.argv)
