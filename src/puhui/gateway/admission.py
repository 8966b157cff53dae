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
import logging
import time
from collections.abc import Collection, Sequence

import msgspec
from starlette.applications import Starlette
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from puhui.core.errors import Overloaded
from puhui.gateway.replies import error_object

log = logging.getLogger("puhui.gateway")

RawHeaders = Sequence[tuple[bytes, bytes]]

MOST_AT_ONCE = 2000
LEAST_AT_ONCE = 64
TARGET_S = 0.008
"""How long what is ready may wait for its turn: an answer takes about eight turns of the loop."""
HOPELESS_S = 0.150
"""So far behind, the loop takes nothing new before it has caught up."""
LOOK_EVERY_S, WINDOW_S, WINDOW_LOOKS = 0.02, 0.1, 2
RISE = 1.1
BACK_IN_S = (1, 2, 3)
"""In turn, so that those who are sent away do not all come back at once."""
TELL_EVERY_S = 10.0
BOUNDED = "/v1/"
"""Where paths begin that make work. Health, metrics and pages are never refused: they say how things stand."""


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


class Gate:
    """What is under way in a node, and whether one more may come. `refused` counts those that might not.

    Requests are let in twice: by the connection that read them (`lets_in`), for which a refusal is as cheap as can be,
    and by `Admission`, which sees them begin and end. In between they are `_coming`, for one turn of the loop.
    """

    def __init__(self, most_at_once: int = MOST_AT_ONCE, *, origins: Collection[str] = ()) -> None:
        """`origins` are the sites whose pages may read a refusal too (`*`: all)."""
        self.limiter = Limiter(most_at_once)
        self.under_way = 0
        self.refused = 0
        self._coming = 0
        self._due: float | None = None
        self._origins = frozenset(origin.encode() for origin in origins)
        self._seconds = itertools.cycle(BACK_IN_S)
        told = itertools.product(BACK_IN_S, (None, *self._origins))
        self._refusals = {(seconds, origin): Refusal(seconds, origin) for seconds, origin in told}
        self._told = 0
        self._tell_after = 0.0

    def lets_in(self) -> bool:
        """Whether a request that a connection has read may come in; if so it is on its way to `Admission`."""
        if not self.has_room():
            return False
        if not self._coming:
            asyncio.get_running_loop().call_soon(self._have_come)
        self._coming += 1
        return True

    def has_room(self) -> bool:
        """Whether one more may come."""
        if self._due is None:
            self._look_again(asyncio.get_running_loop())
        return self.limiter.admits(self.under_way + self._coming, time.monotonic() - (self._due or 0.0))

    def refuse(self, headers: RawHeaders) -> Refusal:
        """What is said to a request with these headers that may not come."""
        self.refused += 1
        return self._refusals[next(self._seconds), self._origin_in(headers) if self._origins else None]

    def _origin_in(self, headers: RawHeaders) -> bytes | None:
        origin = next((value for name, value in headers if name == b"origin"), None)
        if origin is not None and b"*" in self._origins:
            return b"*"
        return origin if origin in self._origins else None

    def _have_come(self) -> None:
        self._coming = 0

    def _look_again(self, loop: asyncio.AbstractEventLoop) -> None:
        # Not the loop's own time, which may stand still while it is busy.
        self._due = time.monotonic() + LOOK_EVERY_S
        loop.call_later(LOOK_EVERY_S, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now = time.monotonic()
        self.limiter.look(now, now - (self._due or now), self.under_way)
        if self.refused > self._told and now >= self._tell_after:
            log.warning("too much at once: %d requests were refused", self.refused - self._told)
            self._told, self._tell_after = self.refused, now + TELL_EVERY_S
        if self.under_way or self.limiter.limit < self.limiter.most:
            self._look_again(loop)
        else:
            self._due = None  # an idle node need not look


class Admission:
    """An ASGI layer that answers 429 with `Retry-After` to what is too much for the `gate`."""

    def __init__(self, app: ASGIApp, *, gate: Gate) -> None:
        self._app = app
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or refuses it without reading its body."""
        if scope["type"] != "http" or not scope["path"].startswith(BOUNDED):
            await self._app(scope, receive, send)
            return
        gate = self._gate
        if not gate.has_room():
            for message in gate.refuse(scope["headers"]).messages:
                await send(message)
            return
        gate.under_way += 1
        try:
            await self._app(scope, receive, send)
        finally:
            gate.under_way -= 1


def add_gate(app: Starlette, gate: Gate) -> None:
    """Puts the gate before all that `app` has so far, and where `connections` look for it."""
    app.add_middleware(Admission, gate=gate)
    app.state.gate = gate


class Refusal:
    """A refusal, made once: under overload there is no time for it. As ASGI `messages`, and as the bytes of a reply."""

    def __init__(self, back_in_s: int, origin: bytes | None = None) -> None:
        """`origin` is the site whose page is to read it."""
        status, shown = error_object(
            Overloaded(f"this node is at its limit; come back in {back_in_s} s", retry_after_s=back_in_s)
        )
        body = msgspec.json.encode(shown)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"retry-after", b"%d" % back_in_s),
        ]
        if origin is not None:
            headers += [(b"access-control-allow-origin", origin), (b"access-control-expose-headers", b"*")]
            headers += [(b"vary", b"Origin")] if origin != b"*" else []
        self.messages: tuple[Message, Message] = (
            {"type": "http.response.start", "status": status, "headers": headers},
            {"type": "http.response.body", "body": body},
        )
        head = b"".join(b"%s: %s\r\n" % header for header in headers)
        self.reply = b"HTTP/1.1 %d Too Many Requests\r\n%s\r\n%s" % (status, head, body)
