from __future__ import annotations

import pytest

from app.engine.jobs import Job
from app.engine.places import Lack, Places, Room

NONE = Room()


def a_job(passes: int = 1, nbytes: int = 10) -> Job[None]:
    return Job("a", "x", nbytes, 1e9, None, passes)


def taken(passes: int, nbytes: int) -> Places:
    places = Places(20, 1000)
    places.take(a_job(passes, nbytes))
    return places


def lacks(places: Places, job: Job[None], kept: Room = NONE, spare: float = 0.0, few: int = 0) -> list[Lack]:
    return list(places.lacks(job, kept, spare, few))


def test_what_is_given_up_can_be_taken_again() -> None:
    places, job = taken(4, 100), a_job(16, 900)
    assert lacks(places, job) == []
    places.take(job)
    assert [lack.of for lack in lacks(places, a_job())] == ["images", "bytes"]
    places.free(job)
    assert (places.passes, places.nbytes) == (4, 100)


@pytest.mark.parametrize(
    ("job", "kept", "spare", "expected"),
    [
        (a_job(11), Room(), 0.0, ("images", 21, 20, 1.0)),
        (a_job(15), Room(), 0.0, ("images", 25, 20, 5.0)),
        (a_job(1, 600), Room(), 0.0, ("bytes", 1100, 1000, 2.0)),
        (a_job(5), Room(passes=5.5), 0.0, ("images", 21, 20, 1.0)),
        (a_job(5), Room(nbytes=500), 0.0, ("bytes", 1010, 1000, 0.1)),
        (a_job(9), Room(), 0.1, ("images", 21, 20, 1.0)),
    ],
)
def test_what_is_lacking_and_how_much_must_go(
    job: Job[None], kept: Room, spare: float, expected: tuple[str, int, int, float]
) -> None:
    """Of ten passes that are there, each holds 50 bytes."""
    assert lacks(taken(10, 500), job, kept, spare) == [expected]


def test_an_empty_queue_takes_any_one_job() -> None:
    assert lacks(Places(20, 1000), a_job(99, 9999)) == []
    assert len(lacks(Places(20, 1000), a_job(99, 9999), Room(1, 1))) == 2, "unless it is promised to another"


def test_those_promised_a_place_go_first_with_what_they_hold() -> None:
    assert lacks(taken(1, 20), a_job(1, 480), Room(9, 1980)) == [("bytes", 2480, 1000, 1480 / 200)]
    assert lacks(Places(20, 1000), a_job(1, 0), Room(2, 1500)) == [("bytes", 1500, 1000, 500 / 750)]


def test_where_nothing_is_held_passes_are_thought_to_hold_what_the_job_does() -> None:
    assert lacks(Places(20, 1000), a_job(4, 1200), Room(1, 0)) == [("bytes", 1200, 1000, 200 / 1200)]
    assert lacks(Places(20, 1000), a_job(4, 0), Room(1, 0)) == []


def test_beside_a_few_a_job_of_any_number_of_passes_is_taken_but_not_of_any_size() -> None:
    places, job = taken(4, 400), a_job(20, 601)
    assert [lack.of for lack in lacks(places, job, few=4)] == ["bytes"]
    assert [lack.of for lack in lacks(places, job, few=3)] == ["images", "bytes"]


def test_who_was_let_in_loses_no_place_unless_it_needs_more() -> None:
    places, job = taken(15, 100), a_job(8)
    job.granted = 8
    assert lacks(places, job) == []
    job.passes = 9
    assert [lack.of for lack in lacks(places, job)] == ["images"]
