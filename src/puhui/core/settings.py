"""Settings that travel between rooms, as values. Only the command line reads the environment.

An error names the setting, its value and what is allowed.
"""

from __future__ import annotations

from typing import get_args

import msgspec

from puhui.core.errors import SettingsError
from puhui.core.request import Keep


class Promise(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The guarantee: risk ≤ `epsilon` with probability ≥ 1 − `delta`. Both lie in (0, 1)."""

    epsilon: float = 0.02
    delta: float = 0.05

    def __post_init__(self) -> None:
        for name in ("epsilon", "delta"):
            value = getattr(self, name)
            if not 0.0 < value < 1.0:
                raise SettingsError(f"{name} is {value}, but must lie strictly between 0 and 1 (such as 0.02)")


class Tariff(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What energy and tokens cost here.

    `carbon_g_per_kwh`: life-cycle grid intensity. `price_per_kwh`: money. `price_in`, `price_out`: money for
    a million tokens read and written by the big model; 0 where it runs on the user's own machine.
    """

    carbon_g_per_kwh: float = 481.0
    price_per_kwh: float = 0.15
    price_in: float = 0.0
    price_out: float = 0.0
    currency: str = "USD"

    def __post_init__(self) -> None:
        for name in ("carbon_g_per_kwh", "price_per_kwh", "price_in", "price_out"):
            value = getattr(self, name)
            if not 0.0 <= value < float("inf"):
                raise SettingsError(f"{name} is {value}, but must be 0 or more")


class Privacy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is kept of people's words: the most that is (`keep`), and for how many days (inf: for ever)."""

    keep: Keep = "redacted"
    keep_days: float = 30.0

    def __post_init__(self) -> None:
        if self.keep not in get_args(Keep):
            raise SettingsError(f"keep is {self.keep!r}; allowed: {', '.join(get_args(Keep))}")
        if not self.keep_days > 0.0:
            raise SettingsError(f"keep_days is {self.keep_days}, but must be more than 0 (inf: for ever)")


MOST_WHILE_LEARNING = 0.9
"""Of the share `learning`: a tenth of the answers is left to learn from, and takes ten times as many requests."""


class AuditRate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Shares of requests whose coin falls on "the big model answers this one in any case".

    Those requests are a fair sample of the traffic: experts are calibrated and watched on them alone. `learning`
    holds while a task has no expert, `probation` for the first `probation_requests` requests of the task's
    expert, `steady` from then on. Experts learn from the other answers alone, so `learning` lies in (0, 0.9]; an
    expert whose every answer is audited saves nothing, so `steady` lies in (0, 1). During `probation`, in (0, 1],
    there are answers from before.
    """

    learning: float = 0.6
    probation: float = 0.9
    steady: float = 0.05
    probation_requests: int = 4_000

    def __post_init__(self) -> None:
        for name in ("learning", "probation", "steady"):
            value = getattr(self, name)
            if not 0.0 < value <= 1.0:
                raise SettingsError(f"audit rate {name} is {value}, but must lie in (0, 1]")
        if self.learning > MOST_WHILE_LEARNING:
            raise SettingsError(
                f"audit rate learning is {self.learning}, but may be {MOST_WHILE_LEARNING} at most: experts learn from "
                "the answers outside that sample, and with more in it next to none are left"
            )
        if self.steady == 1.0:
            raise SettingsError(
                "audit rate steady is 1.0, but must be less than 1: with every answer audited an expert saves no "
                "energy, so none would be let in"
            )

    def at(self, served: int | None) -> float:
        """The rate for a task whose expert has seen `served` requests; None: it has no expert."""
        if served is None:
            return self.learning
        return self.probation if served < self.probation_requests else self.steady
