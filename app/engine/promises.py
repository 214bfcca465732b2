"""Who was refused and told when to come back. They form a line, so that each is told the truth.

Were all told the time to the next free place, a crowd would come back at once and all but one be refused again.
So each is told the time of a place of its own, behind all who are in the line, and whoever comes back with the same
request id finds it kept. What share of callers do come back, and how late, is learnt: places of those who never do are
not kept empty.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from app.engine.cost import Surprise
from app.engine.jobs import Job
from app.engine.places import Room


@dataclass(eq=False)
class Promise:
    """
    Attributes:
        nbytes, allowed: what the caller wants to have held, and the seconds it gives
        made, seconds: when it was first refused, and how long it was told to wait then
        due: when it was last told to come back
        passes: that its image was thought to need
        called: its turn has come
        returned: the caller has come back when told, and was refused again or is still sending its body
        until: when its body must have come at the latest
    """

    caller: str
    model: str
    nbytes: int
    allowed: float
    made: float
    seconds: float = 0.0
    due: float = 0.0
    passes: int = 1
    called: bool = False
    returned: bool = False
    until: float = 0.0


@dataclass
class Sums:
    """What promises need together."""

    passes: int = 0
    nbytes: int = 0

    def add(self, promise: Promise, times: int = 1) -> None:
        self.passes += times * promise.passes
        self.nbytes += times * promise.nbytes


Tally = dict[bool, Sums]  # of promises whose callers have not come yet, and of those who came in vain


class Promises:
    GRACE = 2.0  # seconds that a place is kept: `Retry-After` is in whole ones, and networks take some too
    PAD = 1 / 32  # more than the time it should take: a second way costs a caller more than a few percent
    ROUNDING = 1e-3  # seconds
    LONGEST = 10_000  # promises; nobody is refused for want of one
    MEMORY = 0.995  # weight of the past as a promise ends: about the last two hundred count

    def __init__(self) -> None:
        self._line: list[Promise] = []  # by the time they are due
        self._of_caller: dict[str, Promise] = {}
        self._came: list[float] = []  # the due times of those who came back and are not yet counted
        self._tally = _tally(())  # of the line
        self._kept = 0.0
        self._ended = 0.0
        self.looked = 0.0  # when the scheduler last looked whose turn had come
        self._lateness = Surprise(mean=0.5, deviation=0.25)  # as `Retry-After` makes it
        self._ratios: list[float] = []

    def __len__(self) -> int:
        return len(self._line)

    @property
    def share_kept(self) -> float:
        """The share of callers who come back, as far as is known: all, until some have not."""
        return (self._kept + 0.1) / (self._ended + 0.1)

    def ahead(self, caller: str, now: float) -> Room:
        """What those need who are expected to come and go before this caller."""
        own = self._of_caller.get(caller)
        # Who is later than others were is not expected any more.
        late = bisect_left(self._line, now - self._lateness.margin, key=_due)
        if own is not None:
            return self._expected(_tally(self._line[late : self._index(own)]))
        # The line may be long; those who are late are few.
        line, gone = self._expected(self._tally), self._expected(_tally(self._line[:late]))
        return Room(line.passes - gone.passes, line.nbytes - gone.nbytes)

    def recall(self, job: Job[Any]) -> None:
        """Give a job the place that its caller was promised: its image may have been decoded when it came before."""
        own = self._of_caller.get(job.caller)
        if own is not None and job.lane is None:
            job.passes, job.nbytes = max(job.passes, own.passes), max(job.nbytes, own.nbytes)

    def is_due(self, caller: str, now: float) -> bool:
        """Whether a caller was promised a place and comes no earlier than it was told."""
        own = self._of_caller.get(caller)
        return own is not None and own.due <= now + self.ROUNDING

    def make(self, promise: Promise, wait: float, seconds_each: float) -> float:
        """Promise a place.

        Args:
            wait: seconds that it should take
            seconds_each: from one pass's place to the next

        Returns:
            seconds that the caller is to be told
        """
        now, due = promise.made, promise.made + max(self.ROUNDING, (1 + self.PAD) * wait)
        held = self._of_caller.get(promise.caller)
        if held is None:
            promise.due, promise.seconds = due, due - now
            if len(self._line) < self.LONGEST:
                self._of_caller[promise.caller] = promise
                insort(self._line, promise, key=_due)
                self._tally[promise.returned].add(promise)
            return promise.seconds
        if self.is_due(held.caller, now):  # the line is slower than was thought
            self._return(held, now)
            del self._line[self._index(held)]
            held.due = due + self._tally[True].passes * seconds_each
            insort(self._line, held, key=_due)
        return held.due - now

    def expect(self, caller: str, until: float, now: float) -> None:
        """A caller was let past the door: its place is kept while its body comes, but not beyond `until`."""
        promise = self._of_caller.get(caller)
        if promise is not None:
            if not promise.called:
                self.call(promise, self.turn(promise, now))
            self._return(promise, now)
            promise.until = until

    def keep(self, caller: str, now: float) -> None:
        """A caller was let in, for whatever reason."""
        promise = self._of_caller.get(caller)
        if promise is not None:
            self._return(promise, now)
            self._end(promise, now)

    def lapse(self, now: float) -> None:
        """Give up on those who have not come."""
        # Those who came are counted no sooner than those who did not, or else everyone would seem to come at first.
        while self._came and self._came[0] + self.GRACE < now:
            del self._came[0]
            self._learn(1)
        for promise in list(takewhile(lambda one: one.due + self.GRACE < now, self._line)):
            if promise.until < now:
                if not promise.returned:
                    self._learn(0)
                self._end(promise, now)

    def next_in_line(self) -> Promise | None:
        """The first whose turn has not come."""
        return next((promise for promise in self._line if not promise.called), None)

    def turn(self, promise: Promise, now: float) -> float:
        """When a promise's turn came, if it has come: at its due time, if that was after the last look; else now."""
        return promise.due if self.looked < promise.due <= now else now

    def call(self, promise: Promise, now: float) -> None:
        """A promise's turn has come: note how well its time was told."""
        promise.called = True
        self._ratios.append((now - promise.made) / promise.seconds)

    def ratios(self) -> list[float]:
        """Time until a turn came, divided by the time promised, for each turn since the last call of this."""
        ratios, self._ratios = self._ratios, []
        return ratios

    def _expected(self, tally: Tally) -> Room:
        # Who has come back once comes again.
        first, again = tally[False], tally[True]
        return Room(
            self.share_kept * first.passes + again.passes,
            self.share_kept * first.nbytes + again.nbytes,
        )

    def _index(self, promise: Promise) -> int:
        index = bisect_left(self._line, promise.due, key=_due)
        while self._line[index] is not promise:  # several are due at the same time
            index += 1
        return index

    def _return(self, promise: Promise, now: float) -> None:
        if not promise.returned:
            self._lateness.learn(max(0.0, now - promise.due))
            insort(self._came, promise.due)
            self._tally[False].add(promise, -1)
            self._tally[True].add(promise)
            promise.returned = True

    def _end(self, promise: Promise, now: float) -> None:
        if not promise.called:
            self.call(promise, self.turn(promise, now))
        self._tally[promise.returned].add(promise, -1)
        del self._line[self._index(promise)]
        del self._of_caller[promise.caller]

    def _learn(self, kept: int) -> None:
        self._kept = self.MEMORY * self._kept + kept
        self._ended = self.MEMORY * self._ended + 1


def _tally(promises: Iterable[Promise]) -> Tally:
    tally = {False: Sums(), True: Sums()}
    for promise in promises:
        tally[promise.returned].add(promise)
    return tally


def _due(promise: Promise) -> float:
    return promise.due
