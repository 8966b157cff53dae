"""Requests as they flow, for those who watch: server-sent events, with bounded memory whoever watches how slowly.

A node may answer thousands of requests a second, and a page is to be read. So nothing is sent for a request by itself:
each watcher has a short shelf of the latest events, and gets what is on it five times a second, with a count of those
that fell off. A watcher that takes nothing for half a minute is let go. There is no prompt, no answer and no system
prompt in an event beyond the task's name.

The form is that of the HTML standard, 9.2 "Server-sent events"; a line that begins with a colon keeps the way open.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Literal

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from puhui.core.errors import Overloaded
from puhui.gateway.assets import ALWAYS
from puhui.node.observer import Audited, Changed, Event, Served

SEND_EVERY_S = 0.2
KEEP_OPEN_EVERY_S = 10.0
STALLED_AFTER_S = 30.0
SHELF, LATEST = 200, 50
MOST_WATCHERS = 32


class Shown(msgspec.Struct, frozen=True, omit_defaults=True):
    """One event as a page sees it. `ms` and `first_ms` are milliseconds, `joules` those of this answer alone."""

    kind: Literal["request", "audit", "change"]
    at: float
    id: str = ""
    task: str = ""
    by: str = ""
    name: str = ""
    confidence: float | None = None
    status: int = 200
    ms: float = 0.0
    first_ms: float | None = None
    joules: float = 0.0
    cost: float = 0.0
    measured: bool = False
    tokens: int = 0
    loss: float | None = None
    change: str = ""
    reason: str = ""


class Watcher:
    """One who watches: what it has not been sent yet, and how many events it will never be sent."""

    def __init__(self, latest: deque[Shown]) -> None:
        self.shelf: deque[Shown] = deque(latest, maxlen=SHELF)
        self.skipped = 0

    def put(self, event: Shown) -> None:
        """An event to be sent; the oldest gives way if there is no room."""
        self.skipped += len(self.shelf) == SHELF
        self.shelf.append(event)

    def take(self) -> bytes:
        """What there is to send, as one event of a stream; nothing if there is nothing.

        With it goes the node's time: the latest event may be long ago, and a page's clock be another.
        """
        if not self.shelf:
            return b""
        batch = msgspec.json.encode({"now": time.time(), "events": list(self.shelf), "skipped": self.skipped})
        self.shelf.clear()
        self.skipped = 0
        return b"event: batch\ndata: " + batch + b"\n\n"


class LiveFeed:
    """An observer of the node: it tells whoever watches. `name_of` gives the name of a task by its id."""

    def __init__(self, name_of: Callable[[str], str]) -> None:
        self._name_of = name_of
        self._latest: deque[Shown] = deque(maxlen=LATEST)
        self._watchers: set[Watcher] = set()
        self._ended = asyncio.Event()

    def __call__(self, event: Event) -> None:
        """Takes in what the node did; a few microseconds."""
        shown = self._show(event)
        self._latest.append(shown)
        for watcher in self._watchers:
            watcher.put(shown)

    @property
    def watchers(self) -> int:
        """How many watch now."""
        return len(self._watchers)

    def close(self) -> None:
        """Ends every stream, so that a server that is to end need not wait for them."""
        self._ended.set()

    def watch(self) -> LiveResponse:
        """A stream of what happens from now on, after the latest few. Raises `Overloaded` if too many watch."""
        if len(self._watchers) >= MOST_WATCHERS:
            raise Overloaded(
                f"{MOST_WATCHERS} watch already, which is the most; close a page", retry_after_s=KEEP_OPEN_EVERY_S
            )
        return LiveResponse(self)

    def add(self) -> Watcher:
        """One more who watches."""
        watcher = Watcher(self._latest)
        self._watchers.add(watcher)
        return watcher

    def drop(self, watcher: Watcher) -> None:
        """One fewer."""
        self._watchers.discard(watcher)

    async def pause(self, gone: asyncio.Task[None]) -> bool:
        """Waits until it is time to send again; False if the watcher has gone or all is at an end."""
        ended = asyncio.ensure_future(self._ended.wait())
        try:
            await asyncio.wait({gone, ended}, timeout=SEND_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
        return not (gone.done() or self._ended.is_set())

    def _show(self, event: Event) -> Shown:
        match event:
            case Served():
                return self._request(event)
            case Audited():
                task = self._name_of(event.task)
                return Shown("audit", event.at, event.request.id, task, name=event.expert[:12], loss=event.loss)
            case Changed():
                return Shown(
                    "change", event.at, "", event.task_name, name=event.expert[:12], change=event.kind,
                    reason=event.reason,
                )  # fmt: skip

    def _request(self, event: Served) -> Shown:
        task = self._name_of(event.task) if event.task is not None else ""
        first_ms = None if event.first_s is None else event.first_s * 1e3
        ms, answer = event.seconds * 1e3, event.answer
        if answer is None:
            return Shown("request", event.at, event.request.id, task, event.by, "", None, event.status, ms, first_ms)
        usage, energy = answer.usage, answer.usage.energy
        return Shown(
            "request", event.at, event.request.id, task, event.by, answer.by, answer.confidence, event.status, ms,
            first_ms, energy.joules, usage.cost, energy.measured, usage.prompt_tokens + usage.completion_tokens,
        )  # fmt: skip


class LiveResponse(Response):
    """The stream to one watcher."""

    def __init__(self, feed: LiveFeed) -> None:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no", **ALWAYS}
        super().__init__(headers=headers, media_type="text/event-stream")
        del self.headers["content-length"]
        self._feed = feed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends until the watcher goes, stalls, or the feed ends."""
        gone = asyncio.ensure_future(_until_gone(receive))
        watcher = self._feed.add()
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._send_all(send, watcher, gone)
        finally:
            self._feed.drop(watcher)
            gone.cancel()

    async def _send_all(self, send: Send, watcher: Watcher, gone: asyncio.Task[None]) -> None:
        piece, sent_at, more = b": Puhui\nretry: 3000\n\n", time.monotonic(), True
        while more:
            if not piece and time.monotonic() - sent_at > KEEP_OPEN_EVERY_S:
                piece = b": still here\n\n"
            if piece:
                async with asyncio.timeout(STALLED_AFTER_S):  # TimeoutError: the server closes the connection
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                sent_at = time.monotonic()
            more = await self._feed.pause(gone)
            piece = watcher.take()
        if not gone.done():
            await send({"type": "http.response.body", "body": piece, "more_body": False})


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
