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


def test_an_optimum_is_not_left() -> None:
    nothing = np.zeros((200, 30), np.float32)
    alike = np.full((200, 4), 0.25, np.float32)
    assert not fit_logistic(lambda given: nothing @ (nothing.T @ given), alike, penalty=1e-6, steps=9).any()
