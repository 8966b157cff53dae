"""The fit of a static expert, against scikit-learn's on the same features."""

from __future__ import annotations

import numpy as np
import pytest

from puhui.compress.logistic import FloatArray, fit_logistic

DRAW = np.random.default_rng(0)
FEATURES = DRAW.normal(size=(200, 30)).astype(np.float32)
CLASSES = (FEATURES[:, :4] + 0.5 * DRAW.normal(size=(200, 4))).argmax(axis=1)
HARD = np.eye(4, dtype=np.float32)[CLASSES]


def kernel(given: FloatArray) -> FloatArray:
    product: FloatArray = FEATURES @ (FEATURES.T @ given)
    return product


def test_it_finds_the_one_optimum() -> None:
    linear = pytest.importorskip("sklearn.linear_model", reason="the demo extra is not installed")
    penalty = 1e-2
    weights = FEATURES.T @ fit_logistic(kernel, HARD, penalty=penalty, steps=200)
    # scikit-learn: C · Σ loss + ½‖A‖², which is ours at C = 1 / (2 · penalty · rows)
    reference = linear.LogisticRegression(C=1 / (2 * penalty * 200), fit_intercept=False, tol=1e-8, max_iter=1000)
    best = reference.fit(FEATURES, CLASSES).coef_
    assert pytest.approx(best, abs=0.02) == weights.T


def test_soft_answers_are_copied_where_nothing_forbids_it() -> None:
    soft = np.full((30, 3), 0.2, np.float32)
    soft[np.arange(30), np.arange(30) % 3] = 0.6
    logits = fit_logistic(lambda given: given, soft, penalty=0.0, steps=100)  # each row has a feature of its own
    told = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert told == pytest.approx(soft, abs=0.02)


def test_progress_counts_from_nothing_to_all() -> None:
    shares: list[float] = []
    fit_logistic(kernel, HARD, penalty=1e-6, steps=5, progress=shares.append)
    assert shares == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]


def test_it_may_start_near_the_end() -> None:
    steps: list[float] = []
    whole = fit_logistic(kernel, HARD, penalty=1e-3, steps=200, progress=steps.append)
    from_zero = len(steps)
    steps.clear()
    again = fit_logistic(kernel, HARD, penalty=1e-3, steps=200, start=np.float32(0.9) * whole, progress=steps.append)
    assert len(steps) < 0.8 * from_zero
    assert FEATURES.T @ again == pytest.approx(FEATURES.T @ whole, abs=0.05)


def test_rounding_at_the_optimum_is_no_way_on() -> None:
    """Twenty rows that nothing tells apart, half of each answer: all that is left of the gradient is rounding."""
    halves = np.eye(2, dtype=np.float32)[np.arange(20) % 2]
    for feature in (1.0, 0.1, 3.3):
        column = np.full((20, 1), feature, np.float32)
        square = column @ column.T
        logits = square @ fit_logistic(square.__matmul__, halves, penalty=0.0, steps=99)
        assert np.abs(logits).max() < 1e-3


def test_an_optimum_is_not_left() -> None:
    nothing = np.zeros((200, 30), np.float32)
    alike = np.full((200, 4), 0.25, np.float32)
    assert not fit_logistic(lambda given: nothing @ (nothing.T @ given), alike, penalty=1e-6, steps=9).any()


def test_a_poor_step_on_the_way_does_not_end_it() -> None:
    """In this problem single steps gain next to nothing long before the end; SciPy's optimum is the measure."""
    optimize = pytest.importorskip("scipy.optimize")
    draw = np.random.default_rng(70)
    rows = np.hstack([draw.normal(size=(80, 40)) * draw.choice([4, 1.2, 0.2], 40), np.ones((80, 1))])
    wanted = draw.dirichlet(np.full(6, 0.3), 80)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        logits = rows @ weights.reshape(41, 6)
        logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
        slope = rows.T @ (np.exp(logits) - wanted) / 80
        return -float((wanted * logits).sum()) / 80, slope.ravel()

    best = optimize.minimize(loss, np.zeros(246), jac=True, method="L-BFGS-B", options={"maxiter": 2000}).fun
    floor = -float((wanted * np.log(np.maximum(wanted, 1e-30))).sum()) / 80
    near = rows.astype(np.float32)
    fitted = fit_logistic(lambda given: near @ (near.T @ given), wanted.astype(np.float32), penalty=0.0, steps=200)
    assert loss(rows.T @ fitted.astype(np.float64))[0] - floor < 1.05 * (best - floor)
