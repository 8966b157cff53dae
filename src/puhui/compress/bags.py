"""The features of a task's texts as sparse vectors: which features own rows, and how much each one weighs.

Method: TF-IDF with every feature of a text counted once, as `models.tower` reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from puhui.compress.word_vectors import WordVectors
from puhui.core.errors import MissingExtra
from puhui.models.hashing import FeatureOptions, Features, features
from puhui.models.tower import Reads, read

FloatArray = npt.NDArray[np.float32]
Buckets = npt.NDArray[np.int64]
MANY_ANSWERS = 4000
"""From here on features found in one text alone are left out: half the size, and nothing lost."""


class Bags(msgspec.Struct, frozen=True, eq=False):
    """The features of n texts that own rows: `slots` [b], `weight` [r] as in `Tower`, `matrix` CSR [n, r].

    A text's numbers in `matrix` are its features' weights, divided by their Euclidean norm, each as often as `Read`
    has it.
    """

    slots: npt.NDArray[np.uint32]
    weight: FloatArray
    matrix: Any
    reads: Reads


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
    counts = _document_counts(texts, buckets, "all")
    kept = np.flatnonzero(counts >= (2 if len(texts) >= MANY_ANSWERS else 1))
    if len(kept) > most:
        kept = np.sort(kept[np.argsort(-counts[kept], kind="stable")[:most]])
    return _bags(texts, kept, counts, 1.0, "all")


def word_bags(texts: Sequence[Features], words: VectorsByBucket, buckets: int) -> Bags:
    """Single words that have a vector, whether a text holds them or not."""
    return _bags(texts, words.buckets, _document_counts(texts, buckets, "words"), 0.5, "words")


def order_bags(texts: Sequence[Features], words: Bags) -> Bags:
    """The same words by where they stand."""
    return Bags(words.slots, words.weight, _matrix(texts, words.slots, words.weight, "order"), "order")


def _document_counts(texts: Sequence[Features], buckets: int, reads: Literal["all", "words"]) -> Buckets:
    """In how many texts each bucket is found [b]."""
    counts = np.zeros(buckets, np.int64)
    for text in texts:
        counts[text.buckets[: text.words] if reads == "words" else text.buckets] += 1  # repeats count once
    return counts


def _bags(
    texts: Sequence[Features], kept: Buckets, counts: Buckets, idf_power: float, reads: Literal["all", "words"]
) -> Bags:
    """Bags whose rows 1, 2, … are the `kept` buckets."""
    slots = np.zeros(len(counts), np.uint32)
    slots[kept] = np.arange(1, len(kept) + 1)
    weight = np.zeros(len(kept) + 1, np.float32)
    weight[1:] = (1.0 + np.log((len(texts) + 1) / (counts[kept] + 1))) ** idf_power
    return Bags(slots, weight, _matrix(texts, slots, weight, reads), reads)


def _matrix(texts: Sequence[Features], slots: npt.NDArray[np.uint32], weight: FloatArray, reads: Reads) -> Any:
    """As `Bags` has it."""
    try:
        from scipy.sparse import csr_array
    except ImportError as error:  # pragma: no cover
        raise MissingExtra("Learning a static expert", "learn") from error

    found = [read(text, slots, reads) for text in texts]
    bounds = np.cumsum([0, *(len(each.rows) for each in found)], dtype=np.int32)  # narrow indices are quicker to follow
    rows = np.concatenate([each.rows for each in found]).astype(np.int32)
    norms = np.sqrt(np.add.reduceat(weight[rows] ** 2, bounds[:-1]))
    numbers = np.concatenate([each.scaled(weight[each.rows]) for each in found])
    numbers /= np.repeat(np.maximum(norms, 1e-6), np.diff(bounds))
    return csr_array((numbers, rows, bounds), (len(texts), len(weight)))
