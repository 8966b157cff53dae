"""A big model's answers as numbers to learn from: labels, and for each text the probabilities that are wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from puhui.core.errors import LearningError

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.intp]
LEAST_ANSWERS = 20
_SPLIT = 0x5B117


class Lessons(msgspec.Struct, frozen=True, eq=False):
    """n texts with the big model's answers, as numbers [n] of the k labels, and what it held likely [n, k]."""

    labels: tuple[str, ...]
    texts: Sequence[str]
    numbers: IntArray
    wanted: FloatArray
    """Each row sums to one; where the big model told nothing, all of it is with its answer."""

    @classmethod
    def of(
        cls, texts: Sequence[str], answers: Sequence[str], probabilities: Sequence[Mapping[str, float]] | None = None
    ) -> Lessons:
        """Lessons of texts and answers; `probabilities[i]` are those of any answers, as far as they were told.

        Raises LearningError for fewer than 20 answers or 2 different ones, or lengths that differ.
        """
        given = len(texts) if probabilities is None else len(probabilities)
        if not len(texts) == len(answers) == given:
            raise LearningError(f"{len(texts)} texts, {len(answers)} answers, {given} probabilities: give one each")
        labels = tuple(sorted(set(answers)))
        if len(labels) < 2:
            raise LearningError(f"the {len(answers)} answers are all alike; an expert needs 2 different ones")
        if len(answers) < LEAST_ANSWERS:
            raise LearningError(f"{len(answers)} answers; learning needs at least {LEAST_ANSWERS}: wait for more")
        place = {label: number for number, label in enumerate(labels)}
        numbers = np.array([place[answer] for answer in answers], np.intp)
        wanted = np.zeros((len(answers), len(labels)), np.float32)
        for row, told in enumerate(probabilities or ()):
            for label, probability in told.items():
                if label in place:
                    wanted[row, place[label]] = max(probability, 0.0)
        untold = np.flatnonzero(wanted.sum(axis=1) == 0.0)
        wanted[untold, numbers[untold]] = 1.0
        return cls(labels, texts, numbers, wanted / wanted.sum(axis=1, keepdims=True))

    def split(self, held: int, seed: int) -> tuple[IntArray, IntArray]:
        """Rows to learn from and about `held` rows to judge by. Texts that are the same stay on one side."""
        first: dict[str, int] = {}
        group = np.array([first.setdefault(text, len(first)) for text in self.texts], np.intp)
        # Of a stream of its own: who shuffled the rows with the same seed would else get them back unshuffled.
        order = np.random.default_rng((seed, _SPLIT)).permutation(len(first))
        is_held = order[group] < held * len(first) // len(self.texts)
        return np.flatnonzero(~is_held), np.flatnonzero(is_held)
