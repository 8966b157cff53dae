"""Nodes for tests: a real store, a big model over HTTP, and what was written down."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
from sqlalchemy import select

import experts as sample
from puhui.core.answer import Answer
from puhui.core.request import Request
from puhui.core.settings import AuditRate
from puhui.evolve.traffic import sort_request
from puhui.gateway.chat import read_request
from puhui.models.endpoint import Endpoint
from puhui.models.http_link import Timeouts
from puhui.node.node import Node
from puhui.node.roster import Roster
from puhui.store.database import Store
from puhui.store.tables import experience, ledger
from puhui.trust.keys import SigningKey

ALWAYS = AuditRate(0.9, 1.0, 0.9)
SELDOM = AuditRate(1e-9, 1e-9, 1e-9)
NOWHERE = "http://127.0.0.1:9/v1"
DONE = b"data: [DONE]\n\n"


@contextlib.asynccontextmanager
async def node(
    store: Store, url: str, key: SigningKey, audit_rate: AuditRate = SELDOM, **more: Any
) -> AsyncIterator[Node]:
    endpoint = Endpoint(url, timeouts=Timeouts(first_token_s=5.0))
    async with Node(store, endpoint, Roster(store, {key.public}), audit_rate=audit_rate, seed=1, **more) as opened:
        yield opened
    await endpoint.close()


def ask(question: str, *, quality: str = "0", **fields: Any) -> Request:
    messages = [{"role": "system", "content": sample.SYSTEM}, {"role": "user", "content": question}]
    body = {"model": "m", "messages": messages} | fields
    return read_request(msgspec.json.encode(body), {"x-puhui-quality": quality})


def group() -> str:
    found = sort_request(ask("x"))
    assert found is not None
    return found.group


QUESTIONS = sample.questions(60, seed=5)


def rows(store: Store, kind: str | None = None) -> list[Any]:
    query = select(ledger).order_by(ledger.c.number)
    with store.begin() as connection:
        return list(connection.execute(query if kind is None else query.where(ledger.c.kind == kind)))


def remembered(store: Store) -> list[Any]:
    with store.begin() as connection:
        return list(connection.execute(select(experience).order_by(experience.c.number)))


async def until(true: Callable[[], Any], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110 - what is waited for lies in the store
            await asyncio.sleep(0.01)


async def pieces_of(answer: Answer) -> list[bytes]:
    assert answer.pieces is not None
    return [piece async for piece in answer.pieces]
