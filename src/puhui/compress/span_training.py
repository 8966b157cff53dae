"""A span expert from passages that a big model copied out of its inputs.

Both of its models (`models.span`) choose one of several candidates, each with hashed features, and are fitted
alike: cross-entropy of the choice plus `penalty` · ‖w‖², which is convex, by L-BFGS. No numbers are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from puhui.core.errors import LearningError, MissingExtra
from puhui.models.span import (
    SpanModel,
    SpanOptions,
    first_features,
    last_features,
    nothing_features,
    nothing_share,
    read_words,
)
from puhui.models.span_words import find_passage

LEAST_PASSAGES = 20
LONGEST = 64
"""Words of the longest passage that is looked for."""


class SpanFit(msgspec.Struct, frozen=True):
    """How a span expert is learned: weight of the penalty and most steps of each fit."""

    penalty: float = 3e-5
    steps: int = 150


class _Choices(msgspec.Struct):
    """Candidates of all choices in a row: their features, what each feature counts, and where each choice ends."""

    buckets: list[npt.NDArray[np.uint32]] = []
    values: list[npt.NDArray[np.float32]] = []
    sizes: list[int] = []
    wanted: list[int] = []

    def add(self, candidates: Sequence[npt.NDArray[np.uint32]], wanted: int, last_value: float = 1.0) -> None:
        """One choice: `candidates` are features [f] of each, `wanted` the one that was chosen."""
        self.buckets += candidates
        self.values += [np.ones(len(each), np.float32) for each in candidates]
        self.values[-1] *= np.float32(last_value)
        self.sizes.append(len(candidates))
        self.wanted.append(wanted)


def distill_span(
    texts: Sequence[str],
    answers: Sequence[str],
    *,
    nothing: str | None = None,
    fit: SpanFit | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> SpanModel:
    """Learn which passage the big model copies: `answers[i]` out of `texts[i]`, or `nothing` where there is none.

    Answers that are no run of whole words of their text are left out. Raises LearningError for fewer than 20
    that are, or lengths that differ, and MissingExtra without SciPy.
    """
    if len(texts) != len(answers):
        raise LearningError(f"{len(texts)} texts and {len(answers)} answers: give one each")
    lessons = [
        (text, place) for text, answer in zip(texts, answers, strict=True) if (place := _lesson(text, answer, nothing))
    ]
    lengths = [last - first + 1 for _, (first, last) in lessons if first >= 0]
    if len(lengths) < LEAST_PASSAGES:
        raise LearningError(
            f"{len(lengths)} of {len(answers)} answers are copied from their input; learning where to look needs "
            f"at least {LEAST_PASSAGES}: wait for more"
        )
    options, chosen = SpanOptions(longest=max(lengths), nothing=nothing), fit or SpanFit()
    first, last = _Choices(), _Choices()
    for number, (text, place) in enumerate(lessons):
        _add(first, last, text, place, options)
        progress(0.3 * number / len(lessons))
    weights = _fit(first, options, chosen)
    progress(0.7)
    model = SpanModel(options, weights, _fit(last, options, chosen))
    progress(1.0)
    return model


def _lesson(text: str, answer: str, nothing: str | None) -> tuple[int, int] | None:
    """The passage's words, (−1, −1) for nothing; None where there is nothing to learn."""
    if answer == nothing:
        return -1, -1
    found = find_passage(text, answer)
    return found if found is None or found[1] - found[0] < LONGEST else None


def _add(first: _Choices, last: _Choices, text: str, place: tuple[int, int], options: SpanOptions) -> None:
    """The choices that one text holds. A passage beyond the words that are looked at teaches nothing."""
    reading = read_words(text, options)
    begin, end = place
    if end >= len(reading.words):
        return
    candidates, share = list(first_features(reading, options)), 1.0
    if options.nothing is not None:
        candidates.append(nothing_features(reading, options))
        share = float(nothing_share(candidates[-1]))
    first.add(candidates, begin if begin >= 0 else len(candidates) - 1, share)
    if begin >= 0:
        last.add(list(last_features(reading, begin, options)), end - begin)


def _fit(choices: _Choices, options: SpanOptions, fit: SpanFit) -> npt.NDArray[np.float16]:
    """Weights [buckets] of a conditional logit."""
    try:
        from scipy.optimize import minimize
        from scipy.sparse import csr_array
    except ImportError as error:  # pragma: no cover
        raise MissingExtra("Learning a span expert", "learn") from error

    bounds = np.cumsum([0, *map(len, choices.buckets)])
    columns, used = np.unique(np.concatenate(choices.buckets), return_inverse=True)
    shape = (len(choices.buckets), len(columns))
    matrix = csr_array((np.concatenate(choices.values), used.astype(np.int32), bounds), shape)
    transposed = matrix.T.tocsr()
    sizes = np.array(choices.sizes)
    begins = np.cumsum(sizes) - sizes
    wanted = begins + choices.wanted

    def loss(weights: npt.NDArray[np.float64]) -> tuple[float, Any]:
        scores = matrix @ weights
        scores -= np.repeat(np.maximum.reduceat(scores, begins), sizes)
        chances = np.exp(scores)
        sums = np.add.reduceat(chances, begins)
        chances /= np.repeat(sums, sizes)
        value = float(np.log(sums).sum() - scores[wanted].sum()) / len(sizes)
        chances[wanted] -= 1.0
        slope = transposed @ chances / len(sizes) + 2.0 * fit.penalty * weights
        return value + fit.penalty * float(weights @ weights), slope

    best = minimize(loss, np.zeros(len(columns)), jac=True, method="L-BFGS-B", options={"maxiter": fit.steps})
    weights = np.zeros(options.buckets, np.float16)
    weights[columns] = best.x
    return weights
