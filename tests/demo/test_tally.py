"""What the demo says of a run."""

from __future__ import annotations

from typing import Any

import pytest

from puhui.demo.job import Item
from puhui.demo.load import Sent
from puhui.demo.tally import summarise

COMPUTE = {"big": 20.0, "expert": 0.1}


def run(by_expert: int, *, spent: float, alone: float) -> dict[str, Any]:
    """A run of 100 requests, the last `by_expert` of them answered by an expert at 0.001 J for the big model's 0.1."""
    sent = []
    for number in range(100):
        expert = number >= 100 - by_expert
        by, joules, answer = ("expert:a", 0.001, "no") if expert else ("big:b", 0.1, "yes")
        sent.append(Sent(number, float(number), 0.002 if expert else 0.05, 200, answer, by, joules=joules))
    energy = {"joules": spent, "low": spent / 3, "high": spent * 2, "measured": False}
    total = {"energy": energy, "big_energy": energy | {"joules": alone}}
    said = dict.fromkeys(range(100), "yes") | {99: "no"}
    items = [Item("text", "yes")] * 100
    return summarise(items, sent, said, COMPUTE, {"total": total}, [])


def test_shares_and_risk() -> None:
    expert = run(10, spent=9.0, alone=10.0)["expert"]
    assert (expert["share"], expert["share_final"], expert["first_at_request"]) == (0.1, 0.5, 90)
    assert (expert["era_requests"], expert["risk"], expert["agreement"]) == (10, 0.9, 0.1)


@pytest.mark.parametrize(("by_expert", "spent", "after"), [(10, 9.0, 0), (0, 12.0, None), (10, 12.0, 43)])
def test_when_learning_is_paid_back(by_expert: int, spent: float, after: int | None) -> None:
    # Two joules too many; half of the last fifth saves 0.95 · 0.1 − 0.001 J each: 2 / 0.047 = 42.6 requests.
    assert run(by_expert, spent=spent, alone=10.0)["energy_j"]["paid_back_after"] == after
