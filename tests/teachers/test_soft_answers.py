"""Likelihoods of first tokens into a distribution over labels."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puhui.teachers.soft_answers import SoftAnswers

LABELS = st.sets(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=30).map(sorted)
TOLD = st.none() | st.lists(st.tuples(st.text("abc ", max_size=4), st.floats(-50.0, 0.5)), max_size=20)


@given(LABELS, TOLD, st.data())
def test_shares_are_a_distribution(
    labels: list[str], told: list[tuple[str, float]] | None, data: st.DataObject
) -> None:
    answer = data.draw(st.sampled_from(labels))
    shares = SoftAnswers(labels).of(answer, told)
    assert all(share >= 0.0 for share in shares.values())
    assert sum(shares.values()) == pytest.approx(1.0, abs=1e-9)
    assert shares.keys() <= set(labels)


def test_many_labels_behind_one_token_do_not_round_away() -> None:
    labels = [f"l{n}" for n in range(999)] + ["x"]
    shares = SoftAnswers(labels).of("x", [("l", math.log(0.3)), ("x", math.log(0.7))])
    assert sum(shares.values()) == pytest.approx(1.0, abs=1e-9)
    assert shares["x"] == pytest.approx(0.7)
    assert shares["l5"] == pytest.approx(0.3 / 999)


def test_who_speaks_for_whom() -> None:
    teller = SoftAnswers(["ec2", "ecs", "iot"])
    assert teller.of("ec2", None) == {"ec2": 1.0}
    assert teller.of("ec2", [("e", math.log(0.8)), ("iot", math.log(0.2))]) == pytest.approx({"ec2": 0.8, "iot": 0.2})
    assert teller.of("iot", [(" iot", math.log(0.6)), ("ec", math.log(0.4))]) == pytest.approx(
        {"iot": 0.6, "ec2": 0.2, "ecs": 0.2}
    )
    assert teller.of("iot", [("zebra", math.log(0.9)), ("", math.log(0.1))]) == {"iot": 1.0}
