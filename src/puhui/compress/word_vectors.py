"""Public word vectors: what words mean, known before a task's first answer.

Method: model2vec (Minish Lab 2024): every word of a vocabulary goes through a sentence encoder once, alone;
the vectors are centred and turned onto their principal components. One table serves every task of a language,
so it is made once and kept; the words of a task's own texts are worth adding (`words_of`), as much of a
trade's language is in no tokenizer's vocabulary. The encoder need not be the big model: any public one does.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from puhui.core.errors import BundleError, LearningError

FloatArray = npt.NDArray[np.float32]
Encode = Callable[[Sequence[str]], FloatArray]
"""Texts [n] to vectors [n, d], such as `EncoderClassifier.encode`."""


_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")


def words_of(texts: Iterable[str]) -> tuple[str, ...]:
    """The distinct words of the texts, lower case, commonest first; an ideograph is a word.

    >>> words_of(["Lost card, please", "card 余额"])[:2]
    ('card', 'lost')
    """
    return tuple(word for word, _ in Counter(w for text in texts for w in _WORD.findall(text.lower())).most_common())


class WordVectors(msgspec.Struct, frozen=True, eq=False):
    """Words [n], lower case, commonest first, and float32 vectors [n, d] with mean zero."""

    words: tuple[str, ...]
    vectors: FloatArray

    @classmethod
    def learn(cls, words: Sequence[str], encode: Encode, *, dim: int = 256) -> WordVectors:
        """Vectors of the distinct words; `dim` is an upper bound. LearningError below 2 words."""
        distinct = tuple(dict.fromkeys(words))
        if len(distinct) < 2:
            raise LearningError(f"{len(distinct)} words; word vectors need at least 2")
        vectors = encode(distinct).astype(np.float64)
        vectors -= vectors.mean(axis=0)
        _, axes = np.linalg.eigh(vectors.T @ vectors)
        turned = vectors @ axes[:, ::-1][:, :dim]
        return cls(distinct, np.ascontiguousarray(turned, np.float32))

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
