"""The order in which upstreams are asked is a fair draw by their weights."""

from __future__ import annotations

import random
from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puhui.upstreams.weights import in_turn


class Member(msgspec.Struct, frozen=True):
    name: int
    weight: float


def members(*weights: float) -> list[Member]:
    return [Member(number, weight) for number, weight in enumerate(weights)]


@given(st.lists(st.floats(1e-6, 1e6), max_size=8), st.integers())
def test_an_order_holds_each_once(weights: list[float], seed: int) -> None:
    given_ = members(*weights)
    assert sorted(in_turn(given_, random.Random(seed).random), key=lambda each: each.name) == given_


def test_the_least_and_the_greatest_draw() -> None:
    assert len(in_turn(members(1.0, 1e-300), lambda: 0.0)) == 2
    assert len(in_turn(members(1.0, 1e-300), lambda: 1.0 - 2.0**-53)) == 2


@pytest.mark.parametrize("weights", [(1.0, 1.0), (3.0, 1.0), (1.0, 2.0, 7.0), (0.01, 0.03)])
def test_each_comes_first_as_often_as_its_weight_says(weights: tuple[float, ...]) -> None:
    draws, drawn = 20_000, random.Random(7)
    firsts = Counter(in_turn(members(*weights), drawn.random)[0].name for _ in range(draws))
    for number, weight in enumerate(weights):
        share = weight / sum(weights)
        spread = (share * (1.0 - share) / draws) ** 0.5
        assert abs(firsts[number] / draws - share) < 4.5 * spread


def test_among_those_that_are_left_it_is_so_again() -> None:
    draws, drawn = 20_000, random.Random(7)
    orders = [tuple(each.name for each in in_turn(members(8.0, 1.0, 3.0), drawn.random)) for _ in range(draws)]
    after_the_first = [order[1] for order in orders if order[0] == 0]
    share = after_the_first.count(2) / len(after_the_first)
    assert abs(share - 0.75) < 4.5 * (0.75 * 0.25 / len(after_the_first)) ** 0.5
