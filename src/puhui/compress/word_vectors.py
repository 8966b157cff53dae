"""Public word vectors: what words mean, known before a task's first answer.

Method: model2vec (Minish Lab 2024): every word of a vocabulary goes through a sentence encoder once, alone;
the vectors are centred and turned onto their principal components. One table serves every task of a language,
so it is made once and kept; the words of a task's own texts are worth adding (`words_of`), as much of a
trade's language is in no tokenizer's vocabulary. The encoder need not be the big model: any public one does.

Where many texts of the task are at hand, answered or not, a word is better known by what the encoder makes of it
in them (Bommasani, Davis, Cardie 2020): `learn_in_context`. Words that they do not hold are mapped to what such
words became, by a ridge regression from words alone to words in context.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from puhui.core.errors import BundleError, LearningError

FloatArray = npt.NDArray[np.float32]
RIDGE, LEAST_HELD, SURE_FROM = 1.0, 100, 20
"""Of the map from words alone to words in context: its penalty, the fewest words to learn it from, and the number
of places from which a word counts no more."""
Encode = Callable[[Sequence[str]], FloatArray]
"""Texts [n] to vectors [n, d], such as `EncoderClassifier.encode`."""


_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")


def words_of(texts: Iterable[str]) -> tuple[str, ...]:
    """The distinct words of the texts, lower case, commonest first; an ideograph is a word.

    >>> words_of(["Lost card, please", "card 余额"])[:2]
    ('card', 'lost')
    """
    return tuple(word for word, _ in Counter(w for text in texts for w in _WORD.findall(text.lower())).most_common())


class ContextEncoder(Protocol):
    """What `learn_in_context` needs of an encoder, such as `SentenceEncoder`."""

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Texts [n] to vectors [n, d]."""
        ...

    def token_states(self, texts: Sequence[str]) -> Iterable[tuple[int, npt.NDArray[np.intp], FloatArray]]:
        """For each text its number, the places [t, 2] of its tokens and their states [t, e]."""
        ...


class WordVectors(msgspec.Struct, frozen=True, eq=False):
    """Words [n], lower case, commonest first, and float32 vectors [n, d] with mean zero."""

    words: tuple[str, ...]
    vectors: FloatArray

    @classmethod
    def learn(cls, words: Sequence[str], encode: Encode, *, dim: int = 256) -> WordVectors:
        """Vectors of the distinct words; `dim` is an upper bound. LearningError below 2 words."""
        distinct = _distinct(words)
        return cls(distinct, _turned(encode(distinct).astype(np.float64), dim))

    @classmethod
    def learn_in_context(
        cls, words: Sequence[str], texts: Sequence[str], encoder: ContextEncoder, *, dim: int = 256
    ) -> WordVectors:
        """Vectors of the distinct words as they are used in the texts; `dim` is an upper bound.

        Worth it where there are more texts than answers: `bench/static_log.md`. LearningError below 2 words.
        """
        distinct = _distinct(words)
        alone = encoder.encode(distinct).astype(np.float64)
        sums, counts = _in_context(distinct, texts, encoder)
        held = np.flatnonzero(counts)
        if held.size < LEAST_HELD:
            return cls(distinct, _turned(alone, dim))
        alone -= alone.mean(axis=0)
        sure = np.minimum(counts[held], SURE_FROM)[:, None]
        means = sums[held] / counts[held, None]
        centre = (means * sure).sum(axis=0) / sure.sum()
        weighted = alone[held] * sure
        square = weighted.T @ alone[held]
        mapped = alone @ np.linalg.solve(square + RIDGE * np.eye(len(square)), weighted.T @ (means - centre))
        share = counts[held, None] / (counts[held, None] + 1.0)  # seen once, half of what is known is from there
        mapped[held] += share * (means - centre - mapped[held])
        return cls(distinct, _turned(mapped, dim))

    def save(self, path: Path) -> None:
        """Write one safetensors file."""
        encoded = np.frombuffer("\n".join(self.words).encode(), np.uint8)
        save_file({"words": encoded, "vectors": self.vectors}, path)

    @classmethod
    def load(cls, path: Path) -> WordVectors:
        """Read what `save` wrote. Raises BundleError that names a missing or damaged file."""
        try:
            arrays = load_file(path)
            words = tuple(arrays["words"].tobytes().decode().split("\n"))
            vectors = arrays["vectors"]
        except (SafetensorError, KeyError, UnicodeDecodeError, OSError) as error:
            raise BundleError(f"{path} is missing or damaged ({error}): make the word vectors again") from error
        if vectors.ndim != 2 or len(words) != len(vectors):
            raise BundleError(f"{path} has {len(words)} words but vectors {vectors.shape}: make it again")
        return cls(words, vectors)


def _distinct(words: Sequence[str]) -> tuple[str, ...]:
    distinct = tuple(dict.fromkeys(words))
    if len(distinct) < 2:
        raise LearningError(f"{len(distinct)} words; word vectors need at least 2")
    return distinct


def _turned(vectors: npt.NDArray[np.float64], dim: int) -> FloatArray:
    """The vectors [n, d], centred, in their first `dim` principal components."""
    vectors = vectors - vectors.mean(axis=0)
    _, axes = np.linalg.eigh(vectors.T @ vectors)
    return np.ascontiguousarray(vectors @ axes[:, ::-1][:, :dim], np.float32)


def _in_context(
    words: Sequence[str], texts: Sequence[str], encoder: ContextEncoder
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """The sum over the texts of each word's states [n, e], and in how many places each was found [n]."""
    numbers = {word: number for number, word in enumerate(words)}
    sums, counts = np.zeros((len(words), 0)), np.zeros(len(words), np.int64)
    for text, places, states in encoder.token_states(texts):
        if not sums.shape[1]:
            sums = np.zeros((len(words), states.shape[1]))
        for found in _WORD.finditer(texts[text]):
            inside = (places[:, 0] >= found.start()) & (places[:, 1] <= found.end())
            number = numbers.get(found.group().lower())
            if number is not None and inside.any():
                sums[number] += states[inside].mean(axis=0)
                counts[number] += 1
    return sums, counts
