"""The inner thresholds of a cascade: least cost at the greatest coverage.

Rows that neither an expert nor the calibration has seen say which expert would answer what. With thresholds τ the
cascade has one confidence and one agreement for each row, and so a coverage: the largest share that can be answered,
the surest first, with disagreement on at most ε of all rows. (Nothing is proven here. That is `cascade.guarantee`'s
part, on rows of its own.) Each τ is tried at quantiles of its expert's confidences, "always" and "never" among them,
one expert after the other until nothing changes. Disagreements that are counted are a handful of these rows, and
choices by them hang on one or two. Those that are expected (1 − confidence, once each expert's confidence has been set
right on these rows as far as they say that it is wrong) do not, but believe an expert of few answers too much. So each
row's disagreement is the mean of the two. And less than ε is allowed, as a proof allows less: the coverage that counts
is the mean of those at some shares of ε. Of all that come within `SLACK` of the greatest coverage the cheapest is
taken: smaller differences are luck. An expert that need not be asked is left out, and where one alone is left, that one
is the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from puhui.compress.reliability_fit import Spreads, fit_reliability
from puhui.core.errors import LearningError
from puhui.models.expert_cascade import CascadeModel
from puhui.models.family import ExpertModel, FloatArray

BoolArray: TypeAlias = npt.NDArray[np.bool_]

QUANTILES = 40
PASSES = 3
SLACK = 0.02
SHARES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
"""Of ε. On CLINC150, draws of 800 rows to choose on and 2,400 to prove 1 %, a static expert before all layers: coverage
0.961 ± 0.015 at 1/28 of the big model's cost; by counted disagreements alone 0.970 ± 0.010 at 1/15. From 1,000 answers,
where the static expert alone has 0.614: 0.599 and 0.589; by expected ones alone 0.567 (`bench/compress_log.md`)."""
TRUST = Spreads(slope=0.1, common=0.3, label=0.05)
"""How far an expert's own confidence may be off: much less than a margin's that nobody has looked at yet."""
MOST_SURE = 1e-7
"""As near to 0 and to 1 as a confidence is believed."""
NEVER = 2.0
"""A threshold above every confidence."""


class Prospect(msgspec.Struct, frozen=True):
    """What may be expected, on the rows that chose it: a little more than new rows will give."""

    thresholds: tuple[float, ...]
    coverage: float
    """Share of all rows that is answered at ε, in [0, 1]."""
    expected: float
    """The mean of the same at `SHARES` of ε, by disagreements that are half counted and half expected."""
    agreement: float
    cost: float
    """Mean of all rows, in the unit of `costs`."""


class BuiltCascade(msgspec.Struct, frozen=True):
    """`model` is a cascade, or one of the experts where the others add nothing, and `prospect` what it promises."""

    model: ExpertModel
    family: str
    prospect: Prospect
    alone: tuple[Prospect, ...]
    """The same of each expert by itself."""


def build_cascade(
    families: Sequence[str],
    steps: Sequence[ExpertModel],
    texts: Sequence[str],
    answers: Sequence[str],
    *,
    costs: Sequence[float],
    epsilon: float = 0.02,
) -> BuiltCascade:
    """Joins experts, cheapest first, by thresholds chosen on `texts` and the big model's `answers` to them.

    No expert may have learned from these rows, nor may they calibrate the result. `costs[i]` is of one answer of
    expert i in any unit. Raises LearningError for lengths that differ, no rows, or fewer than two experts.
    """
    if len(texts) != len(answers) or not texts:
        raise LearningError(f"{len(texts)} texts and {len(answers)} answers: a cascade needs one each, and some")
    if not len(families) == len(steps) == len(costs) or len(steps) < 2:
        found = f"{len(steps)} experts, {len(families)} families, {len(costs)} costs"
        raise LearningError(f"{found}: a cascade needs one each, and two experts or more")
    trial = _Trial.of(steps, texts, answers, costs, epsilon)
    alone = tuple(trial.prospect(_only(number, len(steps))) for number in range(len(steps)))
    best = trial.search(max(alone, key=lambda found: (found.expected, -found.cost)))
    kept = [number for number, asked in enumerate(trial.asked(best.thresholds)) if asked]
    if len(kept) == 1:
        return BuiltCascade(steps[kept[0]], families[kept[0]], best, alone)
    thresholds = [best.thresholds[number] for number in kept[:-1]]
    model = CascadeModel([families[number] for number in kept], [steps[number] for number in kept], thresholds)
    return BuiltCascade(model, "cascade", best, alone)


class _Trial(msgspec.Struct, frozen=True, eq=False):
    """What each of m experts says of n rows: confidences, agreements and how doubtful these are, each [m, n]."""

    confidence: FloatArray
    agrees: BoolArray
    doubt: FloatArray
    costs: tuple[float, ...]
    epsilon: float

    @classmethod
    def of(
        cls,
        steps: Sequence[ExpertModel],
        texts: Sequence[str],
        answers: Sequence[str],
        costs: Sequence[float],
        epsilon: float,
    ) -> _Trial:
        said = [step.predict_many(texts) for step in steps]
        agrees = np.array([[one == answer for one, answer in zip(labels, answers, strict=True)] for labels, _ in said])
        confidence = np.array([sure for _, sure in said], np.float32)
        doubt = np.array([_doubt(*row) for row in zip(confidence, agrees, strict=True)], np.float32)
        return cls(confidence, agrees, doubt, tuple(costs), epsilon)

    def prospect(self, thresholds: tuple[float, ...]) -> Prospect:
        """What the cascade with these thresholds would do."""
        rows = np.arange(self.confidence.shape[1])
        by = self._by(thresholds)
        sure, right = self.confidence[by, rows], self.agrees[by, rows]
        paid = np.cumsum(np.where(self.asked(thresholds), self.costs, 0.0))
        at = coverage(sure, ~right, self.epsilon)
        doubt = self.doubt[by, rows]
        expected = float(np.mean([coverage(sure, doubt, share * self.epsilon) for share in SHARES]))
        return Prospect(thresholds, at, expected, float(right.mean()), float(paid[by].mean()))

    def asked(self, thresholds: tuple[float, ...]) -> list[bool]:
        """Whether an expert is part of the cascade: it may answer, and no one before it answers all."""
        always = next((number for number, threshold in enumerate(thresholds) if threshold <= 0.0), len(thresholds))
        return [
            number == always or (number < always and thresholds[number] <= 1.0) for number in range(len(self.costs))
        ]

    def search(self, best: Prospect) -> Prospect:
        """Better thresholds than these, one expert's after the other's."""
        most = best.expected
        for _ in range(PASSES):
            before = best
            for number in range(len(best.thresholds)):
                marks = np.quantile(self.confidence[number], np.linspace(0.0, 1.0, QUANTILES + 1)[1:-1])
                tried = [self.prospect(_with(best.thresholds, number, float(mark))) for mark in (0.0, *marks, NEVER)]
                most = max(most, *(one.expected for one in tried))
                enough = [one for one in (best, *tried) if one.expected >= most - SLACK]
                best = min(enough or tried, key=lambda one: (one.cost, -one.expected))
            if best.thresholds == before.thresholds:
                break
        return best

    def _by(self, thresholds: tuple[float, ...]) -> npt.NDArray[np.intp]:
        """The number [n] of the expert that answers each row."""
        passed = self.confidence[:-1] >= np.array(thresholds, np.float32)[:, None]
        always = np.ones((1, passed.shape[1]), np.bool_)
        found: npt.NDArray[np.intp] = np.concatenate([passed, always]).argmax(axis=0)
        return found


def coverage(confidence: FloatArray, wrong: BoolArray | FloatArray, epsilon: float) -> float:
    """The largest share of rows, the surest first, with ε of all rows at most answered wrongly; not a proof.

    `wrong` [n] says whether a row is, or how probably. Rows of equal confidence are answered together, as a threshold
    answers them.

    >>> coverage(np.array([0.9, 0.8, 0.8, 0.1], np.float32), np.array([False, False, True, False]), 0.2)
    0.25
    """
    order = np.argsort(-confidence, kind="stable")
    ranked = confidence[order]
    allowed = np.cumsum(wrong[order], dtype=np.float64) <= epsilon * len(order)
    last = np.append(ranked[1:] != ranked[:-1], True)  # of its ties
    places = np.flatnonzero(allowed & last)
    return float(places[-1] + 1) / len(order) if places.size else 0.0


def _doubt(confidence: FloatArray, agrees: BoolArray) -> FloatArray:
    """Of each answer [n] the mean of whether the big model disagrees and how probably, as the confidence says."""
    sure = np.clip(confidence.astype(np.float64), MOST_SURE, 1 - MOST_SURE)
    margins, numbers = np.log(sure / (1 - sure)), np.zeros(len(sure), np.intp)
    fitted = fit_reliability(margins, numbers, agrees, 1, spreads=TRUST)
    expected = 1 - fitted.confidences(margins.astype(np.float32), numbers)
    doubt: FloatArray = 0.5 * (expected + ~agrees)
    return doubt


def _only(number: int, steps: int) -> tuple[float, ...]:
    """Thresholds with which expert `number` answers all."""
    return tuple(NEVER if step < number else 0.0 for step in range(steps - 1))


def _with(thresholds: tuple[float, ...], number: int, threshold: float) -> tuple[float, ...]:
    return (*thresholds[:number], threshold, *thresholds[number + 1 :])
