from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from itertools import pairwise

import pytest

from app.engine.promises import Promise, Promises
from app.engine.scheduler import Policy
from benchmarks.replay import Callers, Device, Outcome, Simulation, Visitor, percentile
from benchmarks.traffic import poisson

EACH = 0.1  # seconds from one place to the next


def told(promises: Promises, caller: str, now: float, wait: float, passes: int = 1, nbytes: int = 1) -> float:
    return promises.make(Promise(caller, "a", nbytes, 1.0, made=now, passes=passes), wait, EACH)


def test_a_caller_is_told_a_little_more_than_it_should_take() -> None:
    promises = Promises()
    seconds = told(promises, "x", 10.0, 4.0)
    assert 4.0 < seconds < 4.2
    assert not promises.is_due("x", 10.0 + seconds - 0.01)
    assert promises.is_due("x", 10.0 + seconds)
    assert not promises.is_due("y", 99.0)


def test_nobody_is_told_to_come_back_at_once() -> None:
    assert told(Promises(), "x", 10.0, 0.0) > 0


def test_who_comes_early_is_told_the_same_moment_again() -> None:
    promises = Promises()
    seconds = told(promises, "x", 0.0, 4.0)
    assert told(promises, "x", 1.0, 9.0) == pytest.approx(seconds - 1.0)
    assert told(promises, "x", 2.0, 0.1) == pytest.approx(seconds - 2.0)
    assert len(promises) == 1


def test_who_comes_on_time_in_vain_is_told_one_place_more() -> None:
    promises = Promises()
    now = told(promises, "x", 0.0, 4.0)
    assert told(promises, "x", now, 1.0) == pytest.approx((1 + Promises.PAD) * 1.0 + EACH)
    assert len(promises) == 1


def test_those_who_came_in_vain_do_not_all_come_again_at_once() -> None:
    promises = Promises()
    for number in range(3):
        told(promises, str(number), 0.0, 1.0)
    waits = [told(promises, str(number), 2.0, 0.01) for number in range(3)]
    assert waits == [pytest.approx(0.01 + EACH * place, abs=0.001) for place in (1, 2, 3)]
    promises.keep("1", 2.2)
    assert told(promises, "0", 2.2, 0.01) == pytest.approx(0.01 + EACH * 2, abs=0.001)


def test_of_those_who_came_in_vain_each_counts_for_its_passes() -> None:
    promises = Promises()
    needs = {"one": 1, "many": 30, "another": 1}
    for caller, passes in needs.items():
        told(promises, caller, 0.0, 1.0, passes)
    waits = [told(promises, caller, 2.0, 0.01, passes) for caller, passes in needs.items()]
    assert waits == [pytest.approx(0.01 + EACH * passes, abs=0.001) for passes in (1, 31, 32)]


def test_those_who_came_later_stand_behind() -> None:
    promises = Promises()
    assert promises.ahead("new", 0.0).passes == 0.0
    for number in range(5):
        told(promises, str(number), 0.0, 4.0 + number)
    assert [promises.ahead(caller, 0.0).passes for caller in ("0", "3", "4", "new")] == [0.0, 3.0, 4.0, 5.0]
    promises.keep("1", 3.0)
    assert [promises.ahead(caller, 3.0).passes for caller in ("0", "3", "4", "new")] == [0.0, 2.0, 3.0, 4.0]


def test_of_those_who_are_due_together_the_first_stands_in_front() -> None:
    promises = Promises()
    for caller in "xyz":
        told(promises, caller, 0.0, 4.0)
    assert [promises.ahead(caller, 0.0).passes for caller in "xyz"] == [0.0, 1.0, 2.0]


def test_those_ahead_count_for_what_they_need_themselves() -> None:
    promises = Promises()
    for number, (passes, nbytes) in enumerate([(100, 5), (1, 700), (30, 0)]):
        told(promises, str(number), 0.0, 1.0 + number, passes, nbytes)
    assert [promises.ahead(caller, 0.0) for caller in ("0", "1", "2", "new")] == [
        (0, 0),
        (100, 5),
        (101, 705),
        (131, 705),
    ]
    assert promises.ahead("new", 2.5) == (131 - 100, 700), "the first is late"
    promises.keep("1", 2.5)
    assert promises.ahead("new", 0.0) == (130, 5)
    promises.lapse(99.0)
    assert promises.ahead("new", 0.0) == (0, 0)


def test_who_has_come_in_vain_is_sure_to_come_again() -> None:
    promises = Promises()
    a_crowd(promises, 300, lambda number: number % 2 == 0)
    promises.lapse(100.0)
    due = 100.0 + told(promises, "x", 100.0, 3.0, passes=100, nbytes=1000)
    told(promises, "y", 100.0, 4.0, passes=10, nbytes=100)
    assert promises.ahead("new", 100.0) == pytest.approx((55, 550), rel=0.1)
    told(promises, "x", due, 3.0, passes=100, nbytes=1000)
    assert promises.ahead("new", due) == pytest.approx((105, 1050), rel=0.01)
    promises.keep("x", due)
    assert promises.ahead("new", due) == pytest.approx((5, 50), rel=0.1)


def a_crowd(promises: Promises, count: int, comes: Callable[[int], bool], late: float = 0.0, wait: float = 3.0) -> None:
    """Callers refused one after another, ten a second; those who come do so when told, or late."""
    events = []
    for number in range(count):
        now = number * EACH
        due = now + (1 + Promises.PAD) * wait
        events.append((now, number, lambda number=number, now=now: told(promises, str(number), now, wait)))
        if comes(number):
            events.append((due + late, number, lambda number=number, at=due + late: promises.keep(str(number), at)))
    for now, _, event in sorted(events, key=lambda event: event[:2]):
        promises.lapse(now)
        event()


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_share_of_callers_who_come_back_is_learnt(share: float) -> None:
    promises, rng = Promises(), random.Random(0)
    assert promises.share_kept == 1.0, "until it is known, all are expected"
    a_crowd(promises, 1000, lambda _: rng.random() < share)
    assert promises.share_kept == pytest.approx(share, abs=0.1)


def test_a_crowd_that_comes_in_waves_seems_no_keener_at_first() -> None:
    promises = Promises()
    a_crowd(promises, 40, lambda number: number % 2 == 0)
    promises.lapse(19.0)
    before = promises.share_kept
    assert before == pytest.approx(0.5, abs=0.1)
    for number in range(100, 200):
        told(promises, str(number), 20.0, 1.0)
    for number in range(100, 200, 2):
        promises.keep(str(number), 21.1)
    promises.lapse(22.0)
    assert promises.share_kept == before
    promises.lapse(24.0)
    assert promises.share_kept == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("late", [0.0, 0.5])
def test_who_is_later_than_others_were_is_not_waited_for(late: float) -> None:
    promises = Promises()
    a_crowd(promises, 300, lambda _: True, late)
    promises.lapse(100.0)
    for number in range(3):
        told(promises, f"lost {number}", 100.0, 1.0)
    due = 100.0 + (1 + Promises.PAD)
    assert promises.ahead("new", due + 0.9 * late).passes == pytest.approx(3.0)
    assert promises.ahead("new", due + late + 0.2).passes == 0.0
    assert promises.is_due("lost 0", due + late + 0.2), "but its place is still its own"


def test_until_it_is_known_how_late_they_come_a_second_is_thought_likely() -> None:
    """Which is what the header's rounding may bring."""
    promises = Promises()
    due = told(promises, "x", 0.0, 4.0)
    assert promises.ahead("new", due + 1.0).passes == 1.0
    assert promises.ahead("new", due + 1.5).passes == 0.0


def test_who_is_let_in_before_its_turn_tells_nothing_of_how_late_others_come() -> None:
    promises = Promises()
    for number in range(100):
        due = told(promises, str(number), 0.0, 4.0)
        promises.keep(str(number), due if number % 2 else 0.5)
    due = told(promises, "lost", 0.0, 4.0)
    assert promises.ahead("new", due + 0.2).passes == 0.0


def test_a_place_is_kept_for_so_long() -> None:
    promises = Promises()
    due = told(promises, "x", 0.0, 1.0)
    promises.lapse(due + Promises.GRACE)
    assert promises.is_due("x", due + Promises.GRACE)
    promises.lapse(due + Promises.GRACE + 0.01)
    assert not promises.is_due("x", due + Promises.GRACE + 0.01)
    assert len(promises) == 0


def test_a_place_is_kept_while_its_caller_s_body_comes() -> None:
    promises = Promises()
    due = told(promises, "x", 0.0, 1.0)
    promises.expect("x", due + 30.0, due)
    lost = due + told(promises, "lost", due, 0.1)
    promises.lapse(due + 29.0)
    assert promises.is_due("x", due + 29.0)
    assert not promises.is_due("lost", lost), "those behind it are given up"
    assert told(promises, "x", due + 29.0, 0.1) < 1.0, "refused after all, it stays in the line"
    assert promises.ratios() == [pytest.approx(1.0)] * 2, "its turn came as it was let past the door"
    promises.lapse(due + 32.0)
    assert len(promises) == 0


def test_a_body_that_does_not_come_is_waited_for_no_longer_than_its_deadline() -> None:
    promises = Promises()
    due = told(promises, "x", 0.0, 1.0)
    promises.expect("x", due + 30.0, due)
    promises.lapse(due + 30.1)
    assert len(promises) == 0
    assert promises.share_kept == 1.0, "it did come"


def test_who_came_once_in_vain_is_not_counted_among_those_who_never_come() -> None:
    promises = Promises()
    due = told(promises, "x", 0.0, 1.0)
    due += told(promises, "x", due, 1.0)
    promises.lapse(due + Promises.GRACE + 0.01)
    assert len(promises) == 0
    assert promises.share_kept == 1.0


def test_turns_come_in_order_and_are_compared_with_what_was_told() -> None:
    promises = Promises()
    first, second = told(promises, "x", 0.0, 2.0), told(promises, "y", 0.0, 3.0)
    promise = promises.next_in_line()
    assert promise is not None
    assert promise.caller == "x"
    promises.call(promise, first)
    promises.expect("x", first, first)
    following = promises.next_in_line()
    assert following is not None
    assert following.caller == "y"
    promises.keep("x", first)
    assert promises.ratios() == [pytest.approx(1.0)]
    promises.looked = second + Promises.GRACE  # and its turn had not come
    promises.lapse(second + Promises.GRACE + 1.0)
    assert promises.next_in_line() is None
    assert promises.ratios() == [pytest.approx(1 + (Promises.GRACE + 1.0) / second)], "the turn never came"
    assert promises.ratios() == []


def test_a_turn_that_nobody_saw_come_came_when_it_was_due() -> None:
    promises = Promises()
    first = told(promises, "comes late", 0.0, 2.0)
    told(promises, "never comes", 0.0, 3.0)
    promises.keep("comes late", first + 1.0)
    promises.lapse(60.0)
    assert promises.ratios() == [pytest.approx(1.0)] * 2


def test_the_line_has_an_end_but_everyone_is_told_something(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Promises, "LONGEST", 2)
    promises = Promises()
    assert [told(promises, caller, 0.0, 1.0) for caller in "xyz"] == [pytest.approx(1.0 + Promises.PAD)] * 3
    assert len(promises) == 2
    assert told(promises, "x", 2.0, 1.0) > 0, "those in it stay"
    assert len(promises) == 2


# --- simulated: three times as many callers as the device can serve

SECONDS, WARM = 20.0, 6.0
ONE_BY_ONE = Device(0.0, 0.060, noise=0.05)
BATCHED = Device(0.020, 0.0025, noise=0.05)
CASES = {
    "one by one, 1 s": (ONE_BY_ONE, 1, 1, 1.0),
    "one by one, 5 s": (ONE_BY_ONE, 1, 1, 5.0),
    "one by one, 5 s, two slots": (ONE_BY_ONE, 1, 2, 5.0),
    "batched, 0.5 s": (BATCHED, 8, 1, 0.5),
}
each_case = pytest.mark.parametrize("case", CASES)


@cache
def overload(case: str, callers: Callers) -> tuple[Outcome, float]:
    """The outcome, and the images a second that the device could have done."""
    device, batch, slots, deadline = CASES[case]
    capacity = slots * batch / (device.fixed + device.each * batch)
    simulation = Simulation(Policy(batch, 1 << 30, 64, 1 << 30, slots), device, callers)
    return simulation.run(poisson(3 * capacity, SECONDS, deadline=deadline), until=SECONDS), capacity


def refused_first(outcome: Outcome, of: float = WARM) -> list[Visitor]:
    """Those let in by now who had been refused after so many seconds."""
    return [
        visitor
        for visitor in outcome.visitors
        if visitor.refusals and visitor.refusals[0][0] > of and visitor.taken is not None
    ]


def rate(outcome: Outcome) -> float:
    return sum(visitor.done is not None and visitor.done > WARM for visitor in outcome.visitors) / (SECONDS - WARM)


def error(outcome: Outcome) -> float:
    return percentile((abs(ratio - 1) for moment, ratio in outcome.ratios if moment > WARM), 0.5)


def at_first_return(visitors: list[Visitor]) -> float:
    return sum(len(visitor.refusals) == 1 for visitor in visitors) / len(visitors)


@each_case
@pytest.mark.parametrize("returning", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("whole_seconds", [False, True], ids=["body", "header"])
def test_what_refused_callers_are_told_is_true_and_the_device_stays_busy(
    case: str, returning: float, whole_seconds: bool
) -> None:
    outcome, capacity = overload(case, Callers(returning, whole_seconds))
    assert rate(outcome) > 0.95 * capacity
    assert error(outcome) < 0.25
    admitted = [visitor for visitor in outcome.visitors if visitor.taken is not None]
    late = sum(visitor.expired is not None for visitor in admitted)
    assert late < 0.02 * len(admitted)


@each_case
def test_callers_who_come_back_when_told_are_nearly_all_let_in_at_once(case: str) -> None:
    outcome, _ = overload(case, Callers(1.0))
    back = refused_first(outcome, of=1.0)
    assert len(back) > 50
    assert at_first_return(back) > 0.8
    assert percentile((abs((visitor.ratio or 0.0) - 1) for visitor in back), 0.5) < 0.05


@each_case
def test_nobody_new_goes_before_those_who_wait_for_their_turn(case: str) -> None:
    outcome, _ = overload(case, Callers(1.0))
    admitted = [visitor for visitor in outcome.visitors if visitor.taken is not None and visitor.taken > WARM]
    assert sum(not visitor.refusals for visitor in admitted) < 0.15 * len(admitted)
    came = [
        visitor.refusals[0][0] for visitor in sorted(admitted, key=lambda one: one.taken or 0.0) if visitor.refusals
    ]
    overtaken = sum(later < earlier for earlier, later in pairwise(came))
    assert overtaken < 0.25 * len(came)


def test_the_header_s_whole_seconds_cost_few_callers_a_second_way() -> None:
    """Where a second is short beside what the queue holds; elsewhere they come in no even stream."""
    outcome, _ = overload("one by one, 5 s", Callers(1.0, whole_seconds=True))
    back = refused_first(outcome, of=1.0)
    assert at_first_return(back) > 0.8
    assert percentile((abs((visitor.ratio or 0.0) - 1) for visitor in back), 0.5) < 0.25
