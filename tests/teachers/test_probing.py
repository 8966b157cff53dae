"""Probing: what asking will cost, and how often a teacher agrees with itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain_teacher import Plain, failing, refused

from puhui.cascade.agreement import NumberLoss
from puhui.core.errors import LearningError
from puhui.teachers.asking import Budget, Purse, ask_all
from puhui.teachers.probing import SelfAgreement, estimate, self_agreement


def test_an_estimate_without_a_probe(tmp_path: Path) -> None:
    teacher = Plain()
    forecast = estimate(teacher, ["a", "b"], folder=tmp_path, probe=0)
    assert (forecast.to_ask, forecast.cost, forecast.sampled) == (2, None, 0)
    assert not teacher.asked


def test_an_estimate_from_what_is_known(tmp_path: Path) -> None:
    texts = [str(number) for number in range(100)]
    ask_all(Plain(cost=0.5, parallel=4), texts[:40], folder=tmp_path)
    teacher = Plain(cost=9.0, parallel=4)
    forecast = estimate(teacher, texts, folder=tmp_path)
    assert not teacher.asked
    assert (forecast.cost, forecast.tokens_in, forecast.sampled) == (30.0, 120, 40)
    assert forecast.seconds == pytest.approx(60 * 0.1 / 4)


def test_an_estimate_probes_short_and_long(tmp_path: Path) -> None:
    teacher = Plain()
    estimate(teacher, ["x" * length for length in range(100)], folder=tmp_path, probe=4)
    assert sorted(map(len, teacher.asked)) == [12, 37, 62, 87]


def test_an_estimate_of_a_teacher_that_refuses(tmp_path: Path) -> None:
    with pytest.raises(LearningError, match="refused every probe: status 400 no"):
        estimate(Plain(failing(99, refused(400))), ["a", "b"], folder=tmp_path)


def test_a_teacher_that_contradicts_itself(tmp_path: Path) -> None:
    fickle = Plain(lambda text: text if len(text) > 1 else f"{text} {fickle.asked[text]}")
    texts = [*(str(number) for number in range(10)), *(f"long {number}" for number in range(30))]
    found = self_agreement(fickle, texts, folder=tmp_path)
    assert found is not None
    assert (found.rows, found.equal, found.share) == (40, 30, 0.75)
    assert found.ceiling == pytest.approx(0.75**0.5)
    assert max(fickle.asked.values()) == 2
    assert found.low <= found.share <= found.high
    asked = fickle.asked.total()
    assert self_agreement(fickle, texts, folder=tmp_path) == found
    assert fickle.asked.total() == asked


def test_a_teacher_that_agrees_with_itself(tmp_path: Path) -> None:
    found = self_agreement(Plain(), [str(number) for number in range(300)], folder=tmp_path, rows=100)
    assert found is not None
    assert (found.rows, found.equal, found.share, found.ceiling, found.high) == (100, 100, 1.0, 1.0, 1.0)
    assert found.low == pytest.approx(0.025 ** (1 / 100), abs=1e-9)  # Clopper and Pearson, by hand


def test_answers_that_agree_in_part_have_no_ceiling(tmp_path: Path) -> None:
    fickle = Plain(lambda text: str(int(text) + fickle.asked[text] - 1))
    found = self_agreement(fickle, [str(number) for number in range(80)], folder=tmp_path, rule=NumberLoss(10.0))
    assert found is not None
    assert (found.rows, found.whole, found.ceiling, found.ceiling_high) == (80, False, 1.0, 1.0)
    assert found.share == pytest.approx(0.9)
    assert found.low < 0.9 < found.high < 1.0


def test_self_agreement_needs_answers(tmp_path: Path) -> None:
    assert self_agreement(Plain(failing(99, refused(400))), ["a"], folder=tmp_path) is None


def test_one_purse_pays_for_probes_answers_and_repeats(tmp_path: Path) -> None:
    texts, purse, teacher = [str(number) for number in range(20)], Purse(Budget(requests=26)), Plain()
    forecast = estimate(teacher, texts, folder=tmp_path, budget=purse, repeats=100, more=5)
    assert (forecast.probed, forecast.to_ask, forecast.repeats, forecast.more) == (8, 12, 20, 5)
    assert forecast.tokens_in == (12 + 20 + 5) * 2
    assert purse.left.requests == 18
    ask_all(teacher, texts, folder=tmp_path, budget=purse)
    found = self_agreement(teacher, texts, folder=tmp_path, budget=purse)
    assert found is not None
    assert found.rows == 6
    assert teacher.asked.total() == 26
    assert estimate(teacher, texts, folder=tmp_path, repeats=20).repeats == 14
    assert self_agreement(teacher, ["new"], folder=tmp_path, budget=purse) is None
    assert ask_all(teacher, ["new"], folder=tmp_path, budget=purse).stopped == "the budget of 26 requests is spent"


def test_an_estimate_without_a_budget_asks_nothing(tmp_path: Path) -> None:
    teacher = Plain()
    assert estimate(teacher, ["a"], folder=tmp_path, budget=Budget(requests=0)).cost is None
    assert not teacher.asked


@given(st.lists(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=5).filter(any), min_size=1, max_size=8))
def test_no_expert_agrees_more_than_the_ceiling(weights: list[list[float]]) -> None:
    shares = [np.array(each) / sum(each) for each in weights]
    with_itself = float(np.mean([(each**2).sum() for each in shares]))
    best_expert = float(np.mean([each.max() for each in shares]))
    rows = 1_000_000
    found = SelfAgreement(rows=rows, equal=min(rows, int(np.ceil(with_itself * rows))), low=0.0, high=1.0)
    assert best_expert <= found.ceiling + 1e-6
