"""The calibration: its laws, its ties, its references (scipy, MAPIE), and whether it keeps its promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from puhui.cascade.guarantee import (
    Calibration,
    calibrate_threshold,
    chance_of_at_most,
    chance_of_loss_at_most,
    errors_allowed,
    loss_allowed,
    loss_upper_bound,
    risk_upper_bound,
    rows_needed,
    spend,
)
from puhui.core.errors import LearningError, SettingsError

shares = st.floats(0.005, 0.6)


@st.composite
def calibration_rows(draw, most=400):
    """Confidences and agreements, often with ties, and with errors in every place."""
    rows = draw(st.integers(1, most))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.sampled_from([2, 5, 50, 10**9]))
    confidence = rng.integers(0, levels, rows) / levels
    agrees = rng.random(rows) > draw(st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]))
    return confidence, agrees


def walk(confidence, agrees, epsilon, delta):
    """Learn then Test as it is written in the paper: step by step, with scipy's binomial."""
    from scipy.stats import binom

    found = None
    for level in sorted(set(confidence.tolist()), reverse=True):
        errors = int(np.sum((confidence >= level) & ~agrees))
        if binom.cdf(errors, confidence.size, epsilon) > delta:
            break
        found = level
    return found


@settings(max_examples=200, deadline=None)
@given(calibration_rows(), shares, shares)
def test_threshold_is_where_the_walk_ends(rows, epsilon, delta):
    confidence, agrees = rows
    # The verdict may fall either way where a p-value equals δ up to rounding.
    near = [abs(chance_of_at_most(k, agrees.size, epsilon) / delta - 1) for k in range(agrees.size)]
    assume(min(near) > 1e-9)
    found = calibrate_threshold(confidence, agrees, epsilon=epsilon, delta=delta)
    assert found.threshold == walk(confidence, agrees, epsilon, delta)


@settings(max_examples=200, deadline=None)
@given(calibration_rows(), shares, shares)
def test_calibration_reports_what_is_at_its_threshold(rows, epsilon, delta):
    confidence, agrees = rows
    found = calibrate_threshold(confidence, agrees, epsilon=epsilon, delta=delta)
    assert (found.rows, found.epsilon, found.delta) == (agrees.size, epsilon, delta)
    assert found.risk == found.errors / found.rows
    assert 0 <= found.risk_bound <= epsilon * (1 + 1e-9)
    if found.threshold is None:
        assert (found.coverage, found.errors, found.risk_bound) == (0, 0, 0)
        return
    accepted = confidence >= found.threshold
    assert found.coverage == np.mean(accepted)
    assert found.errors == np.sum(accepted & ~agrees)
    assert chance_of_at_most(found.errors, found.rows, epsilon) <= delta * (1 + 1e-9)
    assert found.risk_bound >= risk_upper_bound(found.errors, found.rows, delta)


@settings(max_examples=100, deadline=None)
@given(calibration_rows(), shares, shares, st.integers(0, 1000))
def test_order_of_rows_does_not_matter(rows, epsilon, delta, seed):
    confidence, agrees = rows
    order = np.random.default_rng(seed).permutation(agrees.size)
    assert calibrate_threshold(confidence, agrees, epsilon=epsilon, delta=delta) == calibrate_threshold(
        confidence[order], agrees[order], epsilon=epsilon, delta=delta
    )


@settings(max_examples=100, deadline=None)
@given(calibration_rows(), shares, shares, shares)
def test_more_epsilon_or_delta_never_covers_less(rows, one, other, fixed):
    low, high = sorted((one, other))
    confidence, agrees = rows

    def coverage(epsilon, delta):
        return calibrate_threshold(confidence, agrees, epsilon=epsilon, delta=delta).coverage

    assert coverage(low, fixed) <= coverage(high, fixed)
    assert coverage(fixed, low) <= coverage(fixed, high)


@settings(max_examples=100, deadline=None)
@given(calibration_rows(), shares)
def test_one_more_error_never_lowers_the_threshold(rows, epsilon):
    confidence, agrees = rows
    worse = agrees.copy()
    worse[agrees.size // 2] = False
    before = calibrate_threshold(confidence, agrees, epsilon=epsilon).threshold
    after = calibrate_threshold(confidence, worse, epsilon=epsilon).threshold
    assert after is None or (before is not None and before <= after)


def test_tied_rows_are_taken_or_left_together():
    confidence = np.repeat([0.9, 0.5, 0.1], 300)
    agrees = np.ones(900, bool)
    agrees[300:340] = False  # more than the 11 errors allowed, all at 0.5
    assert errors_allowed(900, 0.02, 0.05) == 10
    found = calibrate_threshold(confidence, agrees)
    assert (found.threshold, found.errors) == (0.9, 0)
    # The walk was ended by errors, so the bound is that of the errors allowed, not of the none found.
    assert found.risk_bound == risk_upper_bound(10, 900, 0.05)
    agrees[0:20] = False
    assert calibrate_threshold(confidence, agrees).threshold is None


def test_everything_right_is_bounded_by_its_own_errors():
    found = calibrate_threshold(np.linspace(0, 1, 2000), np.ones(2000, bool))
    assert (found.threshold, found.coverage, found.errors) == (0.0, 1.0, 0)
    assert found.risk_bound == risk_upper_bound(0, 2000, 0.05) < 0.0015


@pytest.mark.parametrize("rows", [1, 10, 149, 2000, 100_000])
@pytest.mark.parametrize("risk", [0.001, 0.02, 0.3, 0.9])
def test_binomial_agrees_with_scipy(rows, risk):
    from scipy.stats import beta, binom

    for errors in sorted({0, 1, int(rows * risk * 0.8), int(rows * risk), rows // 2, rows - 1}):
        if errors >= rows:
            continue
        exact = float(binom.cdf(errors, rows, risk))
        assert chance_of_at_most(errors, rows, risk) == pytest.approx(exact, rel=1e-8, abs=1e-290)
        bound = float(beta.ppf(0.95, errors + 1, rows - errors))
        assert risk_upper_bound(errors, rows, 0.05) == pytest.approx(bound, rel=1e-8)
    for delta in (0.001, 0.05, 0.5, 0.999):
        allowed = errors_allowed(rows, risk, delta)
        assert allowed == -1 or binom.cdf(allowed, rows, risk) <= delta
        assert binom.cdf(allowed + 1, rows, risk) > delta


def test_binomial_at_its_ends():
    assert chance_of_at_most(-1, 10, 0.5) == 0
    assert chance_of_at_most(10, 10, 0.5) == 1
    assert risk_upper_bound(10, 10, 0.05) == 1
    with pytest.raises(LearningError, match="-1 errors in 10 rows"):
        risk_upper_bound(-1, 10, 0.05)


@settings(max_examples=200, deadline=None)
@given(st.floats(0.002, 0.9), st.floats(0.0001, 0.9))
def test_rows_needed_is_the_first_that_proves(epsilon, delta):
    exact = math.log(delta) / math.log1p(-epsilon)
    assume(abs(exact - round(exact)) > 1e-9)
    needed = rows_needed(epsilon, delta)
    assert errors_allowed(needed, epsilon, delta) >= 0
    assert needed == 1 or errors_allowed(needed - 1, epsilon, delta) == -1


def test_spending_never_exceeds_delta():
    spent = [spend(0.05, attempt) for attempt in range(1, 10_001)]
    assert spent == sorted(spent, reverse=True)
    assert 0.04999 < math.fsum(spent) < 0.05


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, math.nan, math.inf])
def test_shares_outside_0_to_1_are_refused(share):
    for call in (
        lambda: calibrate_threshold([1.0], [True], epsilon=share),
        lambda: calibrate_threshold([1.0], [True], delta=share),
        lambda: rows_needed(share, 0.05),
        lambda: spend(share, 1),
        lambda: chance_of_at_most(1, 2, share),
        lambda: risk_upper_bound(1, 2, share),
        lambda: calibrate_threshold([1.0], [1.0], epsilon=share),
        lambda: loss_allowed(10, share, 0.05),
        lambda: loss_allowed(10, 0.05, share),
        lambda: chance_of_loss_at_most(1.0, 2, share),
        lambda: loss_upper_bound(1.0, 2, share),
    ):
        with pytest.raises(SettingsError, match=f"is {share}; it must lie strictly between 0 and 1"):
            call()


def test_attempts_count_from_one():
    with pytest.raises(SettingsError, match="attempt is 0"):
        spend(0.05, 0)


@pytest.mark.parametrize(
    ("confidence", "agrees", "says"),
    [
        ([], [], "no rows"),
        ([0.5, 0.6], [True], r"\(2,\) and \(1,\)"),
        ([[0.5]], [[True]], "shapes"),
        ([0.5, math.nan], [True, True], "row 1 is nan"),
        ([0.5, math.inf], [True, True], "row 1 is inf"),
        ([0.5, 0.6, 0.7], [1, 0, 2], "row 2 is 2"),
        ([0.5], [math.nan], "row 0 is nan"),
        ([0.5, 0.6], [0.5, 1.5], r"row 1 is 1.5; it must lie between 0 and 1"),
        ([0.5, 0.6], [-0.1, 1.0], "row 0 is -0.1"),
    ],
)
def test_rows_that_cannot_be_used_are_named(confidence, agrees, says):
    with pytest.raises(LearningError, match=says):
        calibrate_threshold(confidence, agrees)


def test_agreement_may_be_counted_as_zero_and_one():
    assert calibrate_threshold([0.9] * 200, [1] * 200) == calibrate_threshold([0.9] * 200, [True] * 200)
    assert isinstance(calibrate_threshold([0.9], [1]), Calibration)


@pytest.mark.parametrize("levels", [10**9, 12])
def test_promise_is_kept_and_its_level_used(levels):
    """4,000 draws from a world whose true risk is known: R(λ) = 0.1 (1 − λ²), at every threshold λ."""
    rng = np.random.default_rng(20261121)
    rows, epsilon, delta, draws = 600, 0.02, 0.1, 4000
    broken = bound_broken = 0
    for _ in range(draws):
        confidence = np.ceil(rng.random(rows) * levels) / levels
        # P(error | c) = 0.2 c: the sure answers are the worse ones, so no help comes from a good ranking.
        agrees = rng.random(rows) >= 0.2 * confidence
        found = calibrate_threshold(confidence, agrees, epsilon=epsilon, delta=delta)
        if found.threshold is not None:
            kept = np.arange(1, levels + 1) / levels if levels < 100 else None
            risk = (
                0.1 * (1 - found.threshold**2)
                if kept is None
                else float(0.2 * kept[kept >= found.threshold - 1e-12].sum() / levels)
            )
            broken += risk > epsilon
            bound_broken += risk > found.risk_bound
    error = 3 * math.sqrt(delta * (1 - delta) / draws)
    assert broken <= bound_broken <= (delta + error) * draws
    if levels > 100:  # with no ties nothing is given away but what whole numbers of errors force
        exact = chance_of_at_most(errors_allowed(rows, epsilon, delta), rows, epsilon)
        assert abs(broken / draws - exact) < error


def test_mapie_finds_the_same_on_its_grid():
    control = pytest.importorskip("mapie.risk_control")
    rng = np.random.default_rng(7)
    grid = 0.5 + np.arange(100, -1, -1) / 200  # the very numbers that the confidences below are
    answered_wrong = control.BinaryRisk(lambda y, p: (p == 0) & (y != p), lambda y, p: y == y, False)
    for _ in range(10):
        confidence = 0.5 + rng.integers(1, 100, 1000) / 200
        agrees = rng.random(1000) < confidence
        table = np.stack([confidence, 1 - confidence], axis=1)
        controller = control.MultiClassificationLTTController(
            lambda x, table=table: table[x[:, 0]],
            [answered_wrong],
            [0.1],
            confidence_level=0.9,
            list_predict_params=grid,
            classes=[0, 1],
            fwer_method="fixed_sequence",
        )
        controller.calibrate(np.arange(1000)[:, None], (~agrees).astype(int))
        theirs = controller.valid_predict_params.min()
        ours = calibrate_threshold(confidence, agrees, epsilon=0.1, delta=0.1)
        assert theirs == ours.threshold


# --- losses between 0 and 1 -------------------------------------------------------------------------------------


@st.composite
def fractional_rows(draw, most=400):
    """Confidences, often with ties, and agreements in [0, 1] of several laws."""
    confidence, agrees = draw(calibration_rows(most))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    parts = {"whole": rng.integers(0, 2, agrees.size), "even": rng.random(agrees.size), "small": 0.99 + 0 * agrees}
    return confidence, np.where(agrees, 1.0, parts[draw(st.sampled_from(list(parts)))])


@settings(max_examples=60, deadline=None)
@given(fractional_rows(150), shares, shares)
def test_fractional_losses_walk_as_the_paper_writes_it(rows, epsilon, delta):
    """Hoeffding-Bentkus as in Bates et al. 2021, section 3.1, with scipy's binomial, at every step."""
    from scipy.stats import binom

    def divergence(a, b):
        return sum(x * math.log(x / y) for x, y in ((a, b), (1 - a, 1 - b)) if x > 0)

    confidence, agreement = rows
    count, steps = confidence.size, []
    for level in sorted(set(confidence.tolist()), reverse=True):
        total = math.fsum(1.0 - agreement[confidence >= level])
        hoeffding = math.exp(-count * divergence(min(total / count, epsilon), epsilon))
        steps.append((level, min(hoeffding, math.e * binom.cdf(math.ceil(round(total, 9)), count, epsilon))))
        ours = chance_of_loss_at_most(round(total, 9), count, epsilon)
        assert ours == pytest.approx(min(1.0, steps[-1][1]), rel=1e-6)
    assume(all(abs(value / delta - 1) > 1e-6 for _, value in steps))
    passed = [level for level, value in steps if value <= delta]
    found = calibrate_threshold(confidence, agreement, epsilon=epsilon, delta=delta)
    assert found.threshold == (min(passed) if passed else None)


@settings(max_examples=150, deadline=None)
@given(fractional_rows(), shares, shares, st.integers(0, 1000))
def test_fractional_losses_are_reported_as_they_are(rows, epsilon, delta, seed):
    confidence, agreement = rows
    found = calibrate_threshold(confidence, agreement, epsilon=epsilon, delta=delta)
    order = np.random.default_rng(seed).permutation(agreement.size)
    assert found == calibrate_threshold(confidence[order], agreement[order], epsilon=epsilon, delta=delta)
    assert found.risk_bound <= epsilon * (1 + 1e-9)
    if found.threshold is not None:
        accepted = confidence >= found.threshold
        assert found.coverage == np.mean(accepted)
        assert found.errors == pytest.approx(np.sum(1.0 - agreement[accepted]), abs=1e-9)
        assert found.risk == found.errors / found.rows <= found.risk_bound


@settings(max_examples=100, deadline=None)
@given(calibration_rows(), shares, shares)
def test_the_kind_of_loss_chooses_the_test_and_not_its_values(rows, epsilon, delta):
    """0 and 1 given as floats might have been 0.5: they prove less, never more."""
    confidence, agrees = rows
    whole = calibrate_threshold(confidence, agrees, epsilon=epsilon, delta=delta)
    loose = calibrate_threshold(confidence, agrees.astype(float), epsilon=epsilon, delta=delta)
    assert loose.coverage <= whole.coverage
    if loose.threshold is not None and loose.threshold == whole.threshold:
        assert loose.errors == whole.errors


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 3000), shares, shares)
def test_loss_allowed_is_where_the_chance_reaches_delta(rows, epsilon, delta):
    allowed = loss_allowed(rows, epsilon, delta)
    assert allowed <= errors_allowed(rows, epsilon, delta) + 1  # what may be a fraction is allowed no whole error more
    if allowed < 0:
        assert chance_of_loss_at_most(0.0, rows, epsilon) > delta * (1 - 1e-9)
        return
    assert chance_of_loss_at_most(allowed, rows, epsilon) <= delta * (1 + 1e-9)
    assert chance_of_loss_at_most(allowed + 1e-6 * rows, rows, epsilon) > delta * (1 - 1e-9)
    assert loss_upper_bound(allowed, rows, delta) <= epsilon * (1 + 1e-9)


@pytest.mark.parametrize("rows", [10, 149, 2000])
def test_loss_bound_is_the_chance_turned_round(rows):
    bounds = [loss_upper_bound(total, rows, 0.05) for total in np.linspace(0.0, rows, 41)]
    assert bounds == sorted(bounds)
    assert bounds[-1] == 1.0
    for total in (0.0, 0.3, 1.0, 2.5, rows / 3):
        bound = loss_upper_bound(total, rows, 0.05)
        assert total / rows < bound <= 1.0
        assert bound >= risk_upper_bound(math.floor(total), rows, 0.05) - 1e-9
        if bound < 0.999:
            assert chance_of_loss_at_most(total, rows, bound * 1.000001) <= 0.05 * 1.001
            assert chance_of_loss_at_most(total, rows, bound * 0.999) > 0.05 * 0.999
    with pytest.raises(LearningError, match="there can be no fewer than 0"):
        loss_upper_bound(-0.5, rows, 0.05)


def test_an_errorless_expert_needs_as_many_rows_for_any_loss():
    for epsilon, delta in ((0.02, 0.05), (0.01, 0.025)):
        needed = rows_needed(epsilon, delta)
        assert loss_allowed(needed, epsilon, delta) >= 0.0
        assert loss_allowed(needed - 1, epsilon, delta) == -1.0


@pytest.mark.parametrize("law", ["halves", "even", "rare"])
def test_promise_is_kept_for_fractional_losses(law):
    """1,000 draws from worlds with R(λ) = 0.1 (1 − λ²) at every λ, as above; only the law of the losses differs."""
    rng = np.random.default_rng(20261122)
    rows, epsilon, delta, draws = 600, 0.02, 0.1, 1000
    broken = bound_broken = 0
    coverage = []
    for _ in range(draws):
        confidence = rng.random(rows)
        mean = 0.2 * confidence  # the mean loss at confidence c, whatever its law
        losses = {
            "halves": lambda mean=mean: 0.5 * (rng.random(rows) < 2 * mean),
            "even": lambda mean=mean: 2 * mean * rng.random(rows),
            "rare": lambda mean=mean: np.where(rng.random(rows) < mean / 0.99, 0.99, 0.0),
        }[law]()
        found = calibrate_threshold(confidence, 1.0 - losses, epsilon=epsilon, delta=delta)
        coverage.append(found.coverage)
        if found.threshold is not None:
            risk = 0.1 * (1 - found.threshold**2)
            broken += risk > epsilon
            bound_broken += risk > found.risk_bound
    error = 3 * math.sqrt(delta * (1 - delta) / draws)
    assert broken <= bound_broken <= (delta + error) * draws
    # Not by answering nothing: R(λ) = ε at λ = √0.8, where 10.6 % are covered.
    assert 0.045 < np.mean(coverage) < 0.106
