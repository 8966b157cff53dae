"""From the first token's log-probabilities to a distribution over the labels of a task."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

Alternatives = Sequence[tuple[str, float]]


class SoftAnswers:
    """Turns answers with their alternatives into what the big model held each label to be likely.

    A first token speaks for the labels that begin with it: for the one that was answered if it is among them,
    else evenly for all. What no token speaks for stays with the answer.

    >>> told = SoftAnswers(["glue", "iot"]).of("glue", [("glue", -0.105), ("iot", -2.303)])
    >>> {label: round(share, 2) for label, share in told.items()}
    {'glue': 0.9, 'iot': 0.1}
    """

    def __init__(self, labels: Collection[str]) -> None:
        self._labels = labels
        self._starting: dict[str, tuple[str, ...]] = {}

    def of(self, answer: str, alternatives: Alternatives | None) -> dict[str, float]:
        """Probabilities of the labels, summing to 1; labels that were not spoken for are left out."""
        shares: dict[str, float] = {}
        for token, logprob in alternatives or ():
            labels = self._begin_with(token.strip())
            mine = (answer,) if answer in labels else labels
            for label in mine:
                shares[label] = shares.get(label, 0.0) + math.exp(min(0.0, logprob)) / len(mine)
        told = sum(shares.values())
        if told > 1.0:
            return {label: share / told for label, share in shares.items()}
        shares[answer] = shares.get(answer, 0.0) + 1.0 - told
        return shares

    def _begin_with(self, start: str) -> tuple[str, ...]:
        if start not in self._starting:
            self._starting[start] = tuple(label for label in self._labels if start and label.startswith(start))
        return self._starting[start]
