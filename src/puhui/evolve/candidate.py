"""A candidate: what is learned from a task's rows, and what it says of rows that it has not seen."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from puhui.cascade.agreement import NOT_TEXT, Rule, agreements
from puhui.compress.answer_shape import Label, Shape, find_shape, rule_of
from puhui.compress.shape_training import FAMILY_OF, ShapeOptions, train_shape
from puhui.evolve.memory import Row, answers_of
from puhui.models.family import ExpertModel
from puhui.teachers.soft_answers import SoftAnswers

FOLDS = 2
"""Of the fits that teach an expert its confidence; `bench/static_log.md` has what more of them bring."""
TIMED_ANSWERS = 200


class Candidate(msgspec.Struct, frozen=True, eq=False):
    """A model, its family, the rule by which its answers are compared, and CPU seconds of one answer."""

    model: ExpertModel
    family: str
    rule: Rule
    recipe: dict[str, Any]
    answer_s: float


def shape_of(rows: Sequence[Row]) -> Shape | None:
    """The shape of the big model's answers; None where they are open text, which no expert learns."""
    told = [row for row in rows if row.answer != NOT_TEXT]
    return find_shape([row.input for row in told], answers_of(told))


def learn(shape: Shape, lessons: Sequence[Row]) -> Candidate:
    """A candidate from the big model's answers. LearningError where they teach nothing."""
    kept = [row for row in lessons if row.answer != NOT_TEXT]
    texts, answers = [row.input for row in kept], answers_of(kept)
    soft = None
    if isinstance(shape, Label) and any(row.alternatives for row in kept):
        teller = SoftAnswers(set(shape.labels))
        soft = [teller.of(row.answer, row.alternatives) for row in kept]
    options = ShapeOptions(calibrated=FOLDS)
    model = train_shape(shape, texts, answers, probabilities=soft, options=options)
    recipe = {"shape": type(shape).__name__, **msgspec.to_builtins(options.static), "folds": FOLDS}
    return Candidate(model, FAMILY_OF[type(shape)], rule_of(shape), recipe, _seconds_an_answer(model, texts))


def confront(
    candidate: Candidate, sample: Sequence[Row]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_] | npt.NDArray[np.float64]]:
    """The candidate's confidence on the sample, and how far the big model agrees with it."""
    said, confidence = candidate.model.predict_many([row.input for row in sample])
    return confidence, agreements(said, answers_of(sample), candidate.rule)


def _seconds_an_answer(model: ExpertModel, texts: Sequence[str]) -> float:
    """CPU seconds of one answer, the mean over some of the texts one by one."""
    some = texts[:TIMED_ANSWERS]
    started = time.thread_time()
    for text in some:
        model.predict_one(text)
    return (time.thread_time() - started) / max(1, len(some))
