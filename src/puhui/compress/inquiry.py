"""What the workshop asks the big model: answers, some of them a second time, and more texts. One budget pays for all.

Nothing is asked where a file holds every answer: neither first answers nor second ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from puhui.cascade.agreement import Rule
from puhui.compress.watcher import Watcher
from puhui.teachers.answer_book import bare
from puhui.teachers.asking import Asked, Budget, Purse, ask_all
from puhui.teachers.inputs import Rows
from puhui.teachers.paraphrase import paraphrases, recombined, writer
from puhui.teachers.probing import ASKED_TWICE, Estimate, SelfAgreement, estimate, self_agreement
from puhui.teachers.teacher import CanWrite, Teacher, Told

LEAST_EACH, MOST_EACH = 4, 20
"""Paraphrases asked for in one request: fewer cost more, and more of one text teach less than those of another."""


Look: TypeAlias = Callable[[Mapping[str, Told]], None]


class Inquiry:
    """One big model, asked in several rounds. `augment` is how many texts will be added. `look` is called with the
    first answers, by text, before all others are paid for: it may raise."""

    def __init__(
        self,
        teacher: Teacher,
        folder: Path,
        budget: Budget,
        watcher: Watcher,
        *,
        augment: int = 0,
        seed: int = 0,
        look: Look = lambda first: None,
    ) -> None:
        self._teacher, self._folder, self._watcher = teacher, folder, watcher
        self._purse = Purse(budget)
        self._augment, self._seed, self._look = augment, seed, look
        self._told: list[str] = []

    @property
    def ended_early(self) -> bool:
        """Whether the budget ended any round of asking."""
        return bool(self._purse.stopped)

    def answers(self, rows: Rows) -> tuple[list[str], list[Told]]:
        """Texts with what the big model told of them, the file's own answers included."""
        known = {number: one for number, one in enumerate(rows.told) if one is not None}
        numbers = [number for number in range(len(rows.texts)) if number not in known]
        if numbers:
            twice = 0 if self._teacher.deterministic else ASKED_TWICE
            first = {rows.texts[number]: one for number, one in known.items()}
            asked = self._ask([rows.texts[number] for number in numbers], twice, self._to_come(), first)
            told = {number: one for number, one in zip(numbers, asked.told, strict=True) if one is not None}
            self._told = [rows.texts[number] for number in told]
            known |= told
        numbers = sorted(known)
        return [rows.texts[number] for number in numbers], [known[number] for number in numbers]

    def self_agreement(self, rule: Rule) -> SelfAgreement | None:
        """How often it says the same again, by `rule`; None where it always does, told nothing, or may not be asked."""
        if self._teacher.deterministic or not self._told:
            return None
        found = self_agreement(
            self._teacher, self._told, folder=self._folder, rule=rule, seed=self._seed, budget=self._purse
        )
        if found is None:
            self._watcher.note(
                "the big model was asked nothing twice, as the budget is spent or it refused: how often it agrees "
                "with itself is not known"
            )
        else:
            self._watcher.contradicts(found)
        return found

    def added(self, taught: Sequence[str]) -> dict[str, Told]:
        """Up to `augment` texts made of those that teach, with what the big model told of them.

        They are compared with the texts that teach and no others: what is proven by the rest must not depend on it.
        """
        wanted = self._augment
        if not wanted:
            return {}
        writes = isinstance(self._teacher, CanWrite)
        made = self._paraphrased(taught) if writes else recombined(taught, count=wanted, seed=self._seed)
        if len(made) < wanted:
            self._watcher.note(f"{wanted} texts were to be added, but only {len(made)} different ones could be made")
        if not made:
            return {}
        asked = self._ask(made)
        return {text: one for text, one in zip(made, asked.told, strict=True) if one is not None}

    def _to_come(self) -> int:
        """Requests at most for the texts that will be added."""
        writing = math.ceil(self._augment / LEAST_EACH) if isinstance(self._teacher, CanWrite) else 0
        return self._augment + writing

    def _ask(
        self, texts: Sequence[str], repeats: int = 0, more: int = 0, known: Mapping[str, Told] | None = None
    ) -> Asked:
        """Asks; in the first round, where the data's own answers are `known`, the first of all are looked at."""
        forecast = estimate(self._teacher, texts, folder=self._folder, budget=self._purse, repeats=repeats, more=more)
        if known is not None:
            self._look({**known, **forecast.sample})
        self._show(forecast)
        asked = ask_all(self._teacher, texts, folder=self._folder, budget=self._purse, progress=self._watcher.asked)
        self._note(asked)
        return asked

    def _paraphrased(self, taught: Sequence[str]) -> list[str]:
        """Paraphrases of a random part of the texts, as many as are wanted."""
        distinct = [text for text in dict.fromkeys(taught) if text.strip()]
        each = min(MOST_EACH, max(LEAST_EACH, math.ceil(self._augment / max(1, len(distinct)))))
        drawn = np.random.default_rng(self._seed).permutation(len(distinct))[: math.ceil(self._augment / each)]
        texts, folder, purse = [distinct[number] for number in drawn], self._folder, self._purse
        self._show(estimate(writer(self._teacher, each), texts, folder=folder, budget=purse, more=self._augment))
        found = paraphrases(self._teacher, texts, each=each, folder=folder, budget=purse, progress=self._watcher.asked)
        self._note(found.asked)
        known = set(map(bare, taught))
        return [text for text in found.texts if bare(text) not in known][: self._augment]

    def _show(self, forecast: Estimate) -> None:
        """Shows an estimate, unless no request is allowed: nobody should agree to what will not be asked."""
        if self._purse.left.requests != 0 or not forecast.to_ask + forecast.repeats + forecast.more:
            self._watcher.estimated(forecast)

    def _note(self, asked: Asked) -> None:
        """Says what was not told, and why."""
        if asked.stopped:
            told = sum(one is not None for one in asked.told)
            self._watcher.note(f"asking ended early: {asked.stopped}; {told} of {len(asked.told)} texts have an answer")
        for why, count in asked.refused.items():
            self._watcher.note(f"{count} texts were refused by the big model: {why}")


def others(unlabelled: Iterable[str], texts: Sequence[str]) -> list[str]:
    """Texts that are not among `texts`: none that judges or calibrates may teach, not even without its answer."""
    known, found = set(map(bare, texts)), dict[str, str]()
    for text in unlabelled:
        found.setdefault(bare(text), text)
    return [text for key, text in found.items() if key not in known]
