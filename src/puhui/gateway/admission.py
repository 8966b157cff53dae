"""Overload: no more requests at once than are answered quickly; the surplus is told at once to come back later.

One event loop does a node's work, so a node is overloaded when that loop is behind: what is ready has to wait for its
turn. A timer measures by how much. As in CoDel (Nichols and Jacobson 2012) it is the least wait of a short window
that counts, for a single long step is no queue. Where it is above the target, the bound on requests at once
falls in proportion, as in Gradient2 of Netflix's concurrency-limits; where it is not, the bound rises. The time
that a big model takes does not count: a thousand requests that wait for it are no load.
"""

from __future__ import annotations

import asyncio
import itertools
import time

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from puhui.core.errors import Overloaded
from puhui.gateway.replies import error_object

MOST_AT_ONCE = 2000
LEAST_AT_ONCE = 16
TARGET_S = 0.030
"""How long what is ready may wait for its turn: an answer takes about six turns of the loop."""
HOPELESS_S = 0.150
"""So far behind, the loop takes nothing new before it has caught up."""
LOOK_EVERY_S, WINDOW_S, WINDOW_LOOKS = 0.02, 0.1, 2
RISE = 1.1
BACK_IN_S = (1, 2, 3)
"""In turn, so that those who are sent away do not all come back at once."""
BOUNDED = ("/v1/",)
"""Paths that make work. Health, metrics and pages are never refused: they say how things stand."""


class Limiter:
    """How many requests may be under way at once, from how far the loop is behind."""

    def __init__(self, most: int = MOST_AT_ONCE) -> None:
        """`most` bounds it whatever the load is; each request may hold a body in memory."""
        if most < 1:
            raise ValueError(f"most at once is {most}; it must be 1 or more")
        self.most = most
        self.limit = float(most)
        self._least = min(LEAST_AT_ONCE, most)
        self._window: list[float] = []
        self._since = 0.0

    def look(self, now: float, behind_s: float, under_way: int) -> None:
        """The loop is `behind_s` at `now`, both in seconds, with so many requests under way."""
        self._window.append(behind_s)
        if now - self._since < WINDOW_S or len(self._window) < WINDOW_LOOKS:
            return
        behind = min(self._window)
        if behind > TARGET_S:
            self.limit = max(self._least, min(self.limit, under_way) * max(0.5, TARGET_S / behind))
        else:
            self.limit = min(self.most, self.limit * RISE)
        self._window.clear()
        self._since = now

    def admits(self, under_way: int, overdue_s: float) -> bool:
        """Whether one more may come, when the next look is overdue by so many seconds."""
        return under_way < self.limit and (overdue_s < HOPELESS_S or under_way < self._least)


class Admission:
    """An ASGI layer that answers 429 with `Retry-After` to what is too much. `refused` counts those."""

    def __init__(self, app: ASGIApp, *, most_at_once: int = MOST_AT_ONCE) -> None:
        self.app = app
        self.limiter = Limiter(most_at_once)
        self.under_way = 0
        self.refused = 0
        self._due: float | None = None
        self._refusals = itertools.cycle(map(_refusal, BACK_IN_S))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or refuses it without reading its body."""
        if scope["type"] != "http" or not scope["path"].startswith(BOUNDED):
            await self.app(scope, receive, send)
            return
        if self._due is None:
            self._look_again(asyncio.get_running_loop())
        if not self.limiter.admits(self.under_way, time.monotonic() - (self._due or 0.0)):
            self.refused += 1
            for message in next(self._refusals):
                await send(message)
            return
        self.under_way += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.under_way -= 1

    def _look_again(self, loop: asyncio.AbstractEventLoop) -> None:
        # Not the loop's own time, which may stand still while it is busy.
        self._due = time.monotonic() + LOOK_EVERY_S
        loop.call_later(LOOK_EVERY_S, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now = time.monotonic()
        self.limiter.look(now, now - (self._due or now), self.under_way)
        if self.under_way or self.limiter.limit < self.limiter.most:
            self._look_again(loop)
        else:
            self._due = None  # an idle node need not look


def _refusal(back_in_s: int) -> tuple[Message, Message]:
    """The two messages of a refusal, made once: under overload there is no time for it."""
    status, shown = error_object(
        Overloaded(f"this node is at its limit; come back in {back_in_s} s", retry_after_s=back_in_s)
    )
    body = msgspec.json.encode(shown)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"retry-after", b"%d" % back_in_s),
    ]
    return (
        {"type": "http.response.start", "status": status, "headers": headers},
        {"type": "http.response.body", "body": body},
    )
