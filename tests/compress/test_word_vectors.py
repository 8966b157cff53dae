"""Word vectors: alone and in context, kept on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from puhui.compress.word_vectors import WordVectors, words_of
from puhui.core.errors import BundleError, LearningError

WORDS = tuple(f"{first}{last}" for first in "abcdefghijkl" for last in "mnopqrstuvwx")


class Encoder:
    """Words alone have random vectors; in context a word's state is a fixed map of its vector, plus noise."""

    def __init__(self) -> None:
        self.draw = np.random.default_rng(0)
        self.alone = {word: self.draw.normal(size=6).astype(np.float32) for word in WORDS}
        self.turn = self.draw.normal(size=(6, 4)).astype(np.float32)
        self.alone["odd"] = self.alone["am"]  # alone like "am", in context like "lx"
        self.stands_for = {"odd": "lx"}

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([self.alone[text] for text in texts])

    def token_states(self, texts: Sequence[str]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        for number in reversed(range(len(texts))):
            words = texts[number].split()
            ends = np.cumsum([len(word) + 1 for word in words]) - 1
            places = np.stack([ends - [len(word) for word in words], ends], axis=1)
            states = [self.alone[self.stands_for.get(word.lower(), word.lower())] @ self.turn for word in words]
            yield number, places, np.array(states) + 0.01 * self.draw.normal(size=(len(words), 4))


def near(vectors: WordVectors, one: str, other: str) -> float:
    left, right = (vectors.vectors[vectors.words.index(word)] for word in (one, other))
    return float(left @ right / np.linalg.norm(left) / np.linalg.norm(right))


def test_a_word_means_what_its_texts_make_of_it() -> None:
    texts = [" ".join(WORDS[i : i + 12]) for i in range(0, 132, 12)] + ["Odd am", "odd ODD"] * 5
    learned = WordVectors.learn_in_context((*WORDS, "odd"), texts, Encoder(), dim=4)
    assert near(learned, "odd", "am") < 0.9
    assert near(learned, "odd", "lx") > 0.9  # "lx" is in no text: the map has placed it
    assert np.allclose(learned.vectors.mean(axis=0), 0, atol=1e-5)


def test_too_few_words_in_the_texts_leave_all_as_they_are_alone() -> None:
    plain, learned = WordVectors.learn(WORDS, Encoder().encode), WordVectors.learn_in_context(WORDS, [], Encoder())
    assert np.allclose(plain.vectors, learned.vectors)


def test_ideographs_are_words() -> None:
    assert words_of(["Lost card, please", "card 余额"]) == ("card", "lost", "please", "余", "额")


def test_they_are_kept(tmp_path: Path) -> None:
    vectors = WordVectors.learn(["b", "a", "b", "余"], lambda w: np.eye(len(w), 4, dtype=np.float32), dim=2)
    path = tmp_path / "words.safetensors"
    vectors.save(path)
    again = WordVectors.load(path)
    assert again.words == ("b", "a", "余")
    assert again.vectors.shape == (3, 2)
    assert np.array_equal(again.vectors, vectors.vectors)
    assert np.allclose(vectors.vectors.mean(axis=0), 0, atol=1e-6)
    path.write_bytes(b"nothing")
    with pytest.raises(BundleError, match=r"words\.safetensors"):
        WordVectors.load(path)
    with pytest.raises(LearningError):
        WordVectors.learn(["one"], lambda w: np.zeros((1, 2), np.float32))
