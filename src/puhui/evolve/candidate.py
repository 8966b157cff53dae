"""A candidate: what is learned from a task's rows, and what it says of rows that it has not seen."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from puhui.cascade.agreement import NOT_TEXT, Rule, agreements
from puhui.compress.answer_shape import Label, Shape, find_shape, rule_of
from puhui.compress.cascade_training import coverage
from puhui.compress.recipes import CascadeRecipe, EncoderRecipe, Kitchen, Material, StaticRecipe
from puhui.compress.shape_training import FAMILY_OF, ShapeOptions, train_shape
from puhui.core.errors import LearningError, MissingExtra
from puhui.evolve.memory import Row, answers_of
from puhui.models.family import ExpertModel
from puhui.teachers.soft_answers import SoftAnswers

log = logging.getLogger("puhui.evolve")

FOLDS = 2
"""Of the fits that teach an expert its confidence; `bench/static_log.md` has what more of them bring."""
TIMED_ANSWERS = 200
MOST_LESSONS, MOST_CELLS = 30_000, 6_000_000
"""An idle core's minutes, and its memory: of each cell, answers times labels, a fit keeps some forty numbers."""
ENCODER_FROM_ROWS = 3000
"""Answers from which on an encoder is tried: minutes of an idle core, and with fewer a static expert is as good."""
WORTH_AN_ENCODER = 0.03
FEWEST_ASIDE = 300
CASCADE = CascadeRecipe(StaticRecipe(max_cells=12_000_000), EncoderRecipe(layers=(0, 1, 2)))


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


def newest(shape: Shape, lessons: Sequence[Row]) -> Sequence[Row]:
    """As many of the newest lessons as a fit has room for, oldest first."""
    labels = len(shape.labels) if isinstance(shape, Label) else 1
    most = min(MOST_LESSONS, MOST_CELLS // max(1, labels))
    return lessons if len(lessons) <= most else sorted(lessons, key=lambda row: row.number)[-most:]


def learn(shape: Shape, lessons: Sequence[Row], *, base: Path | None, folder: Path, epsilon: float) -> Candidate:
    """A candidate from the big model's answers. LearningError where they teach nothing.

    A static expert; and where there are many answers, all of them labels, and the pretrained encoder `base` is at
    hand, a static expert in front of an encoder, if it answers clearly more of lessons kept aside at the risk
    `epsilon`. `folder` is for what is built.
    """
    static = _learn_static(shape, lessons)
    kept = [row for row in lessons if row.answer != NOT_TEXT]
    if base is None or not isinstance(shape, Label) or len(kept) < ENCODER_FROM_ROWS:
        return static
    texts, answers, soft = _taught(shape, kept)
    material = Material(texts, answers, shape, soft)
    drawn = np.random.default_rng(len(kept)).permutation(len(kept)).tolist()
    aside = max(FEWEST_ASIDE, len(kept) // 10)
    taught, held = material.pick(drawn[aside:]), material.pick(drawn[:aside])
    kitchen = Kitchen(taught, folder, base=base, held=held, epsilon=epsilon)
    try:
        cooked = kitchen.cook(CASCADE)
        alone = kitchen.cook(CASCADE.first)
    except (LearningError, MissingExtra) as error:
        log.info("no encoder: %s", error)
        return static
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if _coverage(cooked.model, held, epsilon) < _coverage(alone.model, held, epsilon) + WORTH_AN_ENCODER:
        return static
    recipe = msgspec.to_builtins(CASCADE)
    return Candidate(cooked.model, cooked.family, rule_of(shape), recipe, _seconds_an_answer(cooked.model, texts))


def _learn_static(shape: Shape, lessons: Sequence[Row]) -> Candidate:
    texts, answers, soft = _taught(shape, [row for row in lessons if row.answer != NOT_TEXT])
    options = ShapeOptions(calibrated=FOLDS)
    model = train_shape(shape, texts, answers, probabilities=soft, options=options)
    recipe = {"shape": type(shape).__name__, **msgspec.to_builtins(options.static), "folds": FOLDS}
    return Candidate(model, FAMILY_OF[type(shape)], rule_of(shape), recipe, _seconds_an_answer(model, texts))


def _taught(shape: Shape, rows: Sequence[Row]) -> tuple[list[str], list[str], list[dict[str, float]] | None]:
    """Inputs, answers, and what the big model held each label to be likely, where it told."""
    texts, answers = [row.input for row in rows], answers_of(rows)
    if not isinstance(shape, Label) or not any(row.alternatives for row in rows):
        return texts, answers, None
    teller = SoftAnswers(set(shape.labels))
    return texts, answers, [teller.of(row.answer, row.alternatives) for row in rows]


def _coverage(model: ExpertModel, held: Material, epsilon: float) -> float:
    """The share that could be answered with disagreement on at most ε of all; nothing is proven by it."""
    said, confidence = model.predict_many(held.texts)
    return coverage(confidence, agreements(said, held.answers) != 1.0, epsilon)


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
