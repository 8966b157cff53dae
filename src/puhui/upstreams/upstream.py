"""One big model behind the pool: its endpoint, what it is for, and its health."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from puhui.core.answer import Answer, Prices
from puhui.core.errors import UpstreamError, UpstreamRefused, UpstreamTimeout, UpstreamUnavailable
from puhui.core.request import Request
from puhui.models.endpoint import Endpoint, Forwarded, open_reference
from puhui.upstreams.breaker import Breaker, Breakers
from puhui.upstreams.recent import Recent
from puhui.upstreams.retry import wait_asked_s
from puhui.upstreams.upstream_settings import UpstreamSettings, is_on_site

T = TypeVar("T", Answer, Forwarded)

LONGEST_REST_S = 60.0


class Upstream:
    """An answerer around an endpoint, with a breaker for each model. `requests` and `errors` count what it was asked.

    It fails by not being there, by being late, by rubbish and by a status of 500 and more. A refusal with 4xx is an
    answer; after 429 it rests for as long as it says: others are asked before it.
    """

    def __init__(self, settings: UpstreamSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings = settings
        self.endpoint: Endpoint = open_reference(
            settings.ref, key=settings.key, pass_key=settings.pass_key, timeouts=settings.timeouts
        )
        self.name = self.endpoint.url if self.endpoint.model is None else f"{self.endpoint.model}@{self.endpoint.url}"
        self.weight = settings.weight
        self.on_site = is_on_site(self.endpoint.url) if settings.site is None else settings.site
        self._breakers = Breakers(clock=clock)
        self.whole = Recent(clock=clock)
        self.first_event = Recent(clock=clock)
        self.requests = self.errors = 0
        self.last_error = ""
        self._clock = clock
        self._rests_until = 0.0

    def __repr__(self) -> str:
        return f"Upstream({self.name!r})"

    @property
    def names(self) -> frozenset[str]:
        """The models by which a request may ask for it; empty if any passes."""
        own = () if self.endpoint.model is None else (self.endpoint.model,)
        return frozenset((*own, *self.settings.serves))

    @property
    def rests(self) -> bool:
        """Whether it asked to be spared for now."""
        return self._rests_until > 0.0 and self._clock() < self._rests_until

    @property
    def prices(self) -> Prices | None:
        """What it takes; None: what the tariff says."""
        price_in, price_out = self.settings.price_in, self.settings.price_out
        return None if price_in is None and price_out is None else (price_in or 0.0, price_out or 0.0)

    def breaker_for(self, request: Request) -> Breaker:
        """The breaker of the model that the request would get here."""
        return self._breakers.of("" if self.endpoint.model is not None else request.model)

    def taken_s(self, share: float, *, stream: bool) -> float | None:
        """The quantile of how long its latest answers took (streams: until their first event), if it is known."""
        return (self.first_event if stream else self.whole).quantile(share)

    async def __call__(self, request: Request) -> Answer:
        """The endpoint's answer."""
        started = time.perf_counter()
        breaker = self.breaker_for(request)
        answer = await self._watched(breaker, self._admit(breaker), request, self.endpoint(request))
        recent = self.whole if answer.pieces is None else self.first_event
        recent.add(time.perf_counter() - started)
        return answer

    async def forward(self, path: str, request: Request) -> Forwarded:
        """The endpoint's reply to a request that passes as it is."""
        breaker = self.breaker_for(request)
        return await self._watched(breaker, self._admit(breaker), request, self.endpoint.forward(path, request))

    def state(self) -> dict[str, Any]:
        """Its health, for people and pages."""
        breaker = self._breakers.best
        seconds = {
            "p50_ms": self.whole.quantile(0.5),
            "p95_ms": self.whole.quantile(0.95),
            "first_event_p50_ms": self.first_event.quantile(0.5),
        }
        return {
            "url": self.endpoint.url,
            "model": self.endpoint.model,
            "rank": self.settings.rank,
            "weight": self.weight,
            "site": self.on_site,
            "breaker": breaker.state,
            "retry_in_s": round(breaker.wait_s, 3),
            "rests": self.rests,
            "requests": self.requests,
            "errors": self.errors,
            "last_error": self.last_error,
        } | {name: None if value is None else round(1000.0 * value, 3) for name, value in seconds.items()}

    def _admit(self, breaker: Breaker) -> int:
        ticket = breaker.admit()
        if ticket is None:
            raise UpstreamUnavailable(
                f"{self.name} failed too often of late and is left alone for now; its last error: {self.last_error}",
                retry_after_s=breaker.wait_s,
            )
        self.requests += 1
        return ticket

    async def _watched(self, breaker: Breaker, ticket: int, request: Request, asked: Awaitable[T]) -> T:
        try:
            reply = await asked
        except UpstreamError as error:
            self._note(breaker, ticket, request, error)
            raise
        except BaseException:
            breaker.undecided(ticket)
            raise
        reply.prices = self.prices
        if reply.pieces is None:
            breaker.succeeded(ticket)
            return reply
        if breaker.state != "closed":  # to try is to begin: others need not wait for the end of a long stream
            breaker.succeeded(ticket)
        reply.pieces = self._watched_pieces(breaker, ticket, request, reply.pieces)
        return reply

    async def _watched_pieces(
        self, breaker: Breaker, ticket: int, request: Request, pieces: AsyncIterator[bytes]
    ) -> AsyncIterator[bytes]:
        try:
            async for piece in pieces:
                yield piece
        except UpstreamError as error:
            self._note(breaker, ticket, request, error)
            raise
        breaker.succeeded(ticket)

    def _note(self, breaker: Breaker, ticket: int, request: Request, error: UpstreamError) -> None:
        self.errors += 1
        self.last_error = str(error)
        wait_s = min(wait_asked_s(error) or 0.0, LONGEST_REST_S)
        if isinstance(error, UpstreamRefused) and error.status < 500:
            breaker.succeeded(ticket)
            if error.status == 429 and self.endpoint.has_key:  # else it is that one caller who asked too much
                self._rests_until = self._clock() + wait_s
        elif not request.awaited or (isinstance(error, UpstreamTimeout) and request.needs.latency_ms is not None):
            breaker.undecided(ticket)  # an audit, asked again and again, or the caller's hurry
        else:
            breaker.failed(ticket, wait_s=wait_s)
