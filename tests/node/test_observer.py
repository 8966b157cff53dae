"""Observers of a whole node: what they are told, in which order, and that they can break nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import func, insert, select

import experts as sample
from puhui.core.answer import Answer
from puhui.core.errors import UpstreamRefused
from puhui.core.request import Caller, Request
from puhui.core.settings import AuditRate
from puhui.evolve.traffic import sort_request
from puhui.gateway.chat import read_request
from puhui.models.endpoint import Endpoint
from puhui.node.node import Node
from puhui.node.observer import Audited, Changed, Event, Observer, Observers, Served
from puhui.node.roster import Roster
from puhui.store.database import Store
from puhui.store.tables import about, ledger
from puhui.trust.keys import SigningKey, load_or_create_key
from serving import BigModel

ALWAYS = AuditRate(0.9, 1.0, 0.9)
SELDOM = AuditRate(1e-9, 1e-9, 1e-9)
QUESTIONS = sample.questions(60, seed=5)


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return load_or_create_key(tmp_path / "node.key")


@contextlib.asynccontextmanager
async def node(
    store: Store, big: BigModel, key: SigningKey, *observers: Observer, audit_rate: AuditRate = SELDOM
) -> AsyncIterator[Node]:
    endpoint = Endpoint(big.url)
    roster = Roster(store, {key.public})
    async with Node(store, endpoint, roster, audit_rate=audit_rate, seed=1, observers=observers) as opened:
        yield opened
    await endpoint.close()


def ask(question: str, **fields: Any) -> Request:
    messages = [{"role": "system", "content": sample.SYSTEM}, {"role": "user", "content": question}]
    asked = read_request(msgspec.json.encode({"model": "m", "messages": messages} | fields), {})
    return msgspec.structs.replace(asked, caller=Caller(key="k1"))


def install(store: Store, key: SigningKey, folder: Path) -> str:
    traffic = sort_request(ask("x"))
    assert traffic is not None
    return sample.promote(store, folder, key, traffic.group)[0]


async def until(condition: Callable[[], Any]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("waited in vain")


def committed(store: Store, id: str) -> int:
    with store.begin() as connection:
        return connection.execute(select(func.count()).where(ledger.c.id == id)).scalar_one()


async def test_it_is_told_of_an_answer_once_its_row_is_there(store: Store, big: BigModel, key: SigningKey) -> None:
    told: list[Event] = []
    rows: list[int] = []

    def observer(event: Event) -> None:
        told.append(event)
        if isinstance(event, Served):
            rows.append(committed(store, event.request.id))

    async with node(store, big, key, observer) as running:
        answer = await running(ask("hello"))
    (event,) = told
    assert rows == [1]
    assert isinstance(event, Served)
    assert (event.by, event.status, event.reason, event.first_s) == ("big", 200, None, None)
    assert event.answer is answer
    assert event.request.caller.key == "k1"
    assert event.answer.usage.prompt_tokens == 11
    assert event.answer.usage.energy.high > event.answer.usage.energy.low > 0
    assert event.seconds >= event.answer.usage.seconds > 0


async def test_it_is_told_of_a_stream_when_it_ends(store: Store, big: BigModel, key: SigningKey) -> None:
    told: list[Event] = []
    async with node(store, big, key, told.append) as running:
        answer = await running(ask("hello", stream=True))
        assert answer.pieces is not None
        async for piece in answer.pieces:
            assert told == [] or piece == b"data: [DONE]\n\n"
    (event,) = told
    assert isinstance(event, Served)
    assert event.first_s is not None
    assert 0 < event.first_s <= event.seconds
    assert event.answer is not None
    assert event.answer.usage.completion_tokens == 3


async def test_it_is_told_of_a_client_that_went_away(store: Store, big: BigModel, key: SigningKey) -> None:
    told: list[Event] = []
    async with node(store, big, key, told.append) as running:
        answer = await running(ask("hello", stream=True))
        assert answer.pieces is not None
        assert await anext(answer.pieces)
        await answer.pieces.aclose()  # type: ignore[attr-defined]
        await until(lambda: told)
    (event,) = told
    assert isinstance(event, Served)
    assert (event.by, event.status) == ("none", 499)


async def test_a_client_that_leaves_while_the_row_is_written_is_one_answer(
    store: Store, big: BigModel, key: SigningKey
) -> None:
    told: list[Event] = []
    async with node(store, big, key, told.append) as running:
        request = ask("hello", stream=True)
        answer = await running(request)
        seen: list[bytes] = []
        with store.begin() as held:  # so that the row waits
            held.execute(insert(about).values(key="held", value=""))
            reading = asyncio.create_task(_read(answer, seen))
            await until(lambda: b'"finish_reason":"stop"' in b"".join(seen))
            await asyncio.sleep(0.1)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
        await until(lambda: told)
        await asyncio.sleep(0.1)
    (event,) = told
    assert isinstance(event, Served)
    assert (event.by, event.status, event.answer) == ("big", 200, answer)
    assert b"[DONE]" not in b"".join(seen)
    with store.begin() as connection:
        rows = select(ledger.c.status).where(ledger.c.id == request.id)
        assert connection.execute(rows).scalars().all() == [200]


async def _read(answer: Answer, seen: list[bytes]) -> None:
    assert answer.pieces is not None
    async for piece in answer.pieces:
        seen.append(piece)


async def test_it_is_told_of_a_failure(store: Store, big: BigModel, key: SigningKey) -> None:
    told: list[Event] = []
    big.refuse = 418
    async with node(store, big, key, told.append) as running:
        with pytest.raises(UpstreamRefused):
            await running(ask("hello"))
    (event,) = told
    assert isinstance(event, Served)
    assert (event.by, event.status, event.answer) == ("none", 418, None)
    assert event.reason


async def test_it_is_told_of_audits_and_of_a_demotion(
    store: Store, big: BigModel, key: SigningKey, tmp_path: Path
) -> None:
    told: list[Event] = []
    expert = install(store, key, tmp_path)
    big.rule = lambda _: "something else"
    async with node(store, big, key, told.append, audit_rate=ALWAYS) as running:
        for question in QUESTIONS:
            await running(ask(question))
        await until(lambda: any(isinstance(event, Changed) for event in told))
    audits = [event for event in told if isinstance(event, Audited)]
    assert {(event.expert, event.loss, event.status) for event in audits} == {(expert, 1.0, 200)}
    assert all(event.answer is not None and event.answer.usage.cost >= 0 for event in audits)
    assert {event.request.caller.key for event in audits} == {"k1"}
    by_expert = [event for event in told if isinstance(event, Served) and event.by == "expert"]
    assert by_expert
    assert all(event.coin and event.expert == expert for event in by_expert)
    changes = [event for event in told if isinstance(event, Changed)]
    assert [(event.kind, event.expert) for event in changes] == [("demotion", expert)]
    assert "proven" in changes[0].reason


async def test_it_is_told_of_an_audit_that_is_refused(
    store: Store, big: BigModel, key: SigningKey, tmp_path: Path
) -> None:
    told: list[Event] = []
    install(store, key, tmp_path)
    big.refuse = 400
    async with node(store, big, key, told.append, audit_rate=ALWAYS) as running:
        for question in QUESTIONS:
            with contextlib.suppress(UpstreamRefused):
                if (await running(ask(question))).expert:
                    break
        await until(lambda: any(isinstance(event, Audited) for event in told))
    (audit,) = (event for event in told if isinstance(event, Audited))
    assert (audit.answer, audit.loss, audit.status) == (None, None, 400)


async def test_it_is_told_of_experts_that_come_and_go(
    store: Store, big: BigModel, key: SigningKey, tmp_path: Path
) -> None:
    told: list[Event] = []
    async with node(store, big, key, told.append) as running:
        expert = install(store, key, tmp_path)
        await until(lambda: told)
        running.roster.end(expert, "retired", "retirement", "by hand", "t")
        await until(lambda: len(told) == 2)
    assert [(event.kind, event.expert) for event in told if isinstance(event, Changed)] == [
        ("promotion", expert),
        ("retirement", expert),
    ]


async def test_one_that_raises_fails_no_request_and_is_logged_once(
    store: Store, big: BigModel, key: SigningKey, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[Event] = []

    def broken(_: Event) -> None:
        raise ZeroDivisionError("an observer's own fault")

    with caplog.at_level(logging.ERROR, "puhui.node"):
        async with node(store, big, key, broken, told.append) as running:
            for number in range(3):
                assert (await running(ask(f"hello {number}"))).text == f"HELLO {number}"
    assert len(told) == 3
    assert [record.message for record in caplog.records if "observer" in record.message] == [
        'an observer failed; further failures of it are not logged: ZeroDivisionError("an observer\'s own fault")'
    ]


def test_nobody_is_told_nothing() -> None:
    assert not Observers()
    event = Served(request=ask("x"), answer=Answer(by="big:m"), task=None)
    assert event.by == "big"
    Observers().tell(event)
