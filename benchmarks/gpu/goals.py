"""What was hoped for, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from benchmarks.gpu.scope import Row

Rows = Mapping[str, Sequence[Row]]
NETWORK = {"model": "ccnet_r50-d8", "size": "512x1024"}


def goals(found: Rows) -> Iterator[Row]:
    """
    Args:
        found: rows by section, as far as they were measured at the papers' sizes
    """
    checks: tuple[tuple[str, Callable[[Rows], float | None], float], ...] = (
        ("ccnet_r50-d8, 512x1024: times plain float32", speedup, 5.0),
        ("criss-cross in bfloat16: share of the roofline", roofline, 1 / 1.5),
        ("criss-cross in bfloat16: times faster than mmcv's form", lambda found: beside_mmcv(found, "us"), 5.0),
        ("criss-cross in bfloat16: times less memory", lambda found: beside_mmcv(found, "MB"), 5.0),
        ("attention wanted: share of its forward pass kept", unslowed, 0.99),
    )
    for goal, figure, least in checks:
        value = figure(found)
        verdict = "not measured" if value is None else "met" if value >= least else "not met"
        yield {"verdict": verdict, "at least": least, "is": "" if value is None else value, "goal": goal}


def speedup(found: Rows) -> float | None:
    """The most images a second, in bfloat16 with graphs, over the most in float32 without: each at its best batch."""

    def best(**kind: str) -> float:
        rates = (float(row["images/s"]) for row in found.get("models", ()) if (NETWORK | kind).items() <= row.items())
        return max(rates, default=0.0)

    plain, tuned = best(type="float32", graph="no"), best(type="bfloat16", graph="yes")
    return tuned / plain if plain and tuned else None


def roofline(found: Rows) -> float | None:
    """Of the grid where it is least."""
    return min((float(row["of roofline"]) for row in _of_form(found, "kernels").values()), default=None)


def beside_mmcv(found: Rows, column: str) -> float | None:
    """How many times more mmcv's form takes, on the grid where that is least."""
    ours, theirs = _of_form(found, "kernels"), _of_form(found, "mmcv's form")
    return min((float(theirs[grid][column]) / float(ours[grid][column]) for grid in ours), default=None)


def unslowed(found: Rows) -> float | None:
    return min((1 / (1 + float(row["forward, more"])) for row in found.get("attention", ())), default=None)


def _of_form(found: Rows, form: str) -> dict[str, Row]:
    kind = {"type": "bfloat16", "form": form}
    return {str(row["grid"]): row for row in found.get("operators", ()) if kind.items() <= row.items()}
