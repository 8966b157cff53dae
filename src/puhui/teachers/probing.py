"""What is found out of a teacher by asking a little: what asking all will cost, and whether it agrees with itself."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median

import msgspec

from puhui.cascade.agreement import EXACT, Rule, agreements, is_whole
from puhui.cascade.guarantee import loss_upper_bound, risk_upper_bound
from puhui.core.errors import LearningError
from puhui.teachers.answer_book import AnswerBook, key_of, plain
from puhui.teachers.asking import Budget, Purse, Show, ask_all, purse_of
from puhui.teachers.teacher import Teacher, Told

ENOUGH_KNOWN = 32
ASKED_TWICE = 100


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """What asking will take. `to_ask` of `distinct` texts are still to be asked; the rest is known in the folder.

    `repeats` of them are to be asked a second time, and `more` requests at most will follow. `tokens_in`, `tokens_out`,
    `cost` (USD, None where the price is not known) and `seconds` are for all of these, from the mean of `sampled`
    answers, of which `probed` were asked for the estimate and are now known; `sample` holds these answers by text.
    """

    texts: int
    distinct: int
    known: int
    to_ask: int
    repeats: int = 0
    more: int = 0
    sampled: int
    probed: int
    tokens_in: int
    tokens_out: int
    cost: float | None
    seconds: float
    sample: dict[str, Told] = {}


class SelfAgreement(msgspec.Struct, frozen=True, kw_only=True):
    """How often a teacher, asked twice, answers the same: `equal` of `rows`, `low` to `high` by Clopper and Pearson.

    Where answers may agree in part (`whole` is False), `equal` is the sum of their agreements, the interval is that of
    Hoeffding and Bentkus, and there is no ceiling.

    Else no expert can agree with a teacher's next answer more often than `ceiling`. If it gives answer k to a text with
    probability p(k), it agrees with itself with Σ p², and an expert agrees with it with max p at best. As max p ≤
    √Σp² for each text, and the root is concave, the expert's agreement is at most √(self-agreement) over all texts.
    """

    rows: int
    equal: float
    low: float
    high: float
    whole: bool = True

    @property
    def share(self) -> float:
        """The share of equal answers; the mean agreement where answers may agree in part."""
        return self.equal / self.rows

    @property
    def ceiling(self) -> float:
        """The most that any expert can agree, as estimated; 1 where answers may agree in part."""
        return math.sqrt(self.share) if self.whole else 1.0

    @property
    def ceiling_high(self) -> float:
        """The most that any expert can agree, at the upper end of the interval; 1 where answers may agree in part."""
        return math.sqrt(self.high) if self.whole else 1.0


def estimate(
    teacher: Teacher,
    texts: Sequence[str],
    *,
    folder: Path,
    probe: int = 8,
    budget: Budget | Purse | None = None,
    repeats: int = 0,
    more: int = 0,
) -> Estimate:
    """What asking `teacher` for all the texts will take, from up to `probe` of them, short and long, asked now.

    Where enough answers are known already, nothing is asked. Up to `repeats` of the texts are to be asked twice, and
    `more` further requests will follow. LearningError where the teacher refuses every probe.
    """
    distinct = list(dict.fromkeys(map(plain, texts)))
    waiting, sample = _split(teacher, distinct, folder)
    probed = 0
    if len(sample) < min(ENOUGH_KNOWN, len(distinct)) and waiting and probe > 0:
        probes = _of_all_lengths(waiting, probe)
        asked = ask_all(teacher, probes, folder=folder, budget=budget)
        sample |= {text: told for text, told in zip(probes, asked.told, strict=True) if told is not None}
        probed = asked.asked
        if not sample and not asked.stopped:
            raise LearningError(f"{teacher.name} refused every probe: {'; '.join(asked.refused)}")
    left = len(waiting) - probed
    if repeats:
        repeats = max(0, min(repeats, len(distinct)) - len(_split(teacher, distinct, folder, again=1)[1]))
    requests = left + repeats + more
    costs = [told.cost for told in sample.values() if told.cost is not None]
    return Estimate(
        texts=len(texts),
        distinct=len(distinct),
        known=len(distinct) - left,
        to_ask=left,
        repeats=repeats,
        more=more,
        sampled=len(sample),
        probed=probed,
        tokens_in=round(requests * _mean([told.tokens_in for told in sample.values()])),
        tokens_out=round(requests * _mean([told.tokens_out for told in sample.values()])),
        cost=requests * _mean(costs) if costs or not requests else None,
        seconds=requests * median([told.seconds for told in sample.values()] or [0.0]) / teacher.parallel,
        sample=sample,
    )


def self_agreement(
    teacher: Teacher,
    texts: Sequence[str],
    *,
    folder: Path,
    rule: Rule = EXACT,
    rows: int = ASKED_TWICE,
    delta: float = 0.05,
    seed: int = 0,
    budget: Budget | Purse | None = None,
    progress: Show | None = None,
) -> SelfAgreement | None:
    """Asks for up to `rows` texts again and compares by `rule`; the interval holds with probability 1 − `delta`.

    First answers come from the folder where they are known, second ones are kept there too. None where no text was
    answered twice: the budget allowed none, or the teacher refused them.
    """
    distinct, purse = sorted(set(texts)), purse_of(budget)
    picked = random.Random(seed).sample(distinct, min(rows, len(distinct)))
    first = ask_all(teacher, picked, folder=folder, budget=purse, progress=progress).told
    second = ask_all(teacher, picked, folder=folder, budget=purse, progress=progress, again=1).told
    pairs = [(one, two) for one, two in zip(first, second, strict=True) if one is not None and two is not None]
    if not pairs:
        return None
    agrees = agreements([two.answer for _, two in pairs], [one.answer for one, _ in pairs], rule)
    count, equal, whole = len(pairs), float(agrees.sum()), is_whole(rule)

    def bound(total: float) -> float:
        return risk_upper_bound(round(total), count, delta / 2) if whole else loss_upper_bound(total, count, delta / 2)

    return SelfAgreement(rows=count, equal=equal, low=1.0 - bound(count - equal), high=bound(equal), whole=whole)


def _split(
    teacher: Teacher, texts: Sequence[str], folder: Path, *, again: int = 0
) -> tuple[list[str], dict[str, Told]]:
    """Texts that are still to be asked, and what was told of the others."""
    waiting, known = list[str](), dict[str, Told]()
    with AnswerBook(folder) as book:
        for text in texts:
            told = book.find(key_of(teacher.digest, text, again))
            if told is None:
                waiting.append(text)
            else:
                known[text] = told
    return waiting, known


def _of_all_lengths(texts: Sequence[str], count: int) -> list[str]:
    """`count` texts from short to long: the middle of each of as many equal parts."""
    by_length = sorted(texts, key=len)
    count = min(count, len(by_length))
    return [by_length[(2 * part + 1) * len(by_length) // (2 * count)] for part in range(count)]


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0
