"""A teacher in the tests that answers by a rule, at once, and counts what it is asked."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence

from puhui.core.errors import UpstreamRefused
from puhui.teachers.teacher import Told


class Plain:
    """A teacher that answers by `rule`, an answer or the error that it raises, and counts what it is asked."""

    name, digest = "plain", "plain-1"
    deterministic: bool | None = None
    labels: tuple[str, ...] = ()

    def __init__(
        self, rule: Callable[[str], str] = str.upper, *, parallel: int = 1, batch: int = 1, cost: float | None = 0.0
    ) -> None:
        self.rule, self.parallel, self.batch, self.cost = rule, parallel, batch, cost
        self.asked: Counter[str] = Counter()
        self.closed = self.most_at_once = self._at_once = 0

    async def ask_many(self, texts: Sequence[str]) -> list[Told]:
        self.asked.update(texts)
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            await asyncio.sleep(0)
            return [
                Told(answer=self.rule(text), seconds=0.1, tokens_in=2, tokens_out=1, cost=self.cost) for text in texts
            ]
        finally:
            self._at_once -= 1

    async def close(self) -> None:
        self.closed += 1


def failing(times: int, error: Exception) -> Callable[[str], str]:
    """A rule that fails so many times for each text first."""
    seen: Counter[str] = Counter()

    def rule(text: str) -> str:
        seen[text] += 1
        if seen[text] <= times:
            raise error
        return text.upper()

    return rule


def refused(status: int, retry_after: str | None = None) -> UpstreamRefused:
    return UpstreamRefused(f"status {status}", status=status, body=b"no", retry_after=retry_after)
