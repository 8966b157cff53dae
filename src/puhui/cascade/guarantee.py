"""The guarantee: the lowest threshold at which an expert's risk is proven to be at most ε.

The loss of a request at threshold λ is ℓ if the expert answers it (confidence ≥ λ), else 0. ℓ lies in [0, 1]
and says how far the big model disagrees (`agreement`): 1 where it would not say the same at all. The risk R(λ)
is the mean loss over *all* requests, forwarded ones included. It is a promise to the user about traffic, not
about the answered part alone.

Method: Learn then Test (Angelopoulos, Bates, Candès, Jordan, Lei 2021, arXiv:2110.01052). S(λ) is the sum of
the losses at λ over n calibration rows. "R(λ) > ε" is refuted at level δ where S(λ) ≤ s, with s the greatest
sum for which a tail bound of P(S ≤ s) at risk ε is at most δ. There are two such bounds:

- Where ℓ is 0 or 1, S is Binomial(n, R) and its chance exact (`errors_allowed`).
- Where ℓ may lie between, Hoeffding–Bentkus (Bates, Angelopoulos, Lei, Malik, Jordan 2021, arXiv:2101.02703):
  min( exp(−n·h(s/n, ε)), e·P(Binomial(n, ε) ≤ ⌈s⌉) ), where h(a, b) is the Kullback–Leibler divergence of two
  coins (`loss_allowed`). The first is Hoeffding's (1963), the second Bentkus' (2004), and both bound the same
  chance whatever the draw, so that taking the smaller one costs nothing.

Which of the two is used follows from the kind of loss, bool or float, and never from the values that happen to
be in the draw: a draw that chose its own test would break the promise.

Walking λ from the most confident row down, S only grows: the walk stops before it would exceed s.

Why one level δ pays for the whole walk, though its steps are the data's own confidences: as ℓ ≥ 0, R falls in λ,
and as ℓ ≤ 1, it is continuous from the left (dominated convergence), so at λ* = sup{λ: R(λ) > ε} still
R(λ*) ≥ ε. If the chosen λ̂ breaks the promise then λ̂ ≤ λ*, hence S(λ*) ≤ S(λ̂) ≤ s; and λ* does not depend on the
data, so the chance of that is at most the tail bound at R(λ*), which is at most the one at ε, as both bounds
fall when the mean rises; and that is at most δ. Nothing was assumed of how λ̂ was found: no grid has to be fixed
beforehand, and ties are harmless as long as rows of equal confidence are taken or left together.

For the same reason the options known from non-monotone risks are not here. The p-value of an errorless step
is (1−ε)ⁿ however few rows it accepts, so no step needs n₀ accepted rows to be worth testing (`rows_needed`
is a condition on n), and as p-values only grow down the walk, further starts at δ/k could only lose power.

What it needs: rows drawn like the traffic, each independent of the others, none of which had any influence on
the expert (its training, or the choice of it among candidates). Only NumPy is needed.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np
import numpy.typing as npt

from puhui.core.errors import LearningError, SettingsError

_BISECTIONS = 60  # halvings of [0, 1]: the bound is then as exact as a float near 1 can be


class Calibration(msgspec.Struct, frozen=True):
    """What a calibration proved.

    With probability at least 1 − `delta` over the draw of the rows, the true risk at `threshold` is at most
    `risk_bound`, which is at most `epsilon`.
    """

    threshold: float | None
    """The expert may answer at confidence ≥ this; None: nothing was proven, and it may not answer."""
    coverage: float
    """Share of the calibration rows with confidence ≥ threshold, in [0, 1]."""
    errors: float
    """The sum of the losses of the rows with confidence ≥ threshold: where a loss is 0 or 1, the number of those
    on which the big model did not agree."""
    risk: float
    """errors / rows: the empirical joint risk."""
    risk_bound: float
    """Upper bound of the risk at the threshold (Clopper–Pearson, or Hoeffding–Bentkus where losses are
    fractions); 0 where nothing may be answered."""
    epsilon: float
    delta: float
    rows: int


def calibrate_threshold(
    confidence: npt.ArrayLike, agreement: npt.ArrayLike, *, epsilon: float = 0.02, delta: float = 0.05
) -> Calibration:
    """The lowest proven threshold for these calibration rows; see the module for the method and its proof.

    `confidence` (n,) is any finite score of which more is surer. `agreement` (n,) is 1 − loss: bool, or whole
    numbers 0 and 1, where a loss is 0 or 1 by its nature, which proves more; floats in [0, 1] where it may lie
    between (`agreement.agreements` gives the right one). The order of the rows does not matter. `epsilon` and
    `delta` lie strictly between 0 and 1.

    Raises LearningError for arrays that cannot be used, SettingsError for `epsilon` or `delta`. Too few rows
    (see `rows_needed`) are no error: the threshold is then None.

    >>> calibrate_threshold([0.9] * 200, [True] * 200).threshold
    0.9
    >>> calibrate_threshold([0.9] * 100, [True] * 100).threshold is None
    True
    >>> calibrate_threshold([0.9] * 400, [1.0] * 396 + [0.75] * 4).errors
    1.0
    """
    scores, losses, whole = _checked_rows(confidence, agreement)
    rows = scores.size
    allowed = errors_allowed(rows, epsilon, delta) if whole else loss_allowed(rows, epsilon, delta)
    found = _lowest_threshold(scores, losses, allowed)
    if found is None:
        return Calibration(None, 0.0, 0, 0.0, 0.0, epsilon, delta, rows)
    threshold, accepted, total = found
    # The bound has to survive the choice of the threshold. Where losses ended the walk, that is the bound at
    # `allowed` (the sum itself may be below it). Where all rows were accepted, λ = −∞ is a fixed hypothesis
    # with its own bound, and both cases together still fail with probability ≤ δ: if R(−∞) is above the bound
    # at `allowed`, either failure implies S(λ*) ≤ allowed, and if not, only the second can happen.
    counted = total if accepted == rows else allowed
    return Calibration(
        threshold=threshold,
        coverage=accepted / rows,
        errors=int(total) if whole else total,
        risk=total / rows,
        risk_bound=risk_upper_bound(int(counted), rows, delta) if whole else loss_upper_bound(counted, rows, delta),
        epsilon=epsilon,
        delta=delta,
        rows=rows,
    )


def rows_needed(epsilon: float, delta: float) -> int:
    """The fewest rows with which even an errorless expert can be proven: the least n with (1−ε)ⁿ ≤ δ.

    >>> rows_needed(0.02, 0.05), rows_needed(0.01, 0.05)
    (149, 299)
    """
    _check_share("epsilon", epsilon)
    _check_share("delta", delta)
    return math.ceil(math.log(delta) / math.log1p(-epsilon))


def spend(delta: float, attempt: int) -> float:
    """The part of δ for the `attempt`-th (from 1) calibration of one task: δ / (k(k+1)).

    The parts telescope to exactly δ over endless attempts, so by the union bound all promises ever made for
    the task hold together with probability ≥ 1 − δ, whether or not attempts share rows. Against 6δ/(π²k²) it
    gives a little less to the first attempt (0.50 δ for 0.61 δ) and more to all that follow. As rows are
    needed in proportion to ln(1/δ) only, the hundredth attempt needs about three times those of the first.

    >>> spend(0.05, 1), round(spend(0.05, 4), 6)
    (0.025, 0.0025)
    """
    _check_share("delta", delta)
    if attempt < 1:
        raise SettingsError(f"the calibration attempt is {attempt}; attempts count from 1")
    return delta / (attempt * (attempt + 1))


def errors_allowed(rows: int, epsilon: float, delta: float) -> int:
    """The most errors in `rows` that refute "risk > ε" at level δ; −1 where not even none does.

    >>> errors_allowed(2000, 0.02, 0.05), errors_allowed(100, 0.02, 0.05)
    (29, -1)
    """
    _check_share("epsilon", epsilon)
    _check_share("delta", delta)
    # P(X ≤ k) for every k at once. At k = rows it is 1, which no δ reaches, so that one may be left out.
    at_most = np.cumsum(np.exp(_log_chances(_log_choices(rows, rows - 1), rows, epsilon)))
    return int(np.searchsorted(at_most, delta, side="right")) - 1


def chance_of_at_most(errors: int, rows: int, risk: float) -> float:
    """P(Binomial(rows, risk) ≤ errors), summed exactly: the p-value of "the true risk is above `risk`".

    Rounding leaves a relative error of about 1e-12 at a thousand rows and 1e-8 at a million.

    >>> round(chance_of_at_most(1, 3, 0.5), 12)
    0.5
    """
    _check_share("risk", risk)
    if errors < 0 or errors >= rows:
        return 0.0 if errors < 0 else 1.0
    return min(1.0, float(np.exp(_log_chances(_log_choices(rows, errors), rows, risk)).sum()))


def risk_upper_bound(errors: int, rows: int, delta: float) -> float:
    """The upper Clopper–Pearson bound: the greatest risk p with P(Binomial(rows, p) ≤ errors) ≥ δ.

    Clopper and Pearson 1934, one-sided. One for `errors` ≥ `rows`.

    >>> round(risk_upper_bound(0, 149, 0.05), 4)
    0.0199
    """
    _check_share("delta", delta)
    if errors < 0 or rows < 1:
        raise LearningError(f"{errors} errors in {rows} rows; there can be no fewer than 0 in at least 1")
    if errors >= rows:
        return 1.0
    choices = _log_choices(rows, errors)
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if float(np.exp(_log_chances(choices, rows, middle)).sum()) > delta:
            low = middle
        else:
            high = middle
    return high


def loss_allowed(rows: int, epsilon: float, delta: float) -> float:
    """The greatest sum of losses in [0, 1] over `rows` that refutes "risk > ε" at level δ; −1 where not even 0 does.

    By Hoeffding–Bentkus; less than `errors_allowed`, as more than 0 and 1 can happen.

    >>> loss_allowed(2000, 0.02, 0.05), loss_allowed(100, 0.02, 0.05)
    (26.0, -1.0)
    """
    _check_share("epsilon", epsilon)
    _check_share("delta", delta)
    bentkus = float(errors_allowed(rows, epsilon, delta / math.e))
    needed = -math.log(delta)
    if rows * _divergence(0.0, epsilon) < needed:
        return bentkus
    low, high = 0.0, epsilon  # the divergence falls from low to high
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if rows * _divergence(middle, epsilon) >= needed:
            low = middle
        else:
            high = middle
    return max(bentkus, rows * low)


def chance_of_loss_at_most(total: float, rows: int, risk: float) -> float:
    """At least P(S ≤ total) for the sum S of `rows` losses in [0, 1] with mean `risk`: Hoeffding–Bentkus.

    >>> round(chance_of_loss_at_most(10.5, 2000, 0.02), 9)
    1.33e-07
    """
    _check_share("risk", risk)
    if total < 0 or rows < 1:
        return 0.0 if total < 0 else 1.0
    hoeffding = math.exp(-rows * _divergence(min(total / rows, risk), risk))
    return min(1.0, hoeffding, math.e * chance_of_at_most(math.ceil(total), rows, risk))


def loss_upper_bound(total: float, rows: int, delta: float) -> float:
    """The upper Hoeffding–Bentkus bound: the greatest risk that losses which sum to `total` do not refute.

    `chance_of_loss_at_most`, inverted: the lower of its two parts' bounds. Never below `risk_upper_bound`.

    >>> round(loss_upper_bound(0.0, 149, 0.05), 4)
    0.0199
    """
    _check_share("delta", delta)
    if not total >= 0 or rows < 1:
        raise LearningError(f"losses of {total} in {rows} rows; there can be no fewer than 0 in at least 1")
    if total >= rows:
        return 1.0
    low, high = total / rows, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if rows * _divergence(total / rows, middle) < -math.log(delta):
            low = middle
        else:
            high = middle
    return min(high, risk_upper_bound(math.ceil(total), rows, delta / math.e))


def _divergence(first: float, second: float) -> float:
    """KL(Bernoulli(first) ‖ Bernoulli(second)) in nats; `second` strictly between 0 and 1."""
    ones = first * math.log(first / second) if first > 0.0 else 0.0
    zeros = (1.0 - first) * (math.log1p(-first) - math.log1p(-second)) if first < 1.0 else 0.0
    return max(0.0, ones + zeros)


def _lowest_threshold(
    scores: npt.NDArray[np.float64], losses: npt.NDArray[np.float64], allowed: float
) -> tuple[float, int, float] | None:
    """The lowest of `scores` at or above which losses sum to `allowed` at most, the rows there, and that sum."""
    order = np.lexsort((losses, -scores))  # by loss within ties: the sum is then the same to its last bit
    ranked, sums = scores[order], np.cumsum(losses[order])
    last = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), ranked.size - 1)  # of rows that tie
    passed = int(np.count_nonzero(sums[last] <= allowed))
    if not passed:
        return None
    place = last[passed - 1]
    return float(ranked[place]), int(place) + 1, float(sums[place])


def _log_choices(rows: int, most: int) -> npt.NDArray[np.float64]:
    """ln C(rows, j) for j = 0 … most, shape (most + 1,)."""
    drawn = np.arange(1, most + 1)
    return np.concatenate(([0.0], np.cumsum(np.log((rows - drawn + 1) / drawn))))


def _log_chances(choices: npt.NDArray[np.float64], rows: int, risk: float) -> npt.NDArray[np.float64]:
    """ln P(Binomial(rows, risk) = j) for each j that `choices` has; terms too small for a float become 0."""
    j: npt.NDArray[np.float64] = np.arange(choices.size, dtype=np.float64)
    return choices + j * math.log(risk) + (rows - j) * math.log1p(-risk)


def _checked_rows(
    confidence: npt.ArrayLike, agreement: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], bool]:
    """Confidence and loss (n,), and whether a loss is 0 or 1 by its nature; LearningError names what is wrong."""
    scores, given = np.asarray(confidence, dtype=np.float64), np.asarray(agreement)
    if scores.ndim != 1 or scores.shape != given.shape:
        raise LearningError(
            f"calibration needs one confidence and one agreement per row; got the shapes {scores.shape} and "
            f"{given.shape}"
        )
    if not scores.size:
        raise LearningError("calibration got no rows; it needs at least one, and rows_needed() to prove much")
    bad = np.flatnonzero(~np.isfinite(scores))
    if bad.size:
        raise LearningError(
            f"the confidence of calibration row {bad[0]} is {scores[bad[0]]}; it must be a finite number"
        )
    whole = given.dtype.kind in "biu"
    losses = 1.0 - given.astype(np.float64)
    odd = np.flatnonzero((losses != 0.0) & (losses != 1.0) if whole else ~((losses >= 0.0) & (losses <= 1.0)))
    if odd.size:
        allowed = "be 0 or 1" if whole else "lie between 0 and 1"
        raise LearningError(f"the agreement of calibration row {odd[0]} is {given[odd[0]]}; it must {allowed}")
    return scores, losses, whole


def _check_share(name: str, value: float) -> None:
    """Raises SettingsError unless 0 < value < 1."""
    if not 0.0 < value < 1.0:  # false for NaN too
        raise SettingsError(f"{name} is {value}; it must lie strictly between 0 and 1")
