"""Answers as numbers, and the part of them that is held out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puhui.compress.lessons import Lessons
from puhui.core.errors import LearningError

TEXTS = [f"text {i}" for i in range(40)]
ANSWERS = ["a", "b"] * 20


def test_hard_and_soft_answers() -> None:
    told = [{"a": 0.6, "b": 0.2, "never answered": 0.2}, {}, {"a": -1.0, "never answered": 1.0}]
    lessons = Lessons.of(TEXTS, ANSWERS, [*told, *({} for _ in range(37))])
    assert lessons.labels == ("a", "b")
    assert lessons.numbers.tolist() == [0, 1] * 20
    assert np.allclose(lessons.wanted[:3], [[0.75, 0.25], [0.0, 1.0], [1.0, 0.0]])
    assert np.allclose(lessons.wanted.sum(axis=1), 1.0)
    assert np.array_equal(Lessons.of(TEXTS, ANSWERS).wanted, np.eye(2, dtype=np.float32)[lessons.numbers])


@given(st.lists(st.sampled_from("abcdefghijklmnopqrstuvwxyz"), min_size=20, max_size=80), st.integers(0, 5))
def test_a_text_is_on_one_side_of_the_split(texts: list[str], seed: int) -> None:
    lessons = Lessons.of(texts, [*"xy"] * (len(texts) // 2) + ["x"] * (len(texts) % 2))
    taught, held = lessons.split(len(texts) // 4, seed)
    assert sorted([*taught, *held]) == list(range(len(texts)))
    assert not {texts[i] for i in taught} & {texts[i] for i in held}
    assert [part.tolist() for part in lessons.split(len(texts) // 4, seed)] == [taught.tolist(), held.tolist()]


def test_the_split_does_not_undo_a_shuffle_of_the_same_seed() -> None:
    order = np.random.default_rng(0).permutation(40)
    lessons = Lessons.of([TEXTS[i] for i in order], ["a" if i < 20 else "b" for i in order])
    _, held = lessons.split(20, seed=0)
    assert 0.2 < float(np.mean(lessons.numbers[held])) < 0.8


@pytest.mark.parametrize(
    ("texts", "answers", "says"),
    [(TEXTS, ANSWERS[:-1], "one each"), (TEXTS, ["a"] * 40, "all alike"), (TEXTS[:19], ANSWERS[:19], "at least 20")],
)
def test_what_cannot_be_learned_from(texts: list[str], answers: list[str], says: str) -> None:
    with pytest.raises(LearningError, match=says):
        Lessons.of(texts, answers)
