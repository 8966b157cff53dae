"""How long answers took of late."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

KEPT = 128
LEAST = 5
"""Fewer durations than this say nothing of the next."""
SORT_EVERY = 16
FRESH_S = 60.0


class Recent:
    """The latest durations, in seconds, and their quantiles.

    They count while they are fresh: an upstream that was slow an hour ago, and was not asked since, may be quick now.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seconds: deque[float] = deque(maxlen=KEPT)
        self._sorted: list[float] = []
        self._unsorted = 0
        self._latest = 0.0

    def add(self, seconds: float) -> None:
        """Notes one duration."""
        self._seconds.append(seconds)
        self._unsorted += 1
        self._latest = self._clock()

    def quantile(self, share: float) -> float | None:
        """The duration that `share` of the latest do not exceed; None while there are too few, or none of late.

        Sorted anew only when `SORT_EVERY` have come: it is read for every request.
        """
        if len(self._seconds) < LEAST or self._clock() - self._latest > FRESH_S:
            return None
        if self._unsorted >= SORT_EVERY or len(self._sorted) < LEAST:
            self._sorted = sorted(self._seconds)
            self._unsorted = 0
        return self._sorted[min(int(share * len(self._sorted)), len(self._sorted) - 1)]
