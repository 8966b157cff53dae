"""The gate: what of δ may be spent, and what may be promoted."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puhui.cascade.guarantee import Calibration, calibrate_threshold, rows_needed, spend
from puhui.core.settings import Promise
from puhui.evolve.gate import LATER_ALLOWED_SHARE, LEAST_COVERAGE, LEAST_GAIN, is_worth_trying, judge


@given(st.lists(st.integers(1, 3), max_size=60), st.floats(0.001, 0.5))
def test_whatever_happened_no_more_than_delta_is_spent(steps: list[int], delta: float) -> None:
    attempts = [sum(steps[: n + 1]) for n in range(len(steps))]
    assert sum(spend(delta, attempt) for attempt in attempts) <= delta * (1 + 1e-12)


@given(st.integers(0, 6000), st.integers(1, 20), st.sampled_from([0.005, 0.01, 0.02, 0.1]))
def test_a_sample_worth_trying_can_prove_something(rows: int, attempt: int, epsilon: float) -> None:
    promise = Promise(epsilon, 0.05)
    level = spend(promise.delta, attempt)
    if is_worth_trying(promise, rows, attempt):
        assert rows >= rows_needed(epsilon, level)
        sure, right = np.full(rows, 0.9), np.ones(rows, np.bool_)
        right[: int(LATER_ALLOWED_SHARE * epsilon * rows)] = False
        found = calibrate_threshold(sure, right, epsilon=epsilon, delta=level)
        assert found.threshold == 0.9
        assert found.risk_bound <= epsilon
    elif rows:
        # A larger sample is worth it some day.
        assert any(is_worth_trying(promise, more, attempt) for more in range(rows, 60_000, 997))


def verdict(attempt: int = 1, **more: Any) -> Any:
    proven = Calibration(0.9, more.pop("coverage", 0.8), 1, 0.001, 0.015, 0.02, 0.05, 1000)
    proven = more.pop("calibration", proven)
    usual = {"coverage_in_place": 0.0, "joules_expert": 0.001, "joules_big": 1.0, "audit_rate": 0.05}
    return judge(proven, attempt, **usual | more)


def test_what_passes_the_gate() -> None:
    assert verdict().promoted
    assert "80.0%" in verdict().reason
    assert verdict(coverage_in_place=0.8 - LEAST_GAIN - 0.001).promoted


@pytest.mark.parametrize(
    ("case", "why"),
    [
        ({"calibration": Calibration(None, 0.0, 0, 0.0, 0.0, 0.02, 0.05, 77)}, "nothing is proven .* on 77 rows"),
        ({"coverage": LEAST_COVERAGE - 0.01}, "less than"),
        ({"coverage_in_place": 0.8 - LEAST_GAIN + 0.001}, "less than"),
        ({"coverage_in_place": 0.9}, "less than"),
        ({"joules_expert": 0.8}, "more energy than it saves"),
        ({"joules_big": 0.0}, "more energy than it saves"),
        ({"audit_rate": 1.0}, "more energy than it saves"),
    ],
)
def test_what_does_not(case: dict[str, Any], why: str) -> None:
    found = verdict(**case)
    assert not found.promoted
    assert re.search(why, found.reason)


def test_less_is_asked_of_a_task_that_learns_slowly() -> None:
    passed = [verdict(attempt, coverage=0.15).promoted for attempt in range(1, 8)]
    assert passed == sorted(passed)
    assert passed[0] is False
    assert passed[-1] is True
