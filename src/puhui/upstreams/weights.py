"""Who is asked first: a random order in which each comes first as often as its weight says."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar


class Weighted(Protocol):
    """Something with a weight."""

    @property
    def weight(self) -> float:
        """How often it comes first, against the others; greater than 0."""


W = TypeVar("W", bound=Weighted)


def in_turn(members: Sequence[W], draw: Callable[[], float] = random.random) -> Sequence[W]:
    """The members in a random order. `draw` gives numbers in [0, 1).

    Each comes first with a chance of its weight against the sum, and among those that are left so again: the order of
    arrival where each arrives after an exponential time of its weight's rate (Efraimidis and Spirakis, 2006).
    """
    if len(members) < 2:
        return members
    arrivals = {id(member): -math.log1p(-draw()) / member.weight for member in members}
    return sorted(members, key=lambda member: arrivals[id(member)])
