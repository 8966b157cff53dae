"""The figures of a card that are counted from held-out rows: confusions, reliability and its error.

Reliability is counted in bins of equal count (Nguyen and O'Connor 2015, arXiv:1508.05154), because the
confidences of a good expert crowd near 1, where bins of equal width would put nearly all rows into one. The
expected calibration error is Naeini, Cooper and Hauskrecht's (2015) over the same bins. Intervals are Wilson's
(1927): they stay within [0, 1] and are right near its ends, where those of a normal approximation are not.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from puhui.bundles.card import Bin, Confusion
from puhui.core.errors import LearningError

WORST = 20
BINS = 10
Z95 = 1.959963984540054  # the normal distribution's 97.5 % quantile


def confusions_of(
    answers: Sequence[str], said: Sequence[str], *, agrees: Sequence[bool] | None = None, worst: int = WORST
) -> tuple[Confusion, ...]:
    """The commonest pairs of the big model's `answers` and what the expert `said` instead, the worst first.

    Row by row and of one length; LearningError if not. `agrees` says which rows are the same answer (None:
    those with the same text); they are no confusion.

    >>> confusions_of(["a", "b", "b", "c"], ["a", "c", "c", "b"])[0]
    Confusion(big='b', expert='c', count=2, share=0.6666666666666666)
    """
    _check_length("answers", len(answers), "said", len(said))
    same = agrees if agrees is not None else [big == expert for big, expert in zip(answers, said, strict=True)]
    _check_length("answers", len(answers), "agrees", len(same))
    pairs = Counter(pair for pair, agree in zip(zip(answers, said, strict=True), same, strict=True) if not agree)
    found = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
    return tuple(Confusion(*pair, count, count / pairs.total()) for pair, count in found[:worst])


def reliability_of(confidence: npt.ArrayLike, agrees: npt.ArrayLike, *, bins: int = BINS) -> tuple[Bin, ...]:
    """The share of rows that agree, by confidence, in at most `bins` bins of nearly equal count, the least sure first.

    `confidence` (n,) in [0, 1], `agrees` (n,) bool, or in [0, 1] where rows may agree in part, n ≥ 0. Rows of equal
    confidence are never parted, so that the bins do not depend on the order of the rows: where many tie, there are
    fewer bins.

    >>> [(b.low, b.high, b.rows, b.agreement) for b in reliability_of([0.9, 0.5, 0.8, 0.6], [1, 0, 1, 1], bins=2)]
    [(0.5, 0.6, 2, 0.5), (0.8, 0.9, 2, 1.0)]
    """
    scores = np.asarray(confidence, dtype=np.float64)
    right = np.asarray(agrees, dtype=np.float64)
    _check_length("confidence", scores.size, "agrees", right.size)
    if not scores.size:
        return ()
    order = np.argsort(scores, kind="stable")
    scores, right = scores[order], right[order]
    # A cut in the middle of a tie moves down to the tie's beginning; cuts that meet become one.
    wished = np.arange(1, bins) * scores.size // bins
    edges = sorted({0, scores.size, *np.searchsorted(scores, scores[wished]).tolist()})
    parts = [slice(low, high) for low, high in itertools.pairwise(edges)]
    return tuple(
        Bin(
            low=float(scores[part][0]),
            high=float(scores[part][-1]),
            confidence=float(scores[part].mean()),
            rows=part.stop - part.start,
            agreement=float(right[part].mean()),
        )
        for part in parts
    )


def calibration_error(bins: Sequence[Bin]) -> float | None:
    """The expected calibration error in [0, 1]: the mean distance of confidence and agreement, by rows.

    None without rows. It judges the confidence as a probability; the guarantee needs it as a ranking only.

    >>> calibration_error([Bin(0.5, 0.7, 0.6, 50, 0.5), Bin(0.7, 1.0, 0.9, 50, 0.9)])
    0.05
    """
    rows = sum(each.rows for each in bins)
    if not rows:
        return None
    return round(sum(each.rows * abs(each.confidence - each.agreement) for each in bins) / rows, 12)


def wilson_interval(share: float, rows: int) -> tuple[float, float]:
    """The 95 % interval of a share in [0, 1] that was counted in `rows` rows; (0, 1) without rows.

    >>> [round(bound, 3) for bound in wilson_interval(0.9, 100)]
    [0.826, 0.945]
    """
    if rows < 1:
        return 0.0, 1.0
    middle = share + Z95**2 / (2 * rows)
    spread = Z95 * math.sqrt(share * (1 - share) / rows + Z95**2 / (4 * rows**2))
    scale = 1 + Z95**2 / rows
    # At a share of 0 or 1 that end is exact, which rounding must not spoil.
    return (middle - spread) / scale if share > 0 else 0.0, (middle + spread) / scale if share < 1 else 1.0


def _check_length(first: str, ours: int, second: str, theirs: int) -> None:
    if ours != theirs:
        raise LearningError(f"{ours} {first} but {theirs} {second}; give one of each for every row")
