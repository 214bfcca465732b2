from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.engine.turns import Turns

PATIENCE = 60.0  # seconds


class Track:
    """Notes who is on it; whoever is stays until it is let go."""

    def __init__(self, at_once: int) -> None:
        self.turns = Turns(at_once)
        self.entered: list[int] = []
        self.left: list[int] = []
        self.changed = threading.Condition()

    def run(self, number: int) -> None:
        with self.turns.turn(number), self.changed:
            self.entered.append(number)
            self.changed.notify_all()
            assert self.changed.wait_for(lambda: number in self.left, PATIENCE)

    def let_go(self, number: int) -> None:
        with self.changed:
            self.left.append(number)
            self.changed.notify_all()

    def has(self, *numbers: int) -> bool:
        """Whether just these have entered so far, in whatever order."""
        with self.changed:
            self.changed.wait_for(lambda: len(self.entered) >= len(numbers), PATIENCE)
            return sorted(self.entered) == list(numbers)


def test_turns_are_taken_by_number_whoever_comes_first() -> None:
    track = Track(1)
    with ThreadPoolExecutor(4) as threads:
        for number in (3, 1, 2, 0):
            threads.submit(track.run, number)
        for number in range(4):
            assert track.has(*range(number + 1))
            track.let_go(number)
    assert track.entered == [0, 1, 2, 3]


def test_so_many_at_once_whichever_ends_first() -> None:
    track = Track(2)
    with ThreadPoolExecutor(4) as threads:
        for number in (3, 2, 1, 0):
            threads.submit(track.run, number)
        assert track.has(0, 1)
        track.let_go(1)
        assert track.has(0, 1, 2)
        track.let_go(2)
        assert track.has(0, 1, 2, 3)
        track.let_go(0)
        track.let_go(3)


def test_one_that_fails_makes_way() -> None:
    turns = Turns(1)
    with pytest.raises(ZeroDivisionError), turns.turn(0):
        raise ZeroDivisionError
    with turns.turn(1):
        pass
