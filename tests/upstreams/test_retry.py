"""Asking again: what, how often, and how long at most."""

from __future__ import annotations

import email.utils

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puhui.core.errors import (
    InvalidRequest,
    UpstreamError,
    UpstreamGarbled,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from puhui.upstreams.retry import RetryPolicy, backoff_s, may_retry, retried, wait_asked_s


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def refused(status: int = 503, retry_after: str | None = None) -> UpstreamRefused:
    return UpstreamRefused("no", status=status, body=b"", retry_after=retry_after)


class Asked:
    """Fails with the errors it is given, in turn, and then answers; each attempt takes `seconds`."""

    def __init__(self, clock: Clock, *errors: Exception, seconds: float = 0.0) -> None:
        self.clock = clock
        self.errors = list(errors)
        self.seconds = seconds
        self.attempts = 0

    async def __call__(self) -> str:
        self.attempts += 1
        self.clock.now += self.seconds
        if self.errors:
            raise self.errors.pop(0)
        return "said"


async def run(asked: Asked, policy: RetryPolicy = RetryPolicy(), deadline: float | None = None) -> str:
    return await retried(asked, policy, deadline=deadline, clock=asked.clock, sleep=asked.clock.sleep)


@pytest.mark.parametrize(
    ("error", "may"),
    [
        (UpstreamUnavailable("x"), True),
        (UpstreamUnavailable("left alone", retry_after_s=3.0), False),
        (UpstreamTimeout("x"), True),
        (UpstreamGarbled("x"), False),
        *((refused(status), True) for status in (408, 409, 425, 429, 500, 502, 503, 504, 529)),
        *((refused(status), False) for status in (307, 400, 401, 403, 404, 413, 422, 501)),
    ],
    ids=lambda value: f"{value} {getattr(value, 'status', '')}",
)
async def test_what_is_asked_again(error: UpstreamError, may: bool) -> None:
    assert may_retry(error) is may
    asked = Asked(Clock(), error)
    if may:
        assert await run(asked) == "said"
    else:
        with pytest.raises(type(error)):
            await run(asked)
    assert asked.attempts == 1 + may


async def test_other_errors_are_not_touched() -> None:
    asked = Asked(Clock(), InvalidRequest("x"))
    with pytest.raises(InvalidRequest):
        await run(asked)
    assert asked.attempts == 1


async def test_the_last_error_is_the_one_that_is_told() -> None:
    asked = Asked(Clock(), refused(500), refused(502), refused(503), refused(504))
    with pytest.raises(UpstreamRefused) as caught:
        await run(asked, RetryPolicy(retries=2))
    assert (asked.attempts, caught.value.status) == (3, 503)
    asked = Asked(Clock(), refused())
    with pytest.raises(UpstreamRefused):
        await run(asked, RetryPolicy(retries=0))


async def test_what_the_upstream_asks_for_is_waited_for() -> None:
    asked = Asked(Clock(), refused(429, "3"))
    assert await run(asked) == "said"
    assert 3.0 <= asked.clock.slept[0] <= 3.25
    asked = Asked(Clock(), refused(429, "9"))
    with pytest.raises(UpstreamRefused):  # longer than anyone should be kept waiting: the caller is told
        await run(asked)
    assert asked.clock.slept == []


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("-3", 0.0),
        (email.utils.formatdate(1_000_030, usegmt=True), 30.0),
        (email.utils.formatdate(999_000, usegmt=True), 0.0),
        ("soon", None),
        ("", None),
        ("nan", None),
        ("inf", None),
        ("Mon, 99 Foo 20261 00:00:00 GMT", None),
        (None, None),
    ],
)
def test_retry_after(given: str | None, seconds: float | None) -> None:
    assert wait_asked_s(refused(429, given), now=1_000_000.0) == seconds


@given(st.text(max_size=40))
def test_no_retry_after_is_a_fault(text: str) -> None:
    seconds = wait_asked_s(refused(429, text))
    assert seconds is None or 0.0 <= seconds < float("inf")


@given(
    st.builds(
        RetryPolicy,
        retries=st.integers(0, 10),
        base_s=st.floats(0.001, 10.0),
        longest_s=st.floats(0.001, 100.0),
        whole_s=st.floats(0.001, 100.0),
    ),
    st.integers(0, 2_000),
    st.floats(0.0, 1.0, exclude_max=True),
)
def test_bounds_of_backoff(policy: RetryPolicy, number: int, drawn: float) -> None:
    wait_s = backoff_s(policy, number, lambda: drawn)
    assert 0.0 <= wait_s <= policy.longest_s
    assert wait_s <= policy.base_s * 2.0 ** min(number, 60)
    assert wait_s <= backoff_s(policy, number + 1, lambda: drawn), "later and later, for one and the same draw"


@given(
    st.builds(
        RetryPolicy,
        retries=st.integers(0, 10),
        base_s=st.floats(0.001, 10.0),
        longest_s=st.floats(0.001, 20.0),
        whole_s=st.floats(0.001, 100.0),
    ),
    st.lists(st.sampled_from([None, "0", "1", "5", "1000"]), max_size=20),
    st.floats(0.0, 5.0),
    st.none() | st.floats(0.0, 50.0),
)
async def test_bounds_of_all_attempts(
    policy: RetryPolicy, waits: list[str | None], seconds: float, deadline: float | None
) -> None:
    clock = Clock()
    asked = Asked(clock, *(refused(429, wait) for wait in waits), seconds=seconds)
    failed = False
    try:
        await run(asked, policy, deadline)
    except UpstreamRefused:
        failed = True
    assert 1 <= asked.attempts <= 1 + policy.retries
    assert all(0.0 <= slept <= policy.longest_s + policy.base_s for slept in clock.slept)
    begun_last = clock.now - seconds
    if asked.attempts > 1:
        assert begun_last < (policy.whole_s if deadline is None else min(policy.whole_s, deadline)) + 1e-9
    assert failed == (asked.attempts <= len(waits))
