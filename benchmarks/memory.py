"""How much the server grows with each result that it keeps.

`python -m benchmarks.memory` starts a server, posts the sample picture and prints resident against counted bytes.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import httpx

from benchmarks.server import serving

SAMPLE = Path(__file__).parents[1] / "app/web/sample.jpg"
PORT = 18766
ROUNDS, REQUESTS = 6, 40


def resident(pid: int | str, what: str = "VmRSS") -> float:
    """Resident memory of a process in MB, or another line of its /proc/PID/status."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found.group(1)) * 1024 / 1e6


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with serving(PORT) as (pid, url), httpx.Client(base_url=url) as client:
        print(f"{'results':>8}{'resident MB':>14}{'counted MB':>12}")
        for _ in range(ROUNDS):
            for _ in range(REQUESTS):
                client.post("/segment?format=png", content=SAMPLE.read_bytes()).raise_for_status()
            metrics = client.get("/metrics").text
            counted = re.search(r"^seglens_results_bytes (\S+)", metrics, re.MULTILINE)
            assert counted is not None
            results = client.get("/health").json()["results"]
            print(f"{results:8}{resident(pid):14.0f}{float(counted.group(1)) / 1e6:12.1f}")


if __name__ == "__main__":
    main()
