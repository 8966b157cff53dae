"""What a card says of the candidates: what each costs and covers, and why another was chosen."""

from __future__ import annotations

import math

import msgspec

from puhui.bundles.card import TradeOff
from puhui.compress.recipes import family_of
from puhui.compress.search import Candidate, Failed, Found, Goal


def trade_offs_of(found: Found, chosen: Candidate, goal: Goal) -> tuple[TradeOff, ...]:
    """Every candidate that was built, and after them what could not be."""
    return (*(_trade_off(one, chosen, goal) for one in found.tried), *map(_not_built, found.failed))


def _trade_off(candidate: Candidate, chosen: Candidate, goal: Goal) -> TradeOff:
    return TradeOff(
        name=candidate.name,
        family=candidate.family,
        size_bytes=candidate.footprint.bytes,
        latency_ms=candidate.footprint.latency_ms,
        joules=candidate.footprint.joules,
        agreement=candidate.agreement,
        coverage=candidate.coverage,
        proven=candidate.proven,
        training_s=candidate.training_s,
        recipe=msgspec.to_builtins(candidate.recipe),
        chosen=candidate is chosen,
        why_not="" if candidate is chosen else _why_not(candidate, chosen, goal),
    )


def _why_not(candidate: Candidate, chosen: Candidate, goal: Goal) -> str:
    """Why another was chosen, in words: the device's limits first, then the floor, then the price."""
    if candidate.misses:
        return "; ".join(map(str, candidate.misses))
    if candidate.agreement >= goal.keep:
        return "dearer than the chosen one"
    keeps = f"keeps {math.floor(candidate.agreement * 1000 + 1e-9) / 10:g}%"  # down, so that it is below the floor
    if chosen.agreement >= goal.keep:
        return f"{keeps}, less than {goal.keep * 100:.6g}%"
    return f"{keeps}, {'less than' if candidate.agreement < chosen.agreement else 'and is dearer than'} the chosen one"


def _not_built(failed: Failed) -> TradeOff:
    recipe = failed.recipe
    return TradeOff(
        name=recipe.name,
        family=family_of(recipe),
        size_bytes=0,
        recipe=msgspec.to_builtins(recipe),
        why_not=f"could not be built: {failed.why}",
    )
