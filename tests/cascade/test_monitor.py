"""The watch: its bets are fair by exact enumeration, it survives a restart, and finds what it is for."""

from __future__ import annotations

import copy
import itertools
import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puhui.cascade.monitor import Bettor, RiskMonitor
from puhui.core.errors import LearningError, PuhuiError, SettingsError, StoreError


def fed(losses, epsilon=0.02, delta=0.05):
    watch = RiskMonitor(epsilon, delta)
    for loss in losses:
        watch.update(loss)
    return watch


@pytest.mark.parametrize("epsilon", [0.02, 0.2, 0.5])
def test_no_betting_wins_on_average_at_exactly_epsilon(epsilon):
    """Every binary sequence of 10, each with its exact probability, at every length on the way."""
    for length in range(1, 11):
        mean = math.fsum(
            fed(losses, epsilon, 1e-9).evidence * epsilon ** sum(losses) * (1 - epsilon) ** (length - sum(losses))
            for losses in itertools.product((0, 1), repeat=length)
        )
        assert mean == pytest.approx(1, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.0, 0.0, 0.25, 1.0]), max_size=300),
    st.floats(0.005, 0.6),
    st.lists(st.tuples(st.floats(0, 1), st.integers(1, 9)), min_size=1, max_size=4),
)
def test_one_more_loss_of_any_law_with_mean_below_epsilon_never_wins(history, epsilon, atoms):
    """From any state: E[evidence after] ≤ evidence before, for losses in [0, 1] and not only 0 or 1."""
    before = fed(history, epsilon, 1e-12)
    total = sum(weight for _, weight in atoms)
    law = [(value, float(Fraction(weight, total))) for value, weight in atoms]
    mean = math.fsum(value * chance for value, chance in law)
    scale = min(1.0, epsilon / mean) if mean else 1.0
    if before.rejected:
        return
    expected = 0.0
    for value, chance in law:
        after = copy.deepcopy(before)
        after.update(value * scale)
        expected += chance * after.evidence
    assert expected <= before.evidence * (1 + 1e-12)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.booleans(), max_size=400), st.integers(0, 400), st.floats(0.01, 0.5))
def test_restart_from_state_equals_uninterrupted(losses, cut, epsilon):
    whole = fed(losses, epsilon)
    resumed = RiskMonitor.from_dict(json.loads(json.dumps(fed(losses[:cut], epsilon).to_dict())))
    for loss in losses[cut:]:
        resumed.update(loss)
    assert resumed == whole
    assert resumed.observations == len(losses)
    assert resumed.losses == sum(losses)


def test_two_monitors_share_no_bettors():
    one, other = RiskMonitor(0.02, 0.05), RiskMonitor(0.02, 0.05)
    one.update(1.0)
    assert other == RiskMonitor(0.02, 0.05) != one


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: state.pop("bettors"),
        lambda state: state.pop("evidence"),
        lambda state: state["bettors"][0].pop("reserve"),
        lambda state: state.update(epsilon=2.0),
        lambda state: state.update(observations="many"),
        lambda state: state.update(surprise=1),
    ],
)
def test_damaged_state_is_refused(damage):
    state = fed([0, 1, 0]).to_dict()
    damage(state)
    with pytest.raises(StoreError, match="saved state of a risk monitor"):
        RiskMonitor.from_dict(state)


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, math.nan])
def test_monitor_refuses_shares_outside_0_to_1(share):
    with pytest.raises(SettingsError, match=f"epsilon is {share}"):
        RiskMonitor(share, 0.05)
    with pytest.raises(SettingsError, match=f"delta is {share}"):
        RiskMonitor(0.02, share)


@pytest.mark.parametrize("loss", [-0.1, 1.1, math.nan, math.inf])
def test_monitor_refuses_losses_outside_0_to_1(loss):
    watch = RiskMonitor(0.02, 0.05)
    with pytest.raises(LearningError, match=f"is {loss}"):
        watch.update(loss)
    assert watch == RiskMonitor(0.02, 0.05)
    assert issubclass(LearningError, PuhuiError)


def test_rejection_stays_and_stops_the_betting():
    watch = RiskMonitor(0.02, 0.05)
    assert not watch.rejected
    assert watch.suspicious
    while not watch.update(1.0):
        pass
    found = watch.evidence
    assert found >= 20
    assert watch.log_evidence == math.log(found)
    assert all(watch.update(loss) for loss in [0.0] * 1000 + [1.0] * 1000)
    assert watch.evidence == found
    assert watch.observations > 2000


def test_suspicion_ends_in_good_times_and_returns_with_losses():
    watch = fed([0.0] * 1000)
    assert not watch.suspicious
    assert watch.evidence > 0.5
    for _ in range(3):
        watch.update(1.0)
    assert watch.suspicious
    assert not watch.rejected


def test_money_of_a_bettor_is_whole_while_it_does_not_play():
    bettor = Bettor(1.5)
    start = bettor.reserve + bettor.scale * math.exp(bettor.lead)
    assert start == 1
    while bettor.scale:
        money = bettor.settle(-0.02)
    assert money == bettor.reserve
    assert [bettor.settle(-0.02) for _ in range(100)] == [money] * 100


def delays(risk, good_rows, runs, seed, epsilon=0.02):
    """Coin rows until rejection after `good_rows` at ε/4; runs that rejected before count as −1."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(runs):
        watch = fed((rng.random(good_rows) < epsilon / 4).astype(float).tolist(), epsilon)
        rows = -1
        while not watch.rejected:
            watch.update(float(rng.random() < risk))
        rows = watch.observations - good_rows
        found.append(rows)
    return np.array(found)


def test_bad_risk_is_found_about_as_fast_after_a_good_time():
    early, late = delays(0.08, 0, 60, seed=1), delays(0.08, 5000, 60, seed=2)
    assert (early > 0).all()
    assert (late > 0).all()
    assert np.median(early) < 150  # a likelihood ratio that knows the new risk needs 57 on average
    assert np.median(late) < 300


def test_false_alarms_stay_under_delta():
    """400 runs of 1,500 rows at exactly ε = 10 %, δ = 20 %: at most δ and three standard errors alarm."""
    rng = np.random.default_rng(3)
    alarms = sum(fed((rng.random(1500) < 0.1).astype(float).tolist(), 0.1, 0.2).rejected for _ in range(400))
    assert alarms / 400 <= 0.2 + 3 * math.sqrt(0.2 * 0.8 / 400)


def test_stays_finite_over_a_long_life():
    rng = np.random.default_rng(4)
    watch = fed((rng.random(200_000) < 0.019).astype(float).tolist(), 0.02, 1e-12)
    assert 0 < watch.evidence < 1e12
    assert all(0 < bettor.reserve < 1e6 and 0 <= bettor.lead < 100 for bettor in watch.bettors)
