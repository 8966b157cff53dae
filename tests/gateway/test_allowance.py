"""Limits and budgets, as laws: never more than the limit lets through, and never less for good."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puhui.core.answer import Energy, Usage
from puhui.core.errors import BudgetSpent, LimitReached
from puhui.gateway.allowance import LONGEST_WAIT_S, Allowance, Bucket, span
from puhui.trust.api_keys import Rules

NOON = datetime.datetime(2026, 11, 22, 12, tzinfo=datetime.UTC).timestamp()
KWH = 3.6e6


def usage(tokens: int = 0, money: float = 0.0, kwh: float = 0.0) -> Usage:
    joules = kwh * KWH
    return Usage(prompt_tokens=tokens, cost=money, energy=Energy(joules, joules, joules))


def admitted(allowance: Allowance, now: float, clock: float) -> bool:
    try:
        allowance.admit(now, clock)
    except LimitReached:
        return False
    return True


@given(st.integers(1, 500), st.lists(st.floats(0.0, 30.0), max_size=200))
def test_no_span_lets_more_through_than_limit_and_burst(limit: int, pauses: list[float]) -> None:
    allowance = Allowance(Rules(requests_per_minute=limit))
    clock, passed = 1000.0, []
    for pause in pauses:
        clock += pause
        while admitted(allowance, NOON, clock) and len(passed) < 2000:
            passed.append(clock)
    for first in range(0, len(passed), max(1, len(passed) // 20)):
        for last in range(first, len(passed), max(1, len(passed) // 20)):
            minutes = (passed[last] - passed[first]) / 60.0
            assert last - first + 1 <= limit * (1.0 + minutes) + 1e-6


@given(st.integers(1, 1000), st.floats(0.0, 5000.0), st.floats(0.0, 1000.0))
def test_who_waits_as_long_as_told_is_let_in(limit: int, taken: float, wanted: float) -> None:
    bucket = Bucket(limit)
    bucket.take(taken, 10.0)
    wait = bucket.wait_s(min(wanted, limit), 10.0)
    assert bucket.wait_s(min(wanted, limit), 10.0 + wait + 1e-6) <= 1e-6
    assert bucket.level(1e9) == limit


def test_a_refusal_costs_nothing_and_says_when_to_come_back() -> None:
    allowance = Allowance(Rules(requests_per_minute=60))
    assert [admitted(allowance, NOON, 5.0) for _ in range(62)] == [True] * 60 + [False] * 2
    with pytest.raises(LimitReached, match="60 requests a minute") as raised:
        allowance.admit(NOON, 5.0)
    assert raised.value.retry_after_s == pytest.approx(1.0)
    assert admitted(allowance, NOON, 6.0 + 1e-9)
    assert not admitted(allowance, NOON, 6.0 + 1e-9)


def test_tokens_are_counted_after_answers() -> None:
    allowance = Allowance(Rules(tokens_per_minute=600))
    allowance.admit(NOON, 0.0)
    allowance.charge(usage(tokens=900), NOON, 0.0)
    allowance.leave()
    with pytest.raises(LimitReached, match="600 tokens a minute") as raised:
        allowance.admit(NOON, 0.0)
    assert raised.value.retry_after_s == pytest.approx(30.1)
    assert admitted(allowance, NOON, 30.2)


def test_requests_under_way_count_as_those_before_them() -> None:
    allowance = Allowance(Rules(tokens_per_minute=1000, money_per_day=1.0))
    allowance.admit(NOON, 0.0)
    allowance.charge(usage(tokens=200, money=0.125), NOON, 0.0)
    allowance.leave()
    assert [admitted(allowance, NOON, 0.0) for _ in range(8)] == [True] * 4 + [False] * 4  # 800 left, 200 each
    allowance = Allowance(Rules(money_per_day=1.0))
    allowance.charge(usage(money=0.125), NOON, 0.0)
    assert [admitted(allowance, NOON, 0.0) for _ in range(9)] == [True] * 7 + [False] * 2
    with pytest.raises(LimitReached, match="set aside for 7 requests") as raised:
        allowance.admit(NOON, 0.0)
    assert not isinstance(raised.value, BudgetSpent)
    for _ in range(7):
        allowance.leave()
    assert admitted(allowance, NOON, 0.0)


@pytest.mark.parametrize(
    ("rules", "used", "opens_again"),
    [
        (Rules(money_per_day=1.0), usage(money=1.0), "2026-11-23"),
        (Rules(kwh_per_day=1.0), usage(kwh=1.5), "2026-11-23"),
        (Rules(money_per_month=1.0), usage(money=1.0), "2026-12-01"),
        (Rules(kwh_per_month=2.0), usage(kwh=2.0), "2026-12-01"),
    ],
)
def test_a_budget_that_is_spent_opens_again_with_the_next_day_or_month(
    rules: Rules, used: Usage, opens_again: str
) -> None:
    allowance = Allowance(rules)
    assert admitted(allowance, NOON, 0.0)
    allowance.charge(used, NOON, 0.0)
    allowance.leave()
    opening = datetime.datetime.fromisoformat(opens_again).replace(tzinfo=datetime.UTC).timestamp()
    with pytest.raises(BudgetSpent, match=f"more from {opens_again}") as raised:
        allowance.admit(NOON, 0.0)
    assert raised.value.retry_after_s == min(LONGEST_WAIT_S, opening - NOON)
    assert not admitted(allowance, opening - 1.0, 1e6)
    assert admitted(allowance, opening, 1e6)


def test_a_budget_of_nothing_lets_nothing_through() -> None:
    with pytest.raises(BudgetSpent):
        Allowance(Rules(money_per_day=0.0)).admit(NOON, 0.0)


def test_other_rules_do_not_undo_what_was_spent() -> None:
    allowance = Allowance(Rules())
    allowance.charge(usage(money=3.0), NOON, 0.0)
    allowance.follow(Rules(money_per_day=2.0))
    assert not admitted(allowance, NOON, 0.0)
    allowance.follow(Rules(money_per_day=4.0))
    assert admitted(allowance, NOON, 0.0)
    assert allowance.spent(NOON)["day"] == {"requests": 1, "money": 3.0, "kwh": 0.0}
    assert allowance.spent(NOON + 86_400.0) == {
        "day": {"requests": 0, "money": 0.0, "kwh": 0.0},
        "month": {"requests": 1, "money": 3.0, "kwh": 0.0},
    }


def test_headers_as_openai_has_them() -> None:
    allowance = Allowance(Rules(requests_per_minute=10, tokens_per_minute=600))
    allowance.admit(NOON, 0.0)
    allowance.charge(usage(tokens=700), NOON, 0.0)
    assert dict(allowance.headers(0.0)) == {
        b"x-ratelimit-limit-requests": b"10",
        b"x-ratelimit-remaining-requests": b"9",
        b"x-ratelimit-reset-requests": b"6s",
        b"x-ratelimit-limit-tokens": b"600",
        b"x-ratelimit-remaining-tokens": b"0",
        b"x-ratelimit-reset-tokens": b"1m10s",
    }
    assert Allowance(Rules()).headers(0.0) == []


@given(st.floats(0.0, 1e6))
def test_spans_are_never_too_short(seconds: float) -> None:
    text = span(seconds)
    if text.endswith("ms"):
        told = float(text[:-2]) / 1000.0
    elif "m" in text:
        minutes, _, rest = text[:-1].partition("m")
        told = int(minutes) * 60.0 + int(rest)
    else:
        told = float(text[:-1])
    assert told >= seconds * 0.99
    assert told <= seconds * 1.01 + 1.0
