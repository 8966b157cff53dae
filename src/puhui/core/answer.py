"""What comes back, what it cost, and the one callable type of everything that answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeAlias

import msgspec

from puhui.core.request import Request


class Energy(msgspec.Struct, frozen=True):
    """Joules, with a low and a high bound. `measured` is False for an estimate (then the bounds are wide)."""

    joules: float = 0.0
    low: float = 0.0
    high: float = 0.0
    measured: bool = False

    def __add__(self, other: Energy) -> Energy:
        """The sum, measured only if both parts are (an empty part does not count)."""
        if not self.high:
            return other
        if not other.high:
            return self
        return Energy(
            self.joules + other.joules,
            self.low + other.low,
            self.high + other.high,
            self.measured and other.measured,
        )


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer used. `cost` is in the currency of the node's tariff, `co2_g` in grams of CO₂."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    energy: Energy = Energy()
    co2_g: float = 0.0
    cost: float = 0.0


class Step(msgspec.Struct, frozen=True):
    """One stop on an answer's path: who was asked, how sure it was, and whether its answer was taken."""

    name: str
    confidence: float | None
    taken: bool


Prices: TypeAlias = tuple[float, float]
"""Money for a million tokens read, and written."""


class Answer(msgspec.Struct, kw_only=True):
    """An answer and how it came about.

    `text` is the answer's text (None while it streams, or when it is not plain text, such as a tool call).
    `confidence` lies in [0, 1], or is None where the answerer claims none: it is then taken as it is.
    `alternatives` are the likeliest first tokens of the answer with their natural log-probabilities.
    `body` is the reply as an upstream sent it. `pieces` yields server-sent events as bytes, each with its
    blank line, for an answer that streams; `text`, `usage` and `finish` are set by the time they are exhausted.
    `earlier` is the part of `usage` that others used who were asked before and were not sure. `prices` are money for a
    million tokens read and written by whoever answered (None: the tariff's), `given_up` those of others who were asked
    at the same time, and will want them for the prompt. `finish` is
    why it ended, in OpenAI's words: `stop` at its own end, `length` where it was cut at the most tokens allowed.
    `headers` are those of an upstream's reply that are for the caller, names in small letters.
    """

    by: str
    text: str | None = None
    confidence: float | None = None
    path: tuple[Step, ...] = ()
    usage: Usage = Usage()
    earlier: Usage = Usage()
    expert: str | None = None
    alternatives: tuple[tuple[str, float], ...] = ()
    body: bytes | None = None
    pieces: AsyncIterator[bytes] | None = None
    prices: Prices | None = None
    given_up: tuple[Prices | None, ...] = ()
    finish: str = "stop"
    headers: tuple[tuple[str, str], ...] = ()


Answerer = Callable[[Request], Awaitable[Answer]]
