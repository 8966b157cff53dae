"""Inner thresholds: the cheapest cascade that covers as much, and one expert alone where that is enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puhui.compress.cascade_training import SLACK, build_cascade, coverage
from puhui.core.errors import LearningError
from puhui.models.expert_cascade import CascadeModel
from puhui.models.family import FloatArray

ROWS = 2000


class Told:
    """An expert whose answers and confidences are a table: what thresholds do is then known exactly."""

    labels = ("right", "wrong")
    size_bytes = 1

    def __init__(self, table: Mapping[str, tuple[str, float]]) -> None:
        self.table = table

    def predict_one(self, text: str) -> tuple[str, float]:
        return self.table[text]

    def predict_many(self, texts: Sequence[str]) -> tuple[list[str], FloatArray]:
        said = [self.table[text] for text in texts]
        return [answer for answer, _ in said], np.array([sure for _, sure in said], np.float32)

    def save(self, folder: Path) -> None:
        raise NotImplementedError

    @classmethod
    def load(cls, folder: Path) -> Told:
        raise NotImplementedError


def expert(skill: float, seed: int) -> Told:
    """A calibrated expert: its confidence is the chance that it is right; more skill is more confidence."""
    draw = np.random.default_rng(seed)
    confidence = draw.beta(skill, 1.0, ROWS)
    right = draw.random(ROWS) < confidence
    rows = zip(right.tolist(), confidence.tolist(), strict=True)
    return Told({str(i): ("right" if good else "wrong", sure) for i, (good, sure) in enumerate(rows)})


def lost() -> Told:
    """An expert that is never right, and knows it."""
    return Told({str(i): ("wrong", 0.0) for i in range(ROWS)})


TEXTS = [str(i) for i in range(ROWS)]
ANSWERS = ["right"] * ROWS
NAMES = ("static", "encoder")


def test_a_weak_cheap_expert_saves_cost_and_no_coverage() -> None:
    steps = [expert(9.0, 0), expert(60.0, 1)]
    built = build_cascade(NAMES, steps, TEXTS, ANSWERS, costs=(1.0, 20.0), epsilon=0.02)
    assert isinstance(built.model, CascadeModel)
    assert built.family == "cascade"
    cheap, dear = built.alone
    assert cheap.coverage < dear.coverage
    assert built.prospect.coverage >= dear.coverage - SLACK
    assert built.prospect.cost < dear.cost == 20.0
    # What is foreseen is what the model does.
    answers, confidences, by = built.model.predict_steps_many(TEXTS)
    right = np.array(answers) == "right"
    assert coverage(confidences, ~right, 0.02) == pytest.approx(built.prospect.coverage, abs=2 / ROWS)
    assert float(np.mean(1.0 + 20.0 * (by == 1))) == pytest.approx(built.prospect.cost, abs=0.1)


def test_where_the_dear_expert_adds_nothing_the_cheap_one_is_the_result() -> None:
    good = expert(30.0, 0)
    built = build_cascade(NAMES, [good, lost()], TEXTS, ANSWERS, costs=(1.0, 20.0))
    assert built.model is good
    assert (built.family, built.prospect.cost) == ("static", 1.0)


def test_where_the_cheap_expert_saves_nothing_the_dear_one_is_the_result() -> None:
    good = expert(30.0, 0)
    built = build_cascade(NAMES, [lost(), good], TEXTS, ANSWERS, costs=(19.0, 20.0))
    assert built.model is good
    assert (built.family, built.prospect.cost) == ("encoder", 20.0)


def test_three_experts() -> None:
    steps = [expert(2.0, 0), expert(8.0, 1), expert(60.0, 2)]
    built = build_cascade(("a", "b", "c"), steps, TEXTS, ANSWERS, costs=(1.0, 5.0, 50.0))
    best = max(alone.coverage for alone in built.alone)
    assert built.prospect.coverage >= best - SLACK
    assert built.prospect.cost < 50.0


ROW = st.tuples(st.sampled_from([0.1, 0.5, 0.5, 0.9]), st.booleans())


@given(st.lists(ROW, min_size=1, max_size=40), st.floats(0.01, 0.5))
def test_coverage_is_that_of_the_best_threshold(rows: list[tuple[float, bool]], epsilon: float) -> None:
    confidence = np.array([sure for sure, _ in rows], np.float32)
    agrees = np.array([right for _, right in rows])
    taken = [confidence >= mark for mark in set(confidence.tolist())]
    fine = [float(t.mean()) for t in taken if (t & ~agrees).sum() <= epsilon * len(rows)]
    assert coverage(confidence, ~agrees, epsilon) == pytest.approx(max(fine, default=0.0))


def test_few_rows_are_enough_to_build() -> None:
    built = build_cascade(NAMES, [expert(3.0, 0), expert(30.0, 1)], TEXTS[:5], ANSWERS[:5], costs=(1.0, 2.0))
    assert built.prospect.cost > 0.0


@pytest.mark.parametrize(
    ("names", "count", "answers", "costs"),
    [
        (NAMES, 2, ANSWERS[:-1], (1.0, 2.0)),
        (NAMES, 2, ANSWERS, (1.0,)),
        (NAMES[:1], 1, ANSWERS, (1.0,)),
        (NAMES[:1], 2, ANSWERS, (1.0, 2.0)),
    ],
)
def test_what_does_not_fit_is_refused(
    names: tuple[str, ...], count: int, answers: list[str], costs: tuple[float, ...]
) -> None:
    with pytest.raises(LearningError):
        build_cascade(names, [expert(3.0, i) for i in range(count)], TEXTS, answers, costs=costs)
    with pytest.raises(LearningError):
        build_cascade(NAMES, [expert(3.0, 0), expert(3.0, 1)], [], [], costs=(1.0, 2.0))
