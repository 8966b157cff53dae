"""The features of a task's texts as sparse vectors: which features own rows, and how much each one weighs.

Method: TF-IDF with every feature of a text counted once, as `models.tower` reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from puhui.compress.word_vectors import WordVectors
from puhui.core.errors import MissingExtra
from puhui.models.hashing import FeatureOptions, Features, features
from puhui.models.tower import rows_of

FloatArray = npt.NDArray[np.float32]
Buckets = npt.NDArray[np.int64]
MANY_ANSWERS = 4000
"""From here on features found in one text alone are left out: half the size, and nothing lost."""


class Bags(msgspec.Struct, frozen=True, eq=False):
    """The features of n texts that own rows: `slots` [b], `weight` [r] as in `Tower`, `matrix` CSR [n, r].

    A text's numbers in `matrix` are its features' weights, divided by their Euclidean norm.
    """

    slots: npt.NDArray[np.uint32]
    weight: FloatArray
    matrix: Any
    words_only: bool


class VectorsByBucket(msgspec.Struct, frozen=True, eq=False):
    """Buckets of words, ascending [r], and the words' vectors [r, d]."""

    buckets: Buckets
    vectors: FloatArray


def by_bucket(words: WordVectors, options: FeatureOptions, most: int) -> VectorsByBucket:
    """The first `most` words by the bucket that each falls on; of two in one bucket the commoner stays."""
    first: dict[int, int] = {}
    for number, word in enumerate(words.words[:most]):
        first.setdefault(int(features(word, options).buckets[0]), number)
    buckets = np.array(sorted(first), np.int64)
    return VectorsByBucket(buckets, words.vectors[[first[bucket] for bucket in buckets.tolist()]])


def gram_bags(texts: Sequence[Features], buckets: int, most: int) -> Bags:
    """All features that enough texts hold, the commonest `most` of them."""
    counts = _document_counts(texts, buckets, words_only=False)
    kept = np.flatnonzero(counts >= (2 if len(texts) >= MANY_ANSWERS else 1))
    if len(kept) > most:
        kept = np.sort(kept[np.argsort(-counts[kept], kind="stable")[:most]])
    return _bags(texts, kept, counts, 1.0, words_only=False)


def word_bags(texts: Sequence[Features], words: VectorsByBucket, buckets: int) -> Bags:
    """Single words that have a vector, whether a text holds them or not."""
    counts = _document_counts(texts, buckets, words_only=True)
    return _bags(texts, words.buckets, counts, 0.5, words_only=True)


def _document_counts(texts: Sequence[Features], buckets: int, *, words_only: bool) -> Buckets:
    """In how many texts each bucket is found [b]."""
    counts = np.zeros(buckets, np.int64)
    for text in texts:
        counts[text.buckets[: text.words] if words_only else text.buckets] += 1  # repeats count once
    return counts


def _bags(texts: Sequence[Features], kept: Buckets, counts: Buckets, idf_power: float, *, words_only: bool) -> Bags:
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
    bounds = np.cumsum([0, *(len(rows) for rows in found)], dtype=np.int32)  # narrow indices are quicker to follow
    rows = np.concatenate(found).astype(np.int32)
    weights = weight[rows]
    norms = np.sqrt(np.add.reduceat(weights**2, bounds[:-1]))
    weights /= np.repeat(np.maximum(norms, 1e-6), np.diff(bounds))
    return Bags(slots, weight, csr_array((weights, rows, bounds), (len(texts), len(weight))), words_only)
