"""The figures counted from held-out rows: confusions, reliability, its error, and intervals."""

from __future__ import annotations

import doctest
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from puhui.bundles import card, card_figures, card_words
from puhui.bundles.card_figures import calibration_error, confusions_of, reliability_of, wilson_interval
from puhui.core.errors import LearningError

ROWS = st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=60)
ANSWERS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), max_size=60)


@pytest.mark.parametrize("module", [card, card_figures, card_words])
def test_examples(module: object) -> None:
    ran = doctest.testmod(module)  # type: ignore[arg-type]
    assert ran.attempted > 0
    assert ran.failed == 0


@given(ANSWERS)
def test_confusions_count_every_disagreement_once(rows: list[tuple[str, str]]) -> None:
    big, said = [one for one, _ in rows], [other for _, other in rows]
    found = confusions_of(big, said, worst=9)
    assert sum(each.count for each in found) == sum(one != other for one, other in rows)
    assert not found or sum(each.share for each in found) == pytest.approx(1.0)
    assert [each.count for each in found] == sorted((each.count for each in found), reverse=True)
    for each in found:
        assert each.count == rows.count((each.big, each.expert))
    assert confusions_of(big, said, worst=2) == found[:2]


def test_confusions_by_another_rule() -> None:
    found = confusions_of(["3", "3", "9"], ["4", "9", "9"], agrees=[True, False, True])
    assert [(each.big, each.expert, each.share) for each in found] == [("3", "9", 1.0)]


@pytest.mark.parametrize("agrees", [None, [True]])
def test_confusions_of_other_lengths(agrees: list[bool] | None) -> None:
    with pytest.raises(LearningError, match="one of each for every row"):
        confusions_of(["a", "b"], ["a"] if agrees is None else ["a", "b"], agrees=agrees)


@given(ROWS, st.integers(1, 12), st.randoms())
def test_bins_part_the_rows(rows: list[tuple[float, bool]], bins: int, draw: object) -> None:
    confidence, agrees = [sure for sure, _ in rows], [agree for _, agree in rows]
    found = reliability_of(confidence, agrees, bins=bins)
    assert sum(each.rows for each in found) == len(rows)
    assert len(found) <= bins
    assert sum(each.rows * each.agreement for each in found) == pytest.approx(sum(agrees))
    for before, after in itertools.pairwise(found):
        assert before.high < after.low
    for each in found:
        inside = [agree for sure, agree in rows if each.low <= sure <= each.high]
        assert each.rows == len(inside)
        assert each.agreement == pytest.approx(np.mean(inside))
    draw.shuffle(rows)  # type: ignore[attr-defined]
    again = reliability_of([sure for sure, _ in rows], [agree for _, agree in rows], bins=bins)
    assert [(each.low, each.high, each.rows) for each in again] == [(each.low, each.high, each.rows) for each in found]


def test_bins_are_of_equal_count() -> None:
    scores = np.random.default_rng(0).random(1_000)
    assert [each.rows for each in reliability_of(scores, scores > 0.5)] == [100] * 10


def test_the_error_of_a_calibrated_confidence_is_small() -> None:
    draw = np.random.default_rng(1)
    scores = draw.uniform(0.5, 1.0, 20_000)
    honest = calibration_error(reliability_of(scores, draw.random(20_000) < scores))
    boast = calibration_error(reliability_of(scores, draw.random(20_000) < scores - 0.2))
    assert honest is not None
    assert honest < 0.015
    assert boast == pytest.approx(0.2, abs=0.015)
    assert calibration_error(()) is None


@given(st.integers(1, 500).flatmap(lambda rows: st.tuples(st.integers(0, rows), st.just(rows))))
def test_wilson_is_scipys(counted: tuple[int, int]) -> None:
    good, rows = counted
    low, high = wilson_interval(good / rows, rows)
    expected = binomtest(good, rows).proportion_ci(0.95, method="wilson")
    assert (low, high) == (pytest.approx(expected.low, abs=1e-9), pytest.approx(expected.high, abs=1e-9))
    assert 0.0 <= low <= good / rows <= high <= 1.0
    assert (low == 0.0) == (good == 0)
    assert (high == 1.0) == (good == rows)


@given(st.floats(0, 1))
def test_a_share_is_never_rounded_to_all(share: float) -> None:
    text = card_words.percent(share)
    assert ("100%" in text) == (share == 1.0)
    if "over" not in text:
        assert float(text.removesuffix("%")) / 100 == pytest.approx(share, rel=6e-3, abs=1e-6)


@given(st.floats(0, 1e12))
def test_quantities_keep_three_figures(value: float) -> None:
    units = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9}
    number, unit = card_words.size(value).split(" ")
    assert float(number.replace(",", "")) * units[unit] == pytest.approx(value, rel=6e-3, abs=1e-3)
    assert "e" not in number
    assert math.isfinite(float(number.replace(",", "")))


@given(st.text(st.characters(exclude_categories=())))
def test_names_are_shown_on_one_line_that_can_be_written(name: str) -> None:
    line = card_words.shown(name)
    assert line
    assert len(line) <= 120
    assert len(line.splitlines()) == 1
    line.encode("utf-8")
