"""Logistic regression of n texts on very many features, by as many numbers as there are texts and labels.

The loss is convex: mean cross-entropy against the big model's answers (or probabilities: Hinton et al. 2015)
plus `penalty` · ‖A‖², where A [features, labels] are the weights. Its gradient in A is Xᵀ(R/n + 2·penalty·B)
whenever A = XᵀB, R being predicted minus wanted probabilities, so that every iterate from zero has that form
(the representer theorem), and only B [n, labels] is kept. L-BFGS (Nocedal 1980) runs on B with the inner
product of A, ⟨B, C⟩ = tr(Bᵀ K C), K = XXᵀ: the same steps as on A, at a fraction of the memory. Logits KB are
kept beside B, so that a step multiplies by K once, and its line search not at all. No numbers are drawn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.linalg.blas import saxpy

FloatArray = npt.NDArray[np.float32]
Kernel = Callable[[FloatArray], FloatArray]
"""Multiplies [n, k] by K [n, n], which is symmetric and has no negative eigenvalue."""

HISTORY = 8  # steps remembered: more gains nothing
LEAST_GAIN = 5e-3  # the fit ends when as many steps as are remembered lower the excess loss by a smaller share
LEAST_STEP = 1e-3
LEAST_CURVATURE = 1e-6
LEAST_SLOPE = 1e-12  # a gradient of smaller square is rounding: the fit has ended


class _Pair(NamedTuple):
    """An array [n, k] and K times it."""

    plain: FloatArray
    image: FloatArray

    def plus(self, factor: float, other: _Pair) -> _Pair:
        share = np.float32(factor)
        return _Pair(self.plain + share * other.plain, self.image + share * other.image)

    def times(self, factor: float) -> _Pair:
        return _Pair(self.plain * np.float32(factor), self.image * np.float32(factor))

    def add(self, factor: float, other: _Pair) -> None:
        """In place, which is a third of the memory's work of `plus`."""
        for mine, others in zip(self, other, strict=True):
            saxpy(others.reshape(-1), mine.reshape(-1), a=factor)

    def dot(self, other: _Pair) -> float:
        return float(np.vdot(self.plain, other.image))


class _Move(NamedTuple):
    """A step, the change of the gradient over it, and one over their product."""

    step: _Pair
    change: _Pair
    inverse: float


def fit_logistic(
    kernel: Kernel,
    wanted: FloatArray,
    *,
    penalty: float,
    steps: int,
    start: FloatArray | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> FloatArray:
    """B [n, k] for wanted probabilities [n, k], rows of which sum to one; see the module.

    At most `steps` multiplications by the kernel, from `start` [n, k] on, or from zero. `progress` is called with
    shares in [0, 1].
    """
    floor = _entropy(wanted)  # no loss is below: what is above it is left to gain
    values: deque[float] = deque(maxlen=HISTORY)
    at = _Pair(np.zeros_like(wanted), np.zeros_like(wanted)) if start is None else _Pair(start, kernel(start))
    value, slope = _loss(at.image, wanted)
    value += penalty * at.dot(at)
    slope += np.float32(2.0 * penalty) * at.plain
    gradient = _Pair(slope, kernel(slope))
    moves: deque[_Move] = deque(maxlen=HISTORY)
    for step in range(steps):
        progress(step / steps)
        if gradient.dot(gradient) <= LEAST_SLOPE:
            break
        found = _search(at, _direction(gradient, moves), gradient, wanted, penalty, value)
        if found is None:
            break
        moved, lower, slope = found
        at = at.plus(1.0, moved)
        plain = slope + np.float32(2.0 * penalty) * at.plain
        new = _Pair(plain, kernel(plain))
        change = new.plus(-1.0, gradient)
        curvature = moved.dot(change)
        values.append(value)
        value, gradient = lower, new
        if len(values) == HISTORY and values[0] - value <= LEAST_GAIN * (values[0] - floor):
            break
        # The loss is convex, so that only rounding makes this as good as zero or less.
        if curvature > LEAST_CURVATURE * max(0.0, moved.dot(moved) * change.dot(change)) ** 0.5:
            moves.append(_Move(moved, change, 1.0 / curvature))
    progress(1.0)
    return at.plain


def _direction(gradient: _Pair, moves: deque[_Move]) -> _Pair:
    """L-BFGS's two loops; before the first move, the gradient scaled to length one."""
    away = gradient.times(-1.0)
    if not moves:
        return away.times(gradient.dot(gradient) ** -0.5)
    shares = []
    for move in reversed(moves):
        shares.append(move.inverse * move.step.dot(away))
        away.add(-shares[-1], move.change)
    last = moves[-1]
    away = away.times(1.0 / (last.inverse * last.change.dot(last.change)))
    for move, share in zip(moves, reversed(shares), strict=True):
        away.add(share - move.inverse * move.change.dot(away), move.step)
    return away


def _search(
    at: _Pair, way: _Pair, gradient: _Pair, wanted: FloatArray, penalty: float, value: float
) -> tuple[_Pair, float, FloatArray] | None:
    """The longest of the steps 1, ½, ¼ … that lowers the loss enough (Armijo), the loss there, its slope."""
    falling, length = gradient.dot(way), 1.0
    square, mixed, far = at.dot(at), at.dot(way), way.dot(way)
    while length >= LEAST_STEP:
        loss, slope = _loss(at.image + np.float32(length) * way.image, wanted)
        loss += penalty * (square + 2.0 * length * mixed + length * length * far)
        if loss <= value + 1e-4 * length * falling:
            return way.times(length), loss, slope
        length *= 0.5
    return None


def _entropy(wanted: FloatArray) -> float:
    """Mean entropy in nats of probabilities [n, k]."""
    return -float(np.vdot(wanted, np.log(np.maximum(wanted, 1e-30)))) / len(wanted)


def _loss(logits: FloatArray, wanted: FloatArray) -> tuple[float, FloatArray]:
    """Mean cross-entropy in nats, and its gradient [n, k] in the logits."""
    logits = logits - logits.max(axis=1, keepdims=True)
    slope = np.exp(logits)
    sums = slope.sum(axis=1, keepdims=True)
    loss = (float(np.log(sums).sum()) - float(np.vdot(wanted, logits))) / len(wanted)
    slope /= sums
    slope -= wanted
    slope /= np.float32(len(wanted))
    return loss, slope
