"""What a card says of candidates that were not chosen."""

from __future__ import annotations

import pytest

from puhui.compress.profiles import Footprint, Miss
from puhui.compress.recipes import StaticRecipe
from puhui.compress.search import Candidate, Failed, Found, Goal
from puhui.compress.trade_offs import trade_offs_of

FOOTPRINT = Footprint(bytes=1, wire_bytes=1, memory_bytes=None, latency_ms=1.0, cpu_s=1.0, joules=1.0)


def candidate(agreement: float, *misses: Miss) -> Candidate:
    recipe = StaticRecipe()
    return Candidate(
        recipe=recipe,
        family="static",
        agreement=agreement,
        coverage=0.5,
        rows=100,
        footprint=FOOTPRINT,
        training_s=1.0,
        misses=misses,
    )


@pytest.mark.parametrize(
    ("chosen", "other", "why"),
    [
        (0.95, candidate(0.827), "keeps 82.7%, less than 90%"),
        (0.95, candidate(0.89999), "keeps 89.9%, less than 90%"),
        (0.95, candidate(0.96), "dearer than the chosen one"),
        (0.80, candidate(0.7), "keeps 70%, less than the chosen one"),  # with --accept-nearest
        (0.80, candidate(0.8), "keeps 80%, and is dearer than the chosen one"),
        (0.95, candidate(0.99, Miss("bytes", 9.0, 3.0)), "bytes is 9, allowed are 3"),
    ],
)
def test_why_another_was_chosen(chosen: float, other: Candidate, why: str) -> None:
    best = candidate(chosen)
    found = Found((other, best), best, "", (Failed(StaticRecipe(), "too large"),))
    said = [one.why_not for one in trade_offs_of(found, best, Goal(keep=0.9))]
    assert said == [why, "", "could not be built: too large"]
