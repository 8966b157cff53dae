"""A circuit breaker: leaves alone what fails, and tries it with one request before it trusts it again.

After M. Nygard, Release It! (2007). Closed: everything passes. Half of the latest outcomes failures, at least five of
them: open, and nothing passes. When the time is over: half-open, one request passes. If it succeeds the breaker
closes; if not it opens again, for twice as long.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

State: TypeAlias = Literal["closed", "half-open", "open"]
WORSE_LATER: tuple[State, ...] = get_args(State)

WINDOW = 20
LEAST_FAILURES = 5
FAILURE_SHARE = 0.5
WITHIN_S = 60.0
OPEN_S, LONGEST_OPEN_S = 5.0, 60.0
MOST_MODELS = 256
"""Whose breakers an endpoint keeps where callers choose the names."""


class Breaker:
    """One circuit breaker. Whoever may pass gets a ticket, and tells with it how it went.

    A ticket from before the breaker changed its state counts no more: an answer that was under way for a minute says
    nothing of now.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._outcomes: deque[tuple[float, bool]] = deque(maxlen=WINDOW)
        self._ticket = 0
        self._until: float | None = None
        self._open_s = OPEN_S
        self._probing = False

    @property
    def state(self) -> State:
        """`half-open` from the time on at which one request may try."""
        if self._until is None:
            return "closed"
        return "half-open" if self._probing or self._clock() >= self._until else "open"

    @property
    def may_pass(self) -> bool:
        """Whether `admit` would give a ticket now."""
        return self._until is None or not (self._probing or self._clock() < self._until)

    @property
    def wait_s(self) -> float:
        """Seconds until the next request may try; 0 if one may now, or if one is trying."""
        return 0.0 if self._until is None else max(0.0, self._until - self._clock())

    def admit(self) -> int | None:
        """A ticket, or None where nothing may pass."""
        if self._until is None:
            return self._ticket
        if not self.may_pass:
            return None
        self._probing = True
        self._ticket += 1
        return self._ticket

    def succeeded(self, ticket: int) -> None:
        """It went well."""
        if ticket != self._ticket:
            return
        if self._probing:
            self._probing = False
            self._until = None
            self._open_s = OPEN_S
            self._ticket += 1
            self._outcomes.clear()
        self._outcomes.append((self._clock(), True))

    def failed(self, ticket: int, *, wait_s: float = 0.0) -> None:
        """It failed. `wait_s` is how long the failing one asked to be left alone."""
        if ticket != self._ticket:
            return
        if self._probing:
            self._probing = False
            self._open_s = min(2.0 * self._open_s, LONGEST_OPEN_S)
            self._open(wait_s)
            return
        now = self._clock()
        self._outcomes.append((now, False))
        latest = [well for at, well in self._outcomes if now - at <= WITHIN_S]
        failures = latest.count(False)
        if failures >= LEAST_FAILURES and failures >= FAILURE_SHARE * len(latest):
            self._open(wait_s)

    def undecided(self, ticket: int) -> None:
        """It was given up, so nobody knows. If it was the one that tried, another may."""
        if ticket == self._ticket:
            self._probing = False

    def _open(self, wait_s: float) -> None:
        self._until = self._clock() + min(max(self._open_s, wait_s), LONGEST_OPEN_S)
        self._ticket += 1
        self._outcomes.clear()


class Breakers:
    """A breaker for each model behind one endpoint: where any name passes, one model's failures are not another's."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._asked: dict[str, tuple[Breaker, float]] = {}

    def of(self, model: str) -> Breaker:
        """The breaker of a model that is asked for now. Of too many, those not asked for longest are forgotten."""
        held = self._asked.pop(model, None)
        breaker = Breaker(clock=self._clock) if held is None else held[0]
        if len(self._asked) >= MOST_MODELS:
            del self._asked[next(iter(self._asked))]
        self._asked[model] = breaker, self._clock()
        return breaker

    @property
    def best(self) -> Breaker:
        """The one that lets most through, of the models asked for of late: what can be had of the endpoint."""
        if not self._asked:
            return Breaker(clock=self._clock)
        now = self._clock()
        *_, (latest, _) = self._asked.values()
        of_late = [breaker for breaker, at in self._asked.values() if now - at <= WITHIN_S]
        return min(of_late or [latest], key=lambda breaker: (WORSE_LATER.index(breaker.state), breaker.wait_s))
