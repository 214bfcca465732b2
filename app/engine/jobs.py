"""What the scheduler handles: jobs, the lanes in which they wait, and the batches that they form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

Payload = TypeVar("Payload")
Reason = Literal["full", "pixels", "idle"]


@dataclass(frozen=True)
class Lane:
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
    """One image past the door, or asking to be let in.

    Attributes:
        caller: whose it is; one that was refused is known by it when it comes back
        nbytes: it holds while it waits
        deadline: when its answer is no longer wanted, on the clock that the scheduler is given
        lane: known once the image has been decoded
        admitted, submitted: when it was let in, and when it joined its lane
        predicted: seconds until it would be done, as thought when it was let in
    """

    model: str
    caller: str
    nbytes: int
    deadline: float
    payload: Payload
    lane: Lane | None = None
    admitted: float = 0.0
    submitted: float = 0.0
    predicted: float | None = None


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
