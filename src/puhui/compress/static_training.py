"""A static expert from a big model's answers: features chosen, one convex fit, rounded to int8.

The answers are all it needs: hard ones, which is what an API gives. Probabilities, where the big model tells
them, and public word vectors, where a table for the language is at hand, each make it better; `bench/static`
shows by how much, and `bench/static_log.md` what else was tried.

Method: logistic regression (`logistic`) on TF-IDF features and, beside them, the mean of the text's word
vectors. Both are linear, so that what was learned of a word's vector is one more row of logits for the word.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from puhui.core.errors import LearningError, MissingExtra
from puhui.models.hashing import FeatureOptions, Features, features
from puhui.models.static import StaticModel
from puhui.models.tower import Tower, rows_of

if TYPE_CHECKING:
    from puhui.compress.word_vectors import WordVectors

FloatArray = npt.NDArray[np.float32]
LEAST_ANSWERS = 20
MANY_ANSWERS = 4000
"""From here on features found in one text alone are left out: half the size, and nothing lost."""


class StaticOptions(msgspec.Struct, frozen=True):
    """How a static expert is built.

    At most `max_cells` numbers are kept, rows times labels: the commonest features first. `penalty` and
    `steps` are those of `logistic`. `word_share` is the length of a typical text's mean word vector, where
    the n-grams' vector has length one.
    """

    features: FeatureOptions = FeatureOptions(buckets=1 << 18, char_max=4)
    max_cells: int = 12_000_000
    penalty: float = 1e-6
    steps: int = 100
    word_share: float = 2.0


class _Bags(msgspec.Struct, frozen=True, eq=False):
    """The features of n texts that own rows: `slots` [b], `weight` [r] as in `Tower`, `matrix` CSR [n, r].

    A text's numbers in `matrix` are its features' weights, divided by their Euclidean norm.
    """

    slots: npt.NDArray[np.uint32]
    weight: FloatArray
    matrix: Any
    words_only: bool


def distill_static(
    texts: Sequence[str],
    answers: Sequence[str],
    *,
    options: StaticOptions | None = None,
    probabilities: Sequence[Mapping[str, float]] | None = None,
    word_vectors: WordVectors | None = None,
    progress: Callable[[float], None] | None = None,
    seed: int = 0,
) -> StaticModel:
    """Learn to answer as the big model did: `answers[i]` to `texts[i]`.

    `probabilities[i]` maps answers to the big model's probabilities, as far as it told them; they are used
    instead of the answers. `word_vectors` add a tower that knows words which the texts never held.
    `progress` is called with shares in [0, 1]. The same arguments give the same model on the same machine;
    `seed` changes nothing here, as the fit is convex and draws no numbers: other families need it.

    Raises LearningError for fewer than 20 answers or 2 different ones, or lengths that differ, and
    MissingExtra without SciPy.
    """
    labels = _checked_labels(texts, answers, probabilities)
    chosen = options or StaticOptions()
    found = [features(text, chosen.features) for text in texts]
    rows = max(1, chosen.max_cells // len(labels))
    grams = _gram_bags(found, chosen.features.buckets, rows)
    wanted = _targets(answers, probabilities, labels)
    report = progress or (lambda share: None)
    if word_vectors is None:
        tables = _fit(grams, None, wanted, chosen, report)
        return StaticModel(labels, chosen.features, [_rounded(grams, tables[0], tables[-1])])
    words, vectors = _word_bags(found, word_vectors, chosen, rows)
    table, word_table, bias = _fit(grams, (words, vectors), wanted, chosen, report)
    towers = [_rounded(grams, table, bias), _rounded(words, word_table, np.zeros_like(bias))]
    return StaticModel(labels, chosen.features, towers)


def _checked_labels(
    texts: Sequence[str], answers: Sequence[str], probabilities: Sequence[Mapping[str, float]] | None
) -> tuple[str, ...]:
    given = len(texts) if probabilities is None else len(probabilities)
    if not len(texts) == len(answers) == given:
        raise LearningError(f"{len(texts)} texts, {len(answers)} answers, {given} probabilities: give one each")
    labels = tuple(sorted(set(answers)))
    if len(labels) < 2:
        raise LearningError(f"the {len(answers)} answers are all alike; an expert needs 2 different ones")
    if len(answers) < LEAST_ANSWERS:
        raise LearningError(f"{len(answers)} answers; learning needs at least {LEAST_ANSWERS}: wait for more")
    return labels


def _targets(
    answers: Sequence[str], probabilities: Sequence[Mapping[str, float]] | None, labels: tuple[str, ...]
) -> FloatArray:
    """Probabilities [n, k] that sum to one, where answers never given are left out."""
    numbers = {label: number for number, label in enumerate(labels)}
    soft = np.zeros((len(answers), len(labels)), np.float32)
    given = [{}] * len(answers) if probabilities is None else probabilities
    for row, (told, answer) in enumerate(zip(given, answers, strict=True)):
        for label, probability in told.items():
            if label in numbers:
                soft[row, numbers[label]] = max(probability, 0.0)
        if not soft[row].any():
            soft[row, numbers[answer]] = 1.0
    soft /= soft.sum(axis=1, keepdims=True)
    return soft


def _gram_bags(texts: Sequence[Features], buckets: int, max_rows: int) -> _Bags:
    """All features that enough texts hold, the commonest `max_rows` of them."""
    counts = _document_counts(texts, buckets, words_only=False)
    kept = np.flatnonzero(counts >= (2 if len(texts) >= MANY_ANSWERS else 1))
    if len(kept) > max_rows:
        kept = np.sort(kept[np.argsort(-counts[kept], kind="stable")[:max_rows]])
    return _bags(texts, kept, counts, 1.0, words_only=False)


def _word_bags(
    texts: Sequence[Features], words: WordVectors, options: StaticOptions, max_rows: int
) -> tuple[_Bags, FloatArray]:
    """Single words that have a vector, and the vectors [r, d] at the scale at which they are learned from."""
    first: dict[int, int] = {}
    for number, word in enumerate(words.words[:max_rows]):
        first.setdefault(int(features(word, options.features).buckets[0]), number)
    kept = np.array(sorted(first), np.int64)
    counts = _document_counts(texts, options.features.buckets, words_only=True)
    bags = _bags(texts, kept, counts, 0.5, words_only=True)
    vectors = np.zeros((len(kept) + 1, words.vectors.shape[1]), np.float32)
    vectors[1:] = words.vectors[[first[bucket] for bucket in kept.tolist()]]
    typical = float(np.sqrt(np.mean(np.sum((bags.matrix @ vectors) ** 2, axis=1))))
    return bags, vectors * np.float32(options.word_share / max(typical, 1e-9))


def _document_counts(texts: Sequence[Features], buckets: int, *, words_only: bool) -> npt.NDArray[np.int64]:
    """In how many texts each bucket is found [b]."""
    counts = np.zeros(buckets, np.int64)
    for text in texts:
        counts[text.buckets[: text.words] if words_only else text.buckets] += 1  # repeats count once
    return counts


def _bags(
    texts: Sequence[Features],
    kept: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
    idf_power: float,
    *,
    words_only: bool,
) -> _Bags:
    """Bags whose rows 1, 2, … are the `kept` buckets."""
    try:
        from scipy.sparse import csr_array
    except ImportError as error:  # pragma: no cover
        raise MissingExtra("Learning a static expert", "learn") from error

    slots = np.zeros(len(counts), np.uint32)
    slots[kept] = np.arange(1, len(kept) + 1)
    weight = np.zeros(len(kept) + 1, np.float32)
    weight[1:] = (1.0 + np.log((len(texts) + 1) / (counts[kept] + 1))) ** idf_power
    found = [rows_of(text, slots, words_only=words_only) for text in texts]
    bounds = np.cumsum([0, *(len(rows) for rows in found)])
    rows = np.concatenate(found).astype(np.int32)
    weights = weight[rows]
    norms = np.sqrt(np.add.reduceat(weights**2, bounds[:-1]))
    weights /= np.repeat(np.maximum(norms, 1e-6), np.diff(bounds))
    return _Bags(slots, weight, csr_array((weights, rows, bounds), (len(texts), len(weight))), words_only)


def _fit(
    grams: _Bags,
    words: tuple[_Bags, FloatArray] | None,
    wanted: FloatArray,
    options: StaticOptions,
    progress: Callable[[float], None],
) -> list[FloatArray]:
    """Logits of each n-gram [r, k], then of each word where there are word vectors, and the bias [k]."""
    from puhui.compress.logistic import fit_logistic

    matrix, transposed = grams.matrix, grams.matrix.T.tocsr()
    means = np.zeros((len(wanted), 0), np.float32) if words is None else words[0].matrix @ words[1]

    def kernel(given: FloatArray) -> FloatArray:
        product: FloatArray = matrix @ (transposed @ given)
        product += means @ (means.T @ given)
        product += given.sum(axis=0)  # the bias is a feature that is 1 in every text
        return product

    fitted = fit_logistic(kernel, wanted, penalty=options.penalty, steps=options.steps, progress=progress)
    tables = [transposed @ fitted]
    if words is not None:
        tables.append(words[1] @ (means.T @ fitted))
    return [*tables, fitted.sum(axis=0)]


def _rounded(bags: _Bags, table: FloatArray, bias: FloatArray) -> Tower:
    """The logits [r, k] in int8 with one scale a row: at most 1/254 of the row's largest off."""
    scale = np.abs(table).max(axis=1) / np.float32(127.0)
    whole = np.rint(table / np.maximum(scale, 1e-12)[:, None]).astype(np.int8)
    return Tower(
        slots=bags.slots.astype(np.uint16) if len(table) <= 1 << 16 else bags.slots,
        table=whole,
        gain=scale * bags.weight,
        weight=bags.weight,
        bias=bias,
        words_only=bags.words_only,
    )
