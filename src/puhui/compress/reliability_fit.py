"""Learning how far an expert's margin can be trusted, from answers that it had not seen.

Method: logistic regression of "the big model agrees" on the margin, with one offset a label (Platt 1999). The
offsets are drawn to a common one, and slope and common offset to those of p₁ / (p₁ + p₂), by normal priors: the
greatest posterior exists whatever the rows are, all right, all wrong, few or none. A label that was rarely
answered keeps the common offset, one that is often confused gets its own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from puhui.core.errors import LearningError, MissingExtra
from puhui.models.reliability import Reliability

LEAST_SLOPE = 0.05


class Spreads(NamedTuple):
    """Standard deviations of the priors: of the slope about 1, of the common offset about 0, of a label's about it."""

    slope: float
    common: float
    label: float


OF_MARGINS = Spreads(slope=1.0, common=3.0, label=0.5)
"""Where nothing is known of how an expert's margins are to be read."""


def fit_reliability(
    margins: npt.ArrayLike,
    numbers: npt.ArrayLike,
    agrees: npt.ArrayLike,
    labels: int,
    *,
    spreads: Spreads = OF_MARGINS,
) -> Reliability:
    """The reliability of n answers with `margins` [n] and label `numbers` [n] < `labels`.

    `agrees` [n] is bool: whether the big model gave that answer. The expert must not have learned from these
    rows. Without rows it is p₁ / (p₁ + p₂). Raises LearningError where the lengths differ or a number is no
    label's, MissingExtra without SciPy.
    """
    try:
        from scipy.optimize import minimize
    except ImportError as error:  # pragma: no cover
        raise MissingExtra("Learning how reliable an expert is", "learn") from error
    margin = np.asarray(margins, np.float64)
    number = np.asarray(numbers, np.intp)
    right = np.asarray(agrees, np.float64)
    if not margin.shape == number.shape == right.shape or margin.ndim != 1:
        raise LearningError(f"{margin.shape} margins, {number.shape} numbers, {right.shape} agreements: give one each")
    if number.size and not 0 <= number.min() <= number.max() < labels:
        raise LearningError(f"label numbers lie in [{number.min()}, {number.max()}]; there are {labels} labels")
    start = np.concatenate([[1.0, 0.0], np.zeros(labels)])
    bounds = [(LEAST_SLOPE, None)] + [(None, None)] * (labels + 1)
    found = minimize(_lack, start, (margin, number, right, spreads), "L-BFGS-B", jac=True, bounds=bounds)
    slope = float(np.float32(found.x[0]))  # as it is stored
    return Reliability(slope, (found.x[1] + found.x[2:]).astype(np.float32))


def _lack(
    at: npt.NDArray[np.float64],
    margin: npt.NDArray[np.float64],
    number: npt.NDArray[np.intp],
    right: npt.NDArray[np.float64],
    spreads: Spreads,
) -> tuple[float, npt.NDArray[Any]]:
    """Negative log-posterior in nats and its gradient at (slope, common offset, offsets [k])."""
    score = at[0] * margin + at[1] + at[2:][number]
    wrong_by = 0.5 + 0.5 * np.tanh(0.5 * score) - right
    loss = float(np.logaddexp(0.0, score).sum() - right @ score)
    from_prior = np.concatenate(
        [[(at[0] - 1.0) / spreads.slope**2, at[1] / spreads.common**2], at[2:] / spreads.label**2]
    )
    loss += 0.5 * ((at[0] - 1.0) * from_prior[0] + float(at[1:] @ from_prior[1:]))
    from_rows = np.bincount(number, wrong_by, len(at) - 2)
    return loss, np.concatenate([[wrong_by @ margin, wrong_by.sum()], from_rows]) + from_prior
