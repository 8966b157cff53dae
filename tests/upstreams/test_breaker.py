"""The circuit breaker: every state, and what no order of outcomes can bring about."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from puhui.upstreams.breaker import LEAST_FAILURES, LONGEST_OPEN_S, MOST_MODELS, OPEN_S, WITHIN_S, Breaker, Breakers


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def admitted(breaker: Breaker) -> int:
    ticket = breaker.admit()
    assert ticket is not None
    return ticket


def broken(clock: Clock, **more: float) -> Breaker:
    breaker = Breaker(clock=clock)
    for _ in range(LEAST_FAILURES):
        breaker.failed(admitted(breaker), **more)
    return breaker


def test_it_opens_after_failures_and_only_then() -> None:
    breaker = Breaker(clock=Clock())
    for _ in range(LEAST_FAILURES - 1):
        breaker.failed(admitted(breaker))
    assert breaker.state == "closed"
    breaker.failed(admitted(breaker))
    assert breaker.state == "open"
    assert breaker.admit() is None
    assert not breaker.may_pass
    assert breaker.wait_s == OPEN_S


def test_fewer_than_half_failures_keep_it_closed_and_half_open_it() -> None:
    breaker = Breaker(clock=Clock())
    for _ in range(30):
        breaker.succeeded(admitted(breaker))
        breaker.succeeded(admitted(breaker))
        breaker.failed(admitted(breaker))
    assert breaker.state == "closed"
    for _ in range(10):
        breaker.failed(admitted(breaker))
        if breaker.state == "open":
            return
        breaker.succeeded(admitted(breaker))
    raise AssertionError("half of the latest failed")


def test_old_failures_do_not_count() -> None:
    clock = Clock()
    breaker = Breaker(clock=clock)
    for _ in range(3 * LEAST_FAILURES):
        breaker.failed(admitted(breaker))
        clock.now += WITHIN_S / (LEAST_FAILURES - 2)
    assert breaker.state == "closed"


def test_one_tries_when_the_time_is_over_and_decides() -> None:
    clock = Clock()
    breaker = broken(clock)
    clock.now += OPEN_S
    assert breaker.state == "half-open"
    probe = admitted(breaker)
    assert breaker.admit() is None, "one, not two"
    breaker.failed(probe)
    assert breaker.wait_s == 2 * OPEN_S
    for _ in range(10):
        clock.now += breaker.wait_s
        breaker.failed(admitted(breaker))
    assert breaker.wait_s == LONGEST_OPEN_S
    clock.now += LONGEST_OPEN_S
    breaker.succeeded(admitted(breaker))
    assert breaker.state == "closed"
    for _ in range(LEAST_FAILURES):
        breaker.failed(admitted(breaker))
    assert breaker.wait_s == OPEN_S, "from the beginning"


def test_who_gave_up_lets_another_try() -> None:
    clock = Clock()
    breaker = broken(clock)
    clock.now += OPEN_S
    breaker.undecided(admitted(breaker))
    breaker.succeeded(admitted(breaker))
    assert breaker.state == "closed"


def test_answers_from_before_say_nothing_of_now() -> None:
    clock = Clock()
    breaker = Breaker(clock=clock)
    old = admitted(breaker)
    for _ in range(LEAST_FAILURES):
        breaker.failed(admitted(breaker))
    breaker.succeeded(old)
    assert breaker.state == "open"
    clock.now += OPEN_S
    probe = admitted(breaker)
    breaker.succeeded(old)
    breaker.undecided(old)
    assert breaker.admit() is None, "the probe is still on its way"
    breaker.succeeded(probe)
    breaker.failed(old)
    assert breaker.state == "closed"


def test_it_waits_as_long_as_it_is_asked_to_within_reason() -> None:
    assert broken(Clock(), wait_s=11.0).wait_s == 11.0
    assert broken(Clock(), wait_s=1e9).wait_s == LONGEST_OPEN_S


@given(st.lists(st.sampled_from(["succeeded", "failed", "undecided", "wait", "leave"]), max_size=200))
def test_it_never_sticks(happenings: list[str]) -> None:
    """Whatever happens, whoever is let in while it is not closed is alone, and it is closed again in the end."""
    clock = Clock()
    breaker = Breaker(clock=clock)
    inside: list[int] = []
    for happening in happenings:
        if happening == "wait":
            clock.now += 7.0
        elif happening == "leave" and inside:
            breaker.undecided(inside.pop())
        else:
            closed = breaker.state == "closed"
            ticket = breaker.admit()
            if ticket is not None:
                assert closed or breaker.admit() is None
                if happening == "leave":
                    inside.append(ticket)
                else:
                    getattr(breaker, happening)(ticket)
    for ticket in inside:
        breaker.undecided(ticket)
    clock.now += LONGEST_OPEN_S
    breaker.succeeded(admitted(breaker))
    assert breaker.state == "closed"


def test_each_model_has_its_own_and_the_best_of_late_speaks_for_all() -> None:
    clock = Clock()
    breakers = Breakers(clock=clock)
    assert breakers.best.state == "closed"
    for _ in range(LEAST_FAILURES):
        breaker = breakers.of("broken")
        breaker.failed(admitted(breaker), wait_s=LONGEST_OPEN_S)
    assert breakers.best.state == breakers.of("broken").state == "open"
    assert breakers.of("sound").state == breakers.best.state == "closed"
    clock.now += WITHIN_S / 2
    assert breakers.of("broken").state == "open"
    clock.now += WITHIN_S / 2 - 1.0
    assert breakers.best.state == "closed"
    clock.now += 0.5 + WITHIN_S / 2
    breakers.of("broken").failed(admitted(breakers.of("broken")))
    assert breakers.best.state == "open"  # nobody has asked for the sound one for a minute


def test_names_that_callers_make_up_are_forgotten_again() -> None:
    breakers = Breakers(clock=Clock())
    first, kept = breakers.of("first"), breakers.of("kept")
    for number in range(MOST_MODELS):
        breakers.of(f"made up {number}")
        assert breakers.of("kept") is kept
    assert breakers.of("first") is not first
