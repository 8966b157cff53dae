"""Confidence from margins: a chance, rising with the margin, the same for one and for many, kept on disk."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puhui.core.errors import BundleError
from puhui.models.reliability import Reliability

MARGINS = st.floats(0, 2.0**100, width=32)
OFFSETS = st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=2, max_size=5)


@given(st.floats(1e-3, 1e3), OFFSETS, st.lists(MARGINS, min_size=1, max_size=20))
def test_any_margin_gets_a_confidence_and_many_equal_singles(
    slope: float, offset: list[float], margins: list[float]
) -> None:
    trust = Reliability(slope, np.array(offset, np.float32))
    numbers = np.arange(len(margins)) % len(offset)
    many = trust.confidences(np.array(margins, np.float32), numbers)
    for margin, number, among in zip(margins, numbers.tolist(), many.tolist(), strict=True):
        alone = trust.confidence(margin, number)
        assert 0.0 <= alone <= 1.0
        assert alone == pytest.approx(among, abs=1e-6)


@given(st.floats(0, 50), st.floats(0, 50), st.integers(0, 1))
def test_a_greater_margin_is_never_less_sure(one: float, other: float, number: int) -> None:
    trust = Reliability(0.7, np.array([-2, 1], np.float32))
    low, high = sorted((one, other))
    assert trust.confidence(low, number) <= trust.confidence(high, number)


def test_slope_one_without_offsets_is_the_best_two_labels_alone() -> None:
    first, second = 3.0, 1.5
    wanted = math.exp(first) / (math.exp(first) + math.exp(second))
    plain = Reliability(1.0, np.zeros(2, np.float32))
    assert plain.confidence(first - second, 0) == pytest.approx(wanted, abs=1e-12)


def test_arrays_and_back() -> None:
    kept = Reliability(0.75, np.array([1, -2, 0.5], np.float32))
    again = Reliability.from_arrays(kept.arrays())
    assert again.slope == kept.slope
    assert np.array_equal(again.offset, kept.offset)


@pytest.mark.parametrize(
    ("slope", "offset"),
    [
        (0.0, np.zeros(3, np.float32)),
        (-1.0, np.zeros(3, np.float32)),
        (math.inf, np.zeros(3, np.float32)),
        (math.nan, np.zeros(3, np.float32)),
        (1.0, np.zeros(2, np.float32)),
        (1.0, np.zeros(3, np.float64)),
        (1.0, np.array([0, 0, np.nan], np.float32)),
    ],
)
def test_what_would_turn_the_ranking_round_or_not_fit_is_refused(slope: float, offset: np.ndarray) -> None:
    with pytest.raises(BundleError):
        Reliability(slope, offset).check(labels=3)
