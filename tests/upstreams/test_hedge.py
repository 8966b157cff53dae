"""Two are asked, one answers, and nothing is left of the other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from puhui.core.answer import Answer
from puhui.core.errors import UpstreamTimeout, UpstreamUnavailable
from puhui.upstreams.hedge import hedged


class One:
    """Says its name after `seconds`, or fails with `error`; knows whether it was asked and given up."""

    def __init__(self, name: str, seconds: float, error: Exception | None = None) -> None:
        self.name, self.seconds, self.error = name, seconds, error
        self.asked = self.cancelled = False

    async def __call__(self) -> str:
        self.asked = True
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if self.error is not None:
            raise self.error
        return self.name


GONE, LATE = UpstreamUnavailable("gone"), UpstreamTimeout("late")


async def test_a_quick_first_is_all_that_is_asked() -> None:
    first, second = One("first", 0.0), One("second", 0.0)
    assert await hedged(first, second, 0.5) == "first"
    assert not second.asked


async def test_a_slow_first_is_overtaken_and_given_up() -> None:
    first, second = One("first", 5.0), One("second", 0.02)
    started = time.perf_counter()
    assert await hedged(first, second, 0.05) == "second"
    assert 0.05 <= time.perf_counter() - started < 1.0
    assert first.cancelled


async def test_a_first_that_is_good_after_all() -> None:
    first, second = One("first", 0.1), One("second", 5.0)
    assert await hedged(first, second, 0.02) == "first"
    assert second.cancelled


@pytest.mark.parametrize(("first", "second"), [(0.05, 0.2), (0.3, 0.02)])
async def test_the_one_that_is_good_counts_whichever_fails(first: float, second: float) -> None:
    assert await hedged(One("first", first, GONE), One("second", second), 0.02) == "second"
    assert await hedged(One("first", first), One("second", second, GONE), 0.02) == "first"


async def test_when_both_fail_the_last_error_is_told() -> None:
    with pytest.raises(UpstreamTimeout):
        await hedged(One("first", 0.05, GONE), One("second", 0.1, LATE), 0.01)
    with pytest.raises(UpstreamUnavailable):
        await hedged(One("first", 0.2, GONE), One("second", 0.02, LATE), 0.01)


async def test_a_first_that_fails_at_once_is_told_at_once() -> None:
    second = One("second", 0.0)
    with pytest.raises(UpstreamUnavailable):
        await hedged(One("first", 0.0, GONE), second, 1.0)
    assert not second.asked


async def test_who_is_cancelled_takes_both_along() -> None:
    first, second = One("first", 5.0), One("second", 5.0)
    task = asyncio.ensure_future(hedged(first, second, 0.01))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert first.cancelled
    assert second.cancelled


async def test_a_stream_that_nobody_takes_is_closed() -> None:
    closed: list[str] = []

    def streaming(name: str) -> Callable[[], Awaitable[Answer]]:
        async def events() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield b""
            finally:
                closed.append(name)

        async def answer() -> Answer:
            await gate.wait()
            pieces = events()
            await anext(pieces)
            return Answer(by=name, pieces=pieces)

        return answer

    gate = asyncio.Event()
    asyncio.get_running_loop().call_later(0.05, gate.set)  # both have their first event in one turn of the loop
    answer = await hedged(streaming("first"), streaming("second"), 0.01)
    assert answer.by == "first"
    assert closed == ["second"]
