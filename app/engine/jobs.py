"""What the scheduler handles: jobs, the lanes in which they wait, and the batches that they form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, Literal, NamedTuple, TypeVar

Payload = TypeVar("Payload")
Reason = Literal["full", "pixels", "idle"]


class Lane(NamedTuple):
    """What jobs must have in common to share a forward pass.

    Attributes:
        input_size: height, width
        loaded: which loading of the model, as the device knows it
    """

    model: str
    input_size: tuple[int, int]
    loaded: str = ""

    @property
    def pixels(self) -> int:
        return self.input_size[0] * self.input_size[1]


@dataclass(eq=False)
class Job(Generic[Payload]):
    """One image past the door, or asking to be let in; or one of the passes that it needs.

    Attributes:
        caller: whose it is; one that was refused is known by it when it comes back
        nbytes: it holds while it waits
        deadline: when its answer is no longer wanted, on the clock that the scheduler is given
        passes: that it needs, as thought before the image has been decoded; a part is one
        granted: passes that it was let in with
        lane: known once the image has been decoded
        part: which of its caller's passes
        others: the other parts, if this is the first
        admitted, submitted: when it was let in, and when it joined its lane
        predicted: seconds until it would be done, as thought when it was let in
    """

    model: str
    caller: str
    nbytes: int
    deadline: float
    payload: Payload
    passes: int = 1
    granted: int = 0
    lane: Lane | None = None
    part: int = 0
    others: list[Job[Payload]] = field(default_factory=list)
    admitted: float = 0.0
    submitted: float = 0.0
    predicted: float | None = None

    @property
    def parts(self) -> list[Job[Payload]]:
        """All passes, this one first."""
        return [self, *self.others]

    def divide(self, lanes: Sequence[Lane], nbytes: int, now: float) -> None:
        """Make this the first of several parts, one for each of the lanes, which share what it holds."""
        self.lane, self.nbytes, self.submitted, self.passes = lanes[0], nbytes, now, len(lanes)
        share = nbytes // len(lanes)
        self.others = [
            replace(self, nbytes=share, passes=1, lane=lane, part=part, others=[], predicted=None)
            for part, lane in enumerate(lanes[1:], 1)
        ]


@dataclass(eq=False)
class Batch(Generic[Payload]):
    """
    Attributes:
        reason: why it is no larger: by count, by pixels, or no more were waiting
        formed, started: when; None as long as it waits for the device
    """

    lane: Lane
    jobs: list[Job[Payload]]
    reason: Reason
    formed: float
    started: float | None = None
