"""Joules from CPU time: an estimate with its bounds, for machines where nothing can be measured.

Most virtual machines, and every process without root on Linux ≥ 5.10, can read no energy counter. What is left
is the CPU time of the answer times the power that one busy core draws. That power is not known here, so the
estimate carries a range: server cores under load draw about 3 to 12 W each, package share and memory included
(SPECpower_ssj2008 submissions of 2018-2024, full load, divided by cores), laptop cores about 2 to 8 W. No such
estimate is better than about ± 35 % on measured traces.
"""

from __future__ import annotations

import msgspec

from puhui.core.answer import Energy


class CorePower(msgspec.Struct, frozen=True):
    """Watts that one busy core draws: a middle value and its bounds."""

    watts: float = 6.0
    low: float = 2.0
    high: float = 12.0


def estimate_joules(cpu_seconds: float, power: CorePower = CorePower()) -> Energy:
    """The energy of `cpu_seconds` of one core, marked as estimated.

    >>> estimate_joules(0.5)
    Energy(joules=3.0, low=1.0, high=6.0, measured=False)
    """
    return Energy(cpu_seconds * power.watts, cpu_seconds * power.low, cpu_seconds * power.high, measured=False)


class TokenEnergy(msgspec.Struct, frozen=True):
    """Joules a token for a big model that runs elsewhere and reports no energy of its own.

    Reading is far cheaper than writing. The range is wide because nothing is known of the machine: published
    measurements of served language models lie between about 0.1 and 10 J for a token written (ML.ENERGY
    leaderboard, 2024-2025: from 1B to 400B parameters, batched).
    """

    read: float = 0.05
    written: float = 1.0
    spread: float = 10.0


def estimate_remote_joules(prompt_tokens: int, completion_tokens: int, rate: TokenEnergy = TokenEnergy()) -> Energy:
    """The energy of an answer by a remote model, from its token counts; a factor of ten either way."""
    joules = prompt_tokens * rate.read + completion_tokens * rate.written
    return Energy(joules, joules / rate.spread, joules * rate.spread, measured=False)
