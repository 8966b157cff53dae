"""Several big models as one answerer: by weight within a rank, rank after rank, until one answers.

As in LiteLLM's router and in Envoy there is one retry loop, and it lies around the choice: what failed at one upstream
is asked of another at once, and only when all of a rank have failed is it waited for. A library for retries or
breakers (tenacity, aiobreaker, purgatory) wraps one function with one fate; see docs/decisions.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

import msgspec

from puhui.core.answer import Answer, Usage
from puhui.core.errors import (
    SettingsError,
    UnknownModel,
    UpstreamError,
    UpstreamGarbled,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from puhui.core.request import Request
from puhui.core.settings import Tariff
from puhui.models.endpoint import Forwarded
from puhui.models.wire import DONE
from puhui.upstreams.hedge import hedged
from puhui.upstreams.retry import PASSING_STATUSES, RetryPolicy, retried, wait_asked_s
from puhui.upstreams.suitable import suitable
from puhui.upstreams.upstream import Upstream
from puhui.upstreams.upstream_settings import UpstreamSettings
from puhui.upstreams.weights import in_turn

T = TypeVar("T", bound=Answer | Forwarded)
Ask = Callable[[Upstream, Request], Awaitable[T]]
Rank = tuple[Upstream, ...]

ANY_MODEL = "puhui"
"""The name by which a request leaves the choice of the model to the node."""
HEDGE_AFTER = 0.95
LONGEST_WAIT_BEFORE_NEXT_RANK_S = 1.0
EARLY_S = 0.002
"""By which a loop's clock may end a wait too soon."""
NOT_THE_REQUESTS_FAULT = PASSING_STATUSES | {401, 402, 403, 404}
"""Refusals that another upstream might not give: it is busy or broken, or its key or model is wrong."""


class Pool:
    """The big models of a node as one answerer, and one way to forward other requests.

    A request that names a model is for those upstreams that serve it; `puhui` is for all. Raises `NeedsUnmet` where
    none may be asked, the error of the one that was asked, and `UpstreamUnavailable` where several did not answer.
    """

    def __init__(
        self,
        upstreams: Iterable[UpstreamSettings],
        *,
        tariff: Tariff = Tariff(),
        policy: RetryPolicy = RetryPolicy(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.upstreams = tuple(Upstream(settings, clock=clock) for settings in upstreams)
        if not self.upstreams:
            raise SettingsError("there is no upstream; name a big model with --upstream or [[upstream]]")
        self._tariff = tariff
        self._policy = policy
        self._stopping = asyncio.Event()
        anything = [upstream for upstream in self.upstreams if not upstream.names]
        named = [upstream for upstream in self.upstreams if upstream.names]
        self._unnamed = _ranks(anything)
        self._by_name = {
            name: _ranks([upstream for upstream in self.upstreams if not upstream.names or name in upstream.names])
            for name in {name for upstream in named for name in upstream.names}
        }
        self._by_name.setdefault(ANY_MODEL, _ranks(named or anything))

    @property
    def models(self) -> tuple[str, ...]:
        """The names that a request may give, in the upstreams' order; empty if any passes."""
        if self._unnamed:
            return ()
        own = (upstream.endpoint.model for upstream in self.upstreams)
        names = [name for name in own if name is not None]
        return tuple(dict.fromkeys([*names, *sorted(self._by_name.keys() - {ANY_MODEL}), ANY_MODEL]))

    async def __call__(self, request: Request) -> Answer:
        """The answer of the first upstream that has a good one."""
        return await self._ask(request, Upstream.__call__)

    async def forward(self, path: str, request: Request) -> Forwarded:
        """The reply of the first upstream that has a good one to a POST of the request's body to `path`."""
        return await self._ask(request, lambda upstream, asked: upstream.forward(path, asked))

    async def close(self) -> None:
        """Closes all connections."""
        await asyncio.gather(*(upstream.endpoint.close() for upstream in self.upstreams))

    async def stop(self) -> None:
        """Breaks off what is under way, and asks nothing any more: who waits gets `UpstreamUnavailable`."""
        self._stopping.set()
        await asyncio.gather(*(upstream.endpoint.stop() for upstream in self.upstreams))

    def state(self) -> list[dict[str, Any]]:
        """Each upstream's health."""
        return [upstream.state() for upstream in self.upstreams]

    async def _ask(self, request: Request, ask: Ask[T]) -> T:
        return await Call(request, ask, self._ranks_for(request), self._policy, self._rest).answer()

    async def _rest(self, seconds: float) -> None:
        """Between two attempts; not when the node is stopped, which the next attempt will say."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    def _ranks_for(self, request: Request) -> tuple[Rank, ...]:
        ranks = self._by_name.get(request.model, self._unnamed)
        if not ranks:
            raise UnknownModel(f"no model {request.model!r} here; there is: {', '.join(self.models)}")
        if request.needs.latency_ms is None and request.needs.max_cost is None and request.needs.privacy == "any":
            return ranks
        return _ranks(suitable([upstream for rank in ranks for upstream in rank], request, self._tariff))


class Call(Generic[T]):
    """One request on its way through the ranks."""

    def __init__(
        self,
        request: Request,
        ask: Ask[T],
        ranks: tuple[Rank, ...],
        policy: RetryPolicy,
        rest: Callable[[float], Awaitable[None]],
    ) -> None:
        latency_ms = request.needs.latency_ms
        self._request = request
        self._ask = ask
        self._ranks = ranks
        self._policy = policy
        self._rest = rest
        self._deadline = None if latency_ms is None else time.monotonic() + latency_ms / 1000.0
        self._started = time.perf_counter()
        self._errors: dict[Upstream, UpstreamError] = {}
        self._given_up: list[Upstream] = []

    async def answer(self) -> T:
        """What the first upstream with a good answer says."""
        last = len(self._ranks) - 1
        for number, rank in enumerate(self._ranks):
            spare = self._ranks[number + 1] if number < last else ()
            try:
                reply = await retried(
                    partial(self._round, rank, spare),
                    self._policy_of(rank, is_last=number == last),
                    deadline=self._deadline,
                    sleep=self._rest,
                )
            except UpstreamError as error:
                if not _another_may_do(error):
                    raise
            else:
                reply.given_up = tuple(upstream.prices for upstream in self._given_up)
                if (self._errors or self._given_up) and isinstance(reply, Answer):
                    self._count_all_the_time(reply)
                return reply
        raise self._none_answered()

    def _count_all_the_time(self, answer: Answer) -> None:
        """Has the answer say how long the caller waited: it knows of its own attempt alone."""
        if answer.pieces is None:
            answer.usage = _lasting(answer.usage, self._started)
        else:
            answer.pieces = _timed(answer, answer.pieces, self._started)

    def _policy_of(self, rank: Rank, *, is_last: bool) -> RetryPolicy:
        retries = max(upstream.settings.retries for upstream in rank)
        longest_s = self._policy.longest_s if is_last else LONGEST_WAIT_BEFORE_NEXT_RANK_S
        if (retries, longest_s) == (self._policy.retries, self._policy.longest_s):
            return self._policy
        return msgspec.structs.replace(self._policy, retries=retries, longest_s=longest_s)

    async def _round(self, rank: Rank, spare: Rank) -> T:
        """Each of a rank is asked once, until one answers; raises the last one's error."""
        left = deque(_order(rank, self._request))
        while True:
            first = left.popleft()
            try:
                after_s = self._hedge_after_s(first, alone=not (left or spare))
                if after_s is None:
                    return await self._one(first)
                return await hedged(partial(self._one, first), partial(self._second, left, spare), after_s)
            except UpstreamError as error:
                if not (left and _another_may_do(error)):
                    raise

    async def _second(self, left: deque[Upstream], spare: Rank) -> T:
        """The next one's answer, while the first is waited for: of this rank, or else of the one below."""
        if left:
            return await self._one(left.popleft())
        return await self._one(_order(spare, self._request)[0])

    async def _one(self, upstream: Upstream) -> T:
        request = self._request
        if self._deadline is not None:
            left_ms = 1000.0 * (self._deadline - time.monotonic())
            needs = msgspec.structs.replace(request.needs, latency_ms=max(left_ms, 0.0))
            request = msgspec.structs.replace(request, needs=needs)
        try:
            return await self._ask(upstream, request)
        except UpstreamError as error:
            self._errors[upstream] = error
            raise
        except asyncio.CancelledError:  # another was quicker; this one may have read the prompt by now
            self._given_up.append(upstream)
            raise

    def _hedge_after_s(self, first: Upstream, *, alone: bool) -> float | None:
        """When a second upstream is asked as well; None where it is not."""
        latency_ms = self._request.needs.latency_ms
        if alone or (latency_ms is None and not first.settings.hedge):
            return None
        usual_s = first.taken_s(HEDGE_AFTER, stream=self._request.stream)
        if latency_ms is None:
            return usual_s
        half_s = latency_ms / 2000.0
        return half_s if usual_s is None else min(usual_s, half_s)

    def _none_answered(self) -> UpstreamError:
        *others, last = self._errors.values()
        if self._deadline is not None and time.monotonic() >= self._deadline - EARLY_S:
            return UpstreamTimeout(
                f"no big model answered within the {self._request.needs.latency_ms:g} ms that the request allows"
            )
        if not others:
            return last
        waits = [wait_s for error in self._errors.values() if (wait_s := wait_asked_s(error)) is not None]
        told = "; ".join(str(error) for error in self._errors.values())
        return UpstreamUnavailable(
            f"none of {len(self._errors)} big models answered: {told}", retry_after_s=min(waits, default=None)
        )


def _lasting(usage: Usage, started: float) -> Usage:
    return msgspec.structs.replace(usage, seconds=time.perf_counter() - started)


async def _timed(answer: Answer, pieces: AsyncIterator[bytes], started: float) -> AsyncIterator[bytes]:
    """The same pieces; by the last of them the answer's usage has the seconds since `started`."""
    async for piece in pieces:
        if piece == DONE:
            answer.usage = _lasting(answer.usage, started)
        yield piece


def _ranks(upstreams: Sequence[Upstream]) -> tuple[Rank, ...]:
    numbers = sorted({upstream.settings.rank for upstream in upstreams})
    return tuple(tuple(each for each in upstreams if each.settings.rank == number) for number in numbers)


def _order(rank: Rank, request: Request) -> Sequence[Upstream]:
    """A rank in the order in which it is asked: those that are left alone not at all if there are others."""
    if len(rank) == 1:
        return rank
    ready = [upstream for upstream in rank if upstream.breaker_for(request).may_pass]
    if not ready:
        return (min(rank, key=lambda upstream: upstream.breaker_for(request).wait_s),)
    return sorted(in_turn(ready), key=lambda upstream: upstream.rests)


def _another_may_do(error: UpstreamError) -> bool:
    """Whether another upstream might answer what one did not."""
    if isinstance(error, UpstreamRefused):
        return error.status in NOT_THE_REQUESTS_FAULT
    return isinstance(error, UpstreamUnavailable | UpstreamTimeout | UpstreamGarbled)
