"""Asking again: only what may be asked again, later and later, and never for longer than is allowed.

Waits are drawn by full jitter, uniformly from nothing to a bound that doubles (M. Brooker, Exponential Backoff And
Jitter, 2015), so that those who failed together do not come back together. What an upstream says in `Retry-After`
(RFC 9110, 10.2.3) is waited for at least.
"""

from __future__ import annotations

import asyncio
import email.utils
import math
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec

from puhui.core.errors import UpstreamError, UpstreamRefused, UpstreamTimeout, UpstreamUnavailable

T = TypeVar("T")

PASSING_STATUSES = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""Refusals that may be over in a moment; 409 is a lock, 529 an overload at some."""


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How often and how long something is asked again.

    `retries` come after the first attempt. The n-th wait is drawn from 0 to `base_s`·2ⁿ seconds, `longest_s` at most;
    where an upstream asks for a longer wait than that, it is given up. After `whole_s` seconds nothing is begun.
    """

    retries: int = 2
    base_s: float = 0.25
    longest_s: float = 8.0
    whole_s: float = 30.0


def may_retry(error: UpstreamError) -> bool:
    """Whether the same may go well in a moment. Whoever raised an `UpstreamUnavailable` with a time knows better."""
    match error:
        case UpstreamRefused():
            return error.status in PASSING_STATUSES
        case UpstreamUnavailable():
            return error.retry_after_s is None
    return isinstance(error, UpstreamTimeout)


def wait_asked_s(error: UpstreamError, *, now: float | None = None) -> float | None:
    """Seconds that the upstream asked to wait; None if it did not, or not in a way that can be read.

    `now` is the time by the clock, in seconds since 1970, for a `Retry-After` that is a date.

    >>> wait_asked_s(UpstreamRefused("busy", status=429, body=b"", retry_after="7"))
    7.0
    """
    if isinstance(error, UpstreamUnavailable):
        return error.retry_after_s
    if not isinstance(error, UpstreamRefused) or error.retry_after is None:
        return None
    try:
        seconds = float(error.retry_after)
    except ValueError:
        try:
            until = email.utils.parsedate_to_datetime(error.retry_after).timestamp()
        except (ValueError, OverflowError):
            return None
        seconds = until - (time.time() if now is None else now)
    return max(0.0, seconds) if math.isfinite(seconds) else None


def backoff_s(policy: RetryPolicy, number: int, draw: Callable[[], float] = random.random) -> float:
    """How long to wait before the retry `number` (0 is the first). `draw` gives numbers in [0, 1)."""
    return draw() * min(policy.longest_s, policy.base_s * 2.0 ** min(number, 60))


async def retried(
    ask: Callable[[], Awaitable[T]],
    policy: RetryPolicy,
    *,
    deadline: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> T:
    """What `ask` gives in the end, or the last `UpstreamError`. By `deadline` (of `clock`) no wait may end."""
    started = clock()
    end = started + policy.whole_s if deadline is None else min(started + policy.whole_s, deadline)
    number = 0
    while True:
        try:
            return await ask()
        except UpstreamError as error:
            if number >= policy.retries or not may_retry(error):
                raise
            asked_s = wait_asked_s(error)
            wait_s = backoff_s(policy, number)
            if asked_s is not None:
                wait_s = asked_s + min(wait_s, policy.base_s)  # all who were told the same would come back as one
            if (asked_s or 0.0) > policy.longest_s or clock() + wait_s >= end:
                raise
        number += 1
        await sleep(wait_s)
