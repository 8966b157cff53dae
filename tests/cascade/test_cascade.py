"""Answerers in order: the first that is sure enough answers, and the bill counts all that were asked."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puhui.cascade.agreement import canonical, loss_of
from puhui.cascade.cascade import Cascade, Stage, add_usage
from puhui.core.answer import Answer, Answerer, Energy, Step, Usage
from puhui.core.errors import UpstreamUnavailable
from puhui.core.request import Message, Request

REQUEST = Request(id="r", model="m", messages=(Message("user", "q"),), body=b"{}")
USAGE = Usage(
    prompt_tokens=1, completion_tokens=2, seconds=0.5, cpu_seconds=0.25, energy=Energy(4, 2, 8), co2_g=3, cost=5
)


def says(name: str, confidence: float | None, asked: list[str] | None = None) -> Answerer:
    async def answer(request: Request) -> Answer:
        if asked is not None:
            asked.append(name)
        return Answer(by=name, text=name, confidence=confidence, path=(Step(name, confidence, True),), usage=USAGE)

    return answer


SURE = st.none() | st.floats(0, 1)


@given(st.lists(st.tuples(SURE, st.floats(0, 1)), min_size=1, max_size=6))
def test_the_first_that_is_sure_enough(stages: list[tuple[float | None, float]]) -> None:
    asked: list[str] = []
    cascade = Cascade(*(Stage(says(str(n), sure, asked), least) for n, (sure, least) in enumerate(stages)))
    answer = asyncio.run(cascade(REQUEST))
    enough = [n for n, (sure, least) in enumerate(stages) if sure is None or sure >= least]
    chosen = enough[0] if enough else len(stages) - 1
    assert answer.text == str(chosen)
    assert asked == [str(n) for n in range(chosen + 1)]
    assert [(step.name, step.taken) for step in answer.path] == [(str(n), n == chosen) for n in range(chosen + 1)]
    assert (answer.usage.prompt_tokens, answer.earlier.prompt_tokens) == (chosen + 1, chosen)
    assert answer.usage.energy == Energy(4.0 * (chosen + 1), 2.0 * (chosen + 1), 8.0 * (chosen + 1))
    assert answer.usage.cost == 5 * (chosen + 1)


def test_the_same_stage_twice_is_asked_twice() -> None:
    asked: list[str] = []
    stage = Stage(says("a", 0.1, asked), 0.5)
    answer = asyncio.run(Cascade(stage, stage)(REQUEST))
    assert asked == ["a", "a"]
    assert [step.taken for step in answer.path] == [False, True]


def test_a_cascade_of_cascades() -> None:
    inner = Cascade(Stage(says("a", 0.1), 0.5), Stage(says("b", 0.2)))
    answer = asyncio.run(Cascade(Stage(inner, 0.5), Stage(says("c", None)))(REQUEST))
    assert [(step.name, step.taken) for step in answer.path] == [("a", False), ("b", False), ("c", True)]
    assert answer.usage.completion_tokens == 6


def test_a_failure_is_the_callers_to_see() -> None:
    async def down(request: Request) -> Answer:
        raise UpstreamUnavailable("down")

    with pytest.raises(UpstreamUnavailable):
        asyncio.run(Cascade(Stage(says("a", 0.1), 0.5), Stage(down))(REQUEST))
    assert asyncio.run(Cascade(Stage(says("a", 0.9), 0.5), Stage(down))(REQUEST)).text == "a"


def test_a_cascade_of_nobody() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Cascade()


def test_nothing_adds_nothing() -> None:
    assert add_usage(USAGE, Usage()) == USAGE
    assert add_usage(Usage(), USAGE) == USAGE


@given(st.text(max_size=10), st.text(max_size=10))
def test_the_loss_is_symmetric_and_blind_to_space_around(first: str, second: str) -> None:
    assert loss_of(first, second) == loss_of(second, first) == float(first.strip() != second.strip())
    assert loss_of(f" {first}\n", first) == 0.0
    assert loss_of(None, second) == 0.0
    assert canonical(canonical(first)) == canonical(first)
