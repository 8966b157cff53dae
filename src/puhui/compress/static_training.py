"""A static expert from a big model's answers: features chosen, one convex fit, rounded to int8.

The answers are all it needs: hard ones, which is what an API gives. Probabilities, where the big model tells
them, and public word vectors, where a table for the language is at hand, each make it better; `bench/static`
shows by how much, and `bench/static_log.md` what else was tried.

Probabilities are softened first (Hinton et al. 2015): at temperature 1 nearly all that an expert is told of a text
is the answer, at 2 also which others were near, and it learns as much from a third of the texts.

Method: logistic regression (`logistic`) on TF-IDF features and, beside them, the mean of the text's word
vectors (`bags`), once as it is and once by where in the text the words stand. All of it is linear, so that what
was learned of a word's vector is one more row of logits for the word. With `calibrated` folds, experts learned
from all folds but one answer that one, and their margins and hits teach the `Reliability` of the expert that is
then learned from all answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from puhui.compress.bags import Bags, VectorsByBucket, by_bucket, gram_bags, order_bags, word_bags
from puhui.compress.lessons import Lessons
from puhui.compress.reliability_fit import fit_reliability
from puhui.compress.word_vectors import WordVectors
from puhui.core.errors import LearningError
from puhui.models.hashing import FeatureOptions, Features, features
from puhui.models.reliability import Reliability
from puhui.models.static import StaticModel, logits_of, margins_of
from puhui.models.tower import Reads, Slots, Tower, narrowed

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.intp]
Progress = Callable[[float], None]
_FOLDS = 0xF01D5
UNTOLD = 0.25
MOST_DENSE = 3000
"""Texts up to which all their inner products are kept: one dense product takes less than two sparse ones."""
STEPS_OF_FEW, STEPS_WITH_FOLDS = 2, 2 / 3
"""Times the steps: for so few texts, where a step takes little; and where the last fit starts from those of folds."""
SCALES = (1.0, 0.9, 0.8, 0.7, 0.6)


class StaticOptions(msgspec.Struct, frozen=True):
    """How a static expert is built.

    Probabilities p are learned from as p^(1/`temperature`), scaled to sum to one; hard answers stay hard. At
    most `max_cells` numbers are kept, rows times labels: the commonest features first. `penalty` and `steps`
    are those of `logistic` (for few texts twice the steps, with folds two thirds): more raise agreement by
    0.004 at most. `word_share` is the length of a typical text's mean word vector, where the n-grams' vector
    has length one, and `order_share` of the same mean by where the words stand (0: none). That helps where
    probabilities are told, and is left out where they are not: it costs agreement with answers alone.
    `precision` is the bits of a number in the table.
    """

    features: FeatureOptions = FeatureOptions(buckets=1 << 18, char_max=4)
    max_cells: int = 12_000_000
    penalty: float = 1e-6
    steps: int = 60
    word_share: float = 2.0
    order_share: float = 0.7
    temperature: float = 2.0
    precision: Literal[8, 4] = 8


def distill_static(
    texts: Sequence[str],
    answers: Sequence[str],
    *,
    options: StaticOptions | None = None,
    probabilities: Sequence[Mapping[str, float]] | None = None,
    word_vectors: WordVectors | None = None,
    calibrated: int = 0,
    progress: Progress | None = None,
    seed: int = 0,
) -> StaticModel:
    """Learn to answer as the big model did: `answers[i]` to `texts[i]`.

    `probabilities[i]` maps answers to the big model's probabilities, as far as it told them; they are used
    instead of the answers. `word_vectors` add a tower that knows words which the texts never held.
    `calibrated` ≥ 2 folds teach the confidence as well, at the price of that many smaller fits; with 0 it is
    p₁ / (p₁ + p₂). `progress` is called with shares in [0, 1]. The same arguments give the same model on the
    same machine; `seed` draws the folds, and nothing else is drawn.

    Raises LearningError for fewer than 20 answers or 2 different ones, lengths that differ, or `calibrated`
    neither 0 nor 2 or more, and MissingExtra without SciPy.
    """
    lessons = Lessons.of(texts, answers, probabilities)
    labels = lessons.labels
    if calibrated == 1 or calibrated < 0:
        raise LearningError(f"calibrated is {calibrated}; it is a number of folds, 2 or more, or 0 for none")
    chosen = options or StaticOptions()
    folded = calibrated > 0 and len(set(texts)) >= calibrated
    if folded:
        chosen = replace(chosen, steps=round(chosen.steps * STEPS_WITH_FOLDS))
    vectors = None
    if word_vectors is not None:
        vectors = by_bucket(word_vectors, chosen.features, max(1, chosen.max_cells // len(labels)))
    wanted = _softened(lessons.wanted, chosen.temperature)
    if probabilities is None:
        chosen = replace(chosen, order_share=0.0)
    course = _Course([features(text, chosen.features) for text in texts], wanted, vectors, chosen)
    report = progress or (lambda share: None)
    # Learned from softened probabilities, margins are as much smaller: this is p₁ / (p₁ + p₂) as the big model has it.
    slope = 1.0 if probabilities is None else float(np.float32(chosen.temperature))
    done, start, reliability = 0.0, None, Reliability(slope, np.zeros(len(labels), np.float32))
    if folded:
        # Each fold's fit learns from all folds but one. The last starts from them, and has less than half to do.
        done = (calibrated - 1) / (calibrated - 0.5)
        fold = _folds(texts, calibrated, seed)
        reliability, start = _reliability(course, lessons.numbers, fold, _within(report, 0.0, done))
    towers, _ = course.learn(_within(report, done, 1.0 - done), start)
    return StaticModel(labels, chosen.features, towers, reliability)


class _Course(msgspec.Struct, frozen=True, eq=False):
    """All that towers are learned from: features of n texts, wanted probabilities [n, k], word vectors."""

    texts: Sequence[Features]
    wanted: FloatArray
    vectors: VectorsByBucket | None
    options: StaticOptions

    def part(self, rows: IntArray) -> _Course:
        """The same for some of the texts."""
        return _Course([self.texts[row] for row in rows.tolist()], self.wanted[rows], self.vectors, self.options)

    def learn(self, progress: Progress, start: FloatArray | None = None) -> tuple[list[Tower], FloatArray]:
        """The towers, rounded, and the fit [n, k] that they came from, which another may `start` from."""
        buckets, precision = self.options.features.buckets, self.options.precision
        grams = gram_bags(self.texts, buckets, max(1, self.options.max_cells // self.wanted.shape[1]))
        spoken = self._spoken()
        fitted = fit_tables(grams, spoken, self.wanted, self.options, progress, start)
        none = np.zeros_like(fitted.bias)
        towers = [rounded(grams, fitted.grams, fitted.bias, precision)]
        towers += [rounded(each.bags, table, none, precision) for each, table in zip(spoken, fitted.words, strict=True)]
        return towers, fitted.rows

    def _spoken(self) -> list[Spoken]:
        """What the word vectors add: the words, and where they stand."""
        if self.vectors is None:
            return []
        words = word_bags(self.texts, self.vectors, self.options.features.buckets)
        spoken = [Spoken(words, self.vectors, self.options.word_share)]
        if self.options.order_share > 0.0:
            spoken.append(Spoken(order_bags(self.texts, words), self.vectors, self.options.order_share))
        return spoken


def _softened(wanted: FloatArray, temperature: float) -> FloatArray:
    """Probabilities [n, k] as they are learned from: each row sums to one, and hard answers stay hard."""
    soft = _untold_filled(wanted) ** np.float32(1.0 / temperature)
    soft /= soft.sum(axis=1, keepdims=True)
    return soft


def _untold_filled(soft: FloatArray) -> FloatArray:
    """Probabilities [n, k] where labels of which nothing was told are a part as likely as the least that was.

    An API tells the likeliest few only, and a zero stays one at any temperature. Where a single label was told,
    nothing is known of the others.
    """
    told = soft > 0.0
    least = np.where(told, soft, np.inf).min(axis=1, keepdims=True)
    several = told.sum(axis=1, keepdims=True) > 1
    return np.where(told | ~several, soft, np.float32(UNTOLD) * least)


def _folds(texts: Sequence[str], folds: int, seed: int) -> IntArray:
    """The fold of each text [n]. Texts that are the same share one: no fold is judged on what it has seen."""
    numbers: dict[str, int] = {}
    group = np.array([numbers.setdefault(text, len(numbers)) for text in texts])
    # Of a stream of its own, whatever the caller has drawn with the same seed.
    drawn: IntArray = np.random.default_rng((seed, _FOLDS)).permutation(len(numbers))
    fold: IntArray = drawn[group] % folds
    return fold


def _within(progress: Progress, done: float, share: float) -> Progress:
    """Reports of a part of the work as reports of all: it begins at `done` and is that `share`."""
    return lambda part: progress(done + share * part)


def _reliability(course: _Course, hits: IntArray, fold: IntArray, progress: Progress) -> tuple[Reliability, FloatArray]:
    """Learned from out-of-fold answers, and the mean of the folds' fits; `hits` [n] number the big model's answers."""
    logits, mean = np.zeros_like(course.wanted), np.zeros_like(course.wanted)
    folds = int(fold.max()) + 1
    for number in range(folds):
        held, taught = np.flatnonzero(fold == number), np.flatnonzero(fold != number)
        towers, rows = course.part(taught).learn(_within(progress, number / folds, 1 / folds))
        logits[held] = logits_of(towers, course.part(held).texts)
        mean[taught] += rows / np.float32(folds)
    margins, numbers = margins_of(logits)
    return fit_reliability(margins, numbers, numbers == hits, course.wanted.shape[1]), mean


class Spoken(NamedTuple):
    """Words that have vectors, as bags, and how long a typical text's mean of them is made."""

    bags: Bags
    vectors: VectorsByBucket
    length: float

    def scaled(self) -> tuple[FloatArray, FloatArray]:
        """Mean word vectors of the texts [n, d] that are typically so long, and the words' own [r, d]."""
        vectors = np.zeros((len(self.vectors.vectors) + 1, self.vectors.vectors.shape[1]), np.float32)
        vectors[1:] = self.vectors.vectors
        means: FloatArray = self.bags.matrix @ vectors
        typical = max(float(np.sqrt(np.mean(np.sum(means**2, axis=1)))), 1e-9)
        scale = np.float32(self.length / typical)
        return means * scale, vectors * scale


class Tables(NamedTuple):
    """Logits of each n-gram [r, k], and of each word [w, k] in each of `Spoken`; the bias [k].

    `rows` [n, k] is what they were made of, as `logistic` has it.
    """

    grams: FloatArray
    words: list[FloatArray]
    bias: FloatArray
    rows: FloatArray


def fit_tables(
    grams: Bags,
    spoken: Sequence[Spoken],
    wanted: FloatArray,
    options: StaticOptions,
    progress: Progress,
    start: FloatArray | None = None,
) -> Tables:
    """The tables that give the n texts the wanted probabilities [n, k], as nearly as the penalty allows."""
    from puhui.compress.logistic import fit_logistic

    matrix, transposed = grams.matrix, grams.matrix.T.tocsr()
    scaled = [each.scaled() for each in spoken]
    means = np.hstack([np.zeros((len(wanted), 0), np.float32), *(means for means, _ in scaled)])
    kernel = _kernel(matrix, transposed, means)
    steps = options.steps * (STEPS_OF_FEW if len(wanted) <= MOST_DENSE else 1)
    rows = fit_logistic(kernel, wanted, penalty=options.penalty, steps=steps, start=start, progress=progress)
    words = [vectors @ (means.T @ rows) for means, vectors in scaled]
    return Tables(transposed @ rows, words, rows.sum(axis=0), rows)


def _kernel(matrix: Any, transposed: Any, means: FloatArray) -> Callable[[FloatArray], FloatArray]:
    """Multiplies by K [n, n], the texts' inner products in n-grams, word vectors, and a bias that is 1 in each."""
    if len(means) <= MOST_DENSE:
        dense: FloatArray = (matrix @ transposed).toarray()
        dense += means @ means.T
        dense += np.float32(1.0)
        return lambda given: dense @ given

    def kernel(given: FloatArray) -> FloatArray:
        product: FloatArray = matrix @ (transposed @ given)
        product += means @ (means.T @ given)
        product += given.sum(axis=0)
        return product

    return kernel


def rounded(bags: Bags, table: FloatArray, bias: FloatArray, precision: Literal[8, 4]) -> Tower:
    """A tower of the bags' rows: see `_rounded`."""
    slots = narrowed(bags.slots, rows=len(table))
    return _rounded(slots, bags.weight, bags.reads, table, bias, precision)


def coarser(model: StaticModel) -> StaticModel:
    """The same expert with numbers of 4 bits: half the size, without learning again."""
    towers = []
    for tower in model.towers:
        scale = tower.gain / np.maximum(tower.weight, np.float32(1e-12))
        table = (tower.table * scale[:, None]).astype(np.float32)
        towers.append(_rounded(tower.slots, tower.weight, tower.reads, table, tower.bias, 4))
    return StaticModel(model.labels, model.options, towers, model.reliability)


def _rounded(
    slots: Slots, weight: FloatArray, reads: Reads, table: FloatArray, bias: FloatArray, precision: Literal[8, 4]
) -> Tower:
    """The logits [r, k] as whole numbers of `precision` bits with one scale a row.

    The scale is such that the row's largest number is the largest there is: each is then at most half a scale
    off, 1/254 or 1/14 of that number. At 4 bits rows of n-grams, in which few numbers are large, are nearer as
    a whole when the largest are cut off: of some scales the one with the least squared error is taken. Rows of
    word vectors are full, and their largest numbers matter most.
    """
    most = (1 << precision - 1) - 1
    top = np.abs(table).max(axis=1, keepdims=True)
    scale = _nearest_scale(table, top / most, most) if precision == 4 and reads == "all" else top / most
    whole = _to_whole(table, scale, most).astype(np.int8)
    return Tower(slots, whole, scale[:, 0] * weight, weight, bias, reads)


def _to_whole(table: FloatArray, scale: FloatArray, most: int) -> FloatArray:
    return np.clip(np.rint(table / np.maximum(scale, 1e-12)), -most, most)


def _nearest_scale(table: FloatArray, scale: FloatArray, most: int) -> FloatArray:
    """For each row the one of `SCALES` times `scale` [r, 1] whose rounding has the least squared error."""
    tried = [scale * np.float32(factor) for factor in SCALES]
    off = [((_to_whole(table, one, most) * one - table) ** 2).sum(axis=1) for one in tried]
    return np.take_along_axis(np.hstack(tried), np.argmin(off, axis=0)[:, None], axis=1)
