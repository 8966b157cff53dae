"""Answerers in order, cheapest first: the first one that is sure enough answers."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec

from puhui.core.answer import Answer, Answerer, Step, Usage
from puhui.core.request import Request
from puhui.models.wire import DONE


class Stage(msgspec.Struct, frozen=True):
    """One answerer of a cascade; its answer is taken at confidence ≥ `threshold` (0: always)."""

    answerer: Answerer
    threshold: float = 0.0


class Cascade:
    """An answerer that asks its stages in turn. The last stage's answer is taken whatever its confidence."""

    def __init__(self, *stages: Stage) -> None:
        if not stages:
            raise ValueError("a cascade needs at least one stage")
        self.stages = stages

    async def __call__(self, request: Request) -> Answer:
        """The first answer that is sure enough. Its path names every stage asked, its usage counts them all."""
        path: tuple[Step, ...] = ()
        spent: Usage | None = None
        for number, stage in enumerate(self.stages, 1):
            answer = await stage.answerer(request)
            sure = answer.confidence is None or answer.confidence >= stage.threshold
            if sure or number == len(self.stages):
                answer.path = path + answer.path
                return answer if spent is None else _count_in(answer, spent)
            path += tuple(msgspec.structs.replace(step, taken=False) for step in answer.path)
            spent = answer.usage if spent is None else add_usage(spent, answer.usage)
        raise AssertionError("unreachable: the last stage always answers")


def _count_in(answer: Answer, spent: Usage) -> Answer:
    """The answer, its usage with what was spent before."""
    answer.earlier = add_usage(spent, answer.earlier)
    if answer.pieces is None:
        answer.usage = add_usage(spent, answer.usage)
    else:
        answer.pieces = _with_earlier(answer, answer.pieces, spent)
    return answer


async def _with_earlier(answer: Answer, pieces: AsyncIterator[bytes], spent: Usage) -> AsyncIterator[bytes]:
    """The same pieces; the answer's usage, which it has by its last piece, then counts earlier stages too."""
    async for piece in pieces:
        if piece == DONE:
            answer.usage = add_usage(spent, answer.usage)
        yield piece


def add_usage(first: Usage, second: Usage) -> Usage:
    """Both usages together."""
    return Usage(
        prompt_tokens=first.prompt_tokens + second.prompt_tokens,
        completion_tokens=first.completion_tokens + second.completion_tokens,
        seconds=first.seconds + second.seconds,
        cpu_seconds=first.cpu_seconds + second.cpu_seconds,
        energy=first.energy + second.energy,
        co2_g=first.co2_g + second.co2_g,
        cost=first.cost + second.cost,
    )
