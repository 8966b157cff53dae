"""The gate: what a candidate has to prove before it may answer anyone.

A candidate is calibrated on a *sample*: coin rows that had no influence on it. It cannot have been trained on
them, and neither may what it was trained on depend on them. Where an earlier expert answers, the big model is
not asked, so the rows that later candidates learn from depend on that expert's threshold, and so on the sample
that set it. Therefore each promotion closes its sample: those rows teach from then on, and the next candidate
is calibrated on coin rows that came later. Attempts that fail change nothing in the traffic and keep theirs.

Attempts on one sample, and all attempts over a task's life, share out δ (`cascade.guarantee.spend`), so that
every promise ever made for the task holds at once with probability ≥ 1 − δ.
"""

from __future__ import annotations

import msgspec

from puhui.cascade.agreement import EXACT, Rule, is_whole
from puhui.cascade.guarantee import Calibration, errors_allowed, loss_allowed, spend
from puhui.core.settings import Promise

LEAST_ALLOWED_SHARE, LATER_ALLOWED_SHARE = 0.5, 0.4
LEAST_COVERAGE, LESS_EACH_TIME = 0.25, 0.75
LEAST_GAIN = 0.03


class Verdict(msgspec.Struct, frozen=True):
    """Whether a candidate goes in place, what was proven of it, and why (not) in words."""

    promoted: bool
    calibration: Calibration
    reason: str


def is_worth_trying(promise: Promise, rows: int, attempt: int, rule: Rule = EXACT) -> bool:
    """Whether a sample of `rows`, compared by `rule`, lets the task's `attempt`-th calibration (from 1) prove much.

    The proof allows fewer errors than ε of the rows, and on few rows none at all, which only the surest of
    answers survive. It is worth a part of δ once half of ε is allowed; for a better expert than the one in place a
    little less is, as each day with the old one has its price too.
    """
    # Losses between 0 and 1 take a weaker proof, and more rows.
    proof = errors_allowed if is_whole(rule) else loss_allowed
    allowed = proof(rows, promise.epsilon, spend(promise.delta, attempt)) if rows else -1
    least = LEAST_ALLOWED_SHARE if attempt == 1 else LATER_ALLOWED_SHARE
    return allowed >= 0 and allowed >= least * promise.epsilon * rows


def judge(
    calibration: Calibration,
    attempt: int,
    *,
    coverage_in_place: float,
    joules_expert: float,
    joules_big: float,
    audit_rate: float,
) -> Verdict:
    """The gate's verdict: proven, worth its energy, and answering more than the expert in place.

    `coverage_in_place` is the share of the same calibration rows that the expert in place answers (0: none is).
    A promotion closes a sample, so the first must be worth it: it has to answer a quarter of the requests, and a
    quarter less with each attempt.
    """
    least = max(LEAST_COVERAGE * LESS_EACH_TIME ** (attempt - 1), coverage_in_place + LEAST_GAIN)
    saved = calibration.coverage * (1.0 - audit_rate) * joules_big - joules_expert
    if calibration.threshold is None:
        reason = f"nothing is proven at ε = {calibration.epsilon:.1%} on {calibration.rows} rows"
    elif calibration.coverage < least:
        reason = f"it would answer {calibration.coverage:.1%} of the requests, which is less than {least:.1%}"
    elif saved <= 0.0:
        reason = f"it would cost more energy than it saves ({joules_expert:.3g} J an answer)"
    else:
        reason = f"it answers {calibration.coverage:.1%} at a proven risk of at most {calibration.risk_bound:.2%}"
        return Verdict(True, calibration, reason)
    return Verdict(False, calibration, reason)
