"""The watch: a test of "risk ≤ ε" that may look after every audited request, for ever.

A promise proven once holds for the traffic it was proven on. The watch notices when that has changed. It sees
the loss of every *coin request*: each request draws a coin, independent of all else, and where it falls the
big model answers too, whoever answered the user. Loss 0 if the request had been forwarded or the big model
agrees, 1 if the user got an answer with which it does not agree. So the losses are a fair sample, and their
mean is the risk. The coin's rate may change, even because of what was seen so far, as long as it is fixed
before the request it decides about; so a node may audit more while `RiskMonitor.suspicious`.

Method: a betting e-process (Waudby-Smith and Ramdas 2023, "Estimating means of bounded random variables by
betting", JRSS-B 86; arXiv:2010.09686). Someone who bets a share λ ≥ 0 on each loss x multiplies their money
by 1 + λ(x − ε). While risk ≤ ε no way of betting wins in expectation, so money that began as 1 ever reaches
1/δ with probability at most δ (Ville's inequality), however long one watches and whatever the bets, as long
as each is placed before the loss it is about. That is the whole proof; the rest is about betting well.

Bets that are always on lose everything in a good year, and then notice nothing. Here the money is spread over
bettors, each of whom expects the odds of a loss to rise by another factor. Each keeps a *lead*, the CUSUM of
log(1 + λ(x − ε)) held at 0 or above (Page 1954): how well betting would have gone since its best start. It
plays a round only from the time the lead reaches `_HEAD_START` until it is back at 0, and stakes the 1/(k+1)
part of its reserve on round k, so that after k lost rounds 1/(k+1) is still there, and what the next has
to win grew by 2 ln k nats at worst. Rounds are rare where the risk is well under ε. The first starts at
once (the head start of Lucas and Crosier 1982), so that an expert bad all along is found at full speed.
`bench/guarantee_log.md` has the figures, also of the designs that did worse.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from puhui.core.errors import LearningError, SettingsError, StoreError

_ODDS = (1.5, 2.5, 6.0)  # the factors by which the bettors expect the odds of a loss to exceed those of ε
_HEAD_START = math.log(8)  # nats of lead from which a bettor plays


class Bettor(msgspec.Struct):
    """One bettor; its money is `reserve` + `scale`·exp(`lead`), and starts as 1."""

    share: float
    """λ: its money in play is multiplied by 1 + λ(loss − ε)."""
    lead: float = _HEAD_START
    """CUSUM of log(1 + λ(loss − ε)), in nats, ≥ 0."""
    reserve: float = 0.5
    """Money not in play."""
    scale: float = 0.5 / math.exp(_HEAD_START)
    """Money in play is scale·exp(lead); 0 between rounds."""
    rounds: int = 1
    """Rounds begun."""

    def settle(self, excess: float) -> float:
        """Takes in `excess` = loss − ε and returns the money now; then decides whether to bet on the next."""
        self.lead += math.log1p(self.share * excess)
        in_play = self.scale * math.exp(self.lead) if self.scale else 0.0
        money = self.reserve + in_play
        if self.lead <= 0.0:
            self.reserve, self.scale, self.lead = money, 0.0, 0.0
        elif not self.scale and self.lead >= _HEAD_START:
            self.rounds += 1
            stake = self.reserve / (self.rounds + 1)
            self.reserve -= stake
            self.scale = stake * math.exp(-self.lead)
        return money


class RiskMonitor(msgspec.Struct):
    """The watch over one expert. `epsilon` and `delta` lie strictly between 0 and 1 (else SettingsError).

    The state is this struct itself: `to_dict` and `from_dict` carry it over a restart without loss.

    >>> watch = RiskMonitor(epsilon=0.02, delta=0.05)
    >>> watch.update(0.0), watch.observations
    (False, 1)
    >>> any([watch.update(1.0) for _ in range(5)])
    True
    """

    epsilon: float
    delta: float
    observations: int = 0
    """Losses seen."""
    losses: float = 0.0
    """Their sum."""
    evidence: float = 1.0
    """The e-value now. While risk ≤ ε the chance that it ever reaches 1/δ is at most δ."""
    bettors: list[Bettor] = []

    def __post_init__(self) -> None:
        for name, value in (("epsilon", self.epsilon), ("delta", self.delta)):
            if not 0.0 < value < 1.0:  # false for NaN too
                raise SettingsError(f"{name} is {value}; it must lie strictly between 0 and 1")
        if not self.bettors:
            self.bettors = [Bettor((odds - 1) / (1 - self.epsilon + odds * self.epsilon)) for odds in _ODDS]

    def update(self, loss: float) -> bool:
        """Takes in the loss of one coin request, in [0, 1]; returns `rejected`. Takes a few µs.

        The losses must come from all coin requests, those with loss 0 included, in the order of the requests:
        zeros at once and audits in bursts look like a world that turned bad. Raises LearningError for a loss
        outside [0, 1]. After the rejection only the counts go on.
        """
        if not 0.0 <= loss <= 1.0:
            raise LearningError(f"the loss of an audited request is {loss}; it must lie between 0 and 1")
        if not self.rejected:
            excess = loss - self.epsilon
            self.evidence = sum([bettor.settle(excess) for bettor in self.bettors]) / len(self.bettors)
        self.observations += 1
        self.losses += loss
        return self.rejected

    @property
    def log_evidence(self) -> float:
        """ln of `evidence`, in nats."""
        return math.log(self.evidence)

    @property
    def rejected(self) -> bool:
        """Whether "risk ≤ ε" has been refuted at level δ. It stays so."""
        return self.evidence >= 1 / self.delta

    @property
    def suspicious(self) -> bool:
        """Whether any bettor is in play: at the start, and when losses come faster than they should.

        A reason to audit more of the requests that follow. It proves nothing.
        """
        return any(bettor.scale for bettor in self.bettors)

    def to_dict(self) -> dict[str, Any]:
        """The state as plain numbers, lists and dictionaries, fit for JSON."""
        state: dict[str, Any] = msgspec.to_builtins(self)
        return state

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> RiskMonitor:
        """The monitor that `to_dict` wrote down; StoreError if it is not one."""
        try:
            monitor = msgspec.convert(state, cls)
        except (msgspec.ValidationError, SettingsError) as error:
            raise StoreError(f"the saved state of a risk monitor cannot be read: {error}") from error
        # A field that is missing would have become a default, and the watch begun anew in silence.
        if monitor.to_dict() != state:
            raise StoreError("the saved state of a risk monitor is incomplete; it must be what to_dict() gave")
        return monitor
