"""Learning how far margins can be trusted: it finds what is there, and is sound where nothing can be learned."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puhui.compress.reliability_fit import LEAST_SLOPE, fit_reliability
from puhui.core.errors import LearningError


def drawn(rows: int, slope: float, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    margins, numbers = draw.exponential(2.0, rows), draw.integers(0, len(offsets), rows)
    chance = 1 / (1 + np.exp(-(slope * margins + offsets[numbers])))
    return margins, numbers, draw.random(rows) < chance


def test_it_finds_slope_and_offsets() -> None:
    offsets = np.array([-1.5, 0.0, 1.0])
    found = fit_reliability(*drawn(20_000, 0.8, offsets), 3)
    assert found.slope == pytest.approx(0.8, abs=0.1)
    assert found.offset == pytest.approx(offsets, abs=0.15)


def test_a_label_never_answered_has_the_common_offset() -> None:
    margins, numbers, agrees = drawn(3000, 1.0, np.array([1.0, 1.0]))
    found = fit_reliability(margins, numbers, agrees, 3)
    assert found.offset[2] == pytest.approx(found.offset[:2].mean(), abs=0.1)


def test_few_rows_move_a_label_less_than_many() -> None:
    margins, numbers, agrees = drawn(3000, 1.0, np.array([1.0, 1.0]))

    def moved(wrong: int) -> float:
        found = fit_reliability([*margins, *[1.0] * wrong], [*numbers, *[2] * wrong], [*agrees, *[False] * wrong], 3)
        return float(found.offset[0] - found.offset[2])

    assert 0.1 < moved(1) < moved(4) < 0.7 * moved(40)


@pytest.mark.parametrize("right", [True, False])
def test_all_right_or_all_wrong_stays_finite_and_says_so(right: bool) -> None:
    found = fit_reliability(np.linspace(0, 3, 200), np.arange(200) % 4, np.full(200, right), 4)
    confidences = found.confidences(np.full(4, 1.0, np.float32), np.arange(4))
    assert (confidences > 0.95).all() if right else (confidences < 0.1).all()
    assert found.slope >= LEAST_SLOPE


def test_without_rows_it_is_the_best_two_labels_alone() -> None:
    found = fit_reliability([], [], [], 3)
    assert found.slope == pytest.approx(1.0)
    assert not found.offset.any()


def test_margins_that_mislead_never_turn_the_ranking_round() -> None:
    margins = np.linspace(0, 5, 1000)
    assert fit_reliability(margins, np.zeros(1000, int), margins < 2.5, 2).slope == pytest.approx(LEAST_SLOPE)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 3), st.booleans()), max_size=30))
def test_any_rows_give_something_usable(rows: list[tuple[float, int, bool]]) -> None:
    columns = list(zip(*rows, strict=True)) or [[], [], []]
    found = fit_reliability(*columns, 4)
    found.check(labels=4)


@pytest.mark.parametrize(
    ("margins", "numbers", "agrees"),
    [([1.0], [0, 1], [True]), ([1.0, 2.0], [0, 4], [True, True]), ([1.0], [-1], [True])],
)
def test_rows_that_do_not_fit_are_refused(margins: list[float], numbers: list[int], agrees: list[bool]) -> None:
    with pytest.raises(LearningError):
        fit_reliability(margins, numbers, agrees, 4)
