"""Traffic to replay: recorded by the server's log, or made up."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.peers import figures


@dataclass(frozen=True)
class Request:
    """A line of a trace."""

    at: float
    model: str
    height: int
    width: int
    deadline: float
    nbytes: int
    decode: float = 0.0


def poisson(
    rate: float, seconds: float, sizes: Sequence[tuple[int, int]] = ((512, 512),), deadline: float = 1.0, seed: int = 0
) -> list[Request]:
    """Requests that come independently of each other, of these sizes in turn."""
    come = zip(figures.poisson(rate, seconds, seed), itertools.cycle(sizes), strict=False)
    return [Request(now, "model", height, width, deadline, height * width // 8) for now, (height, width) in come]


def read(path: Path) -> list[Request]:
    """The lines of a trace, of which the server's log at level debug has one for each image.

    One that was refused at the door was never decoded: it gets the size that most others have.
    """
    lines = [json.loads(line[line.index("{") :]) for line in path.read_text().splitlines() if '{"at": ' in line]
    known = Counter((line["height"], line["width"]) for line in lines if line["height"] is not None)
    for line in lines:
        if line["height"] is None and known:
            line["height"], line["width"] = known.most_common(1)[0][0]
    return [Request(**line) for line in lines if line["height"] is not None]


def write(path: Path, requests: Iterable[Request]) -> None:
    path.write_text("".join(json.dumps(asdict(request)) + "\n" for request in requests))
