"""One node: an answerer that finds the task, asks the expert or the big model, meters, and writes it down."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from sqlalchemy import exists, insert, literal, select

from puhui.cascade.agreement import NOT_TEXT
from puhui.cascade.cascade import Cascade, Stage
from puhui.core.answer import Answer, Answerer, Usage
from puhui.core.errors import PuhuiError, StoreError, UpstreamError, UpstreamRefused, UpstreamTimeout
from puhui.core.request import Request
from puhui.core.settings import AuditRate, Tariff
from puhui.energy.power import estimate_joules
from puhui.energy.tariff import price_usage
from puhui.evolve.traffic import Traffic, sort_request
from puhui.models.wire import DONE
from puhui.node.audit import Audit, Auditor
from puhui.node.expert import Case, Expert
from puhui.node.meter import meter
from puhui.node.roster import DEMOTED, Roster, broken_promise
from puhui.store.database import Store
from puhui.store.journal import Entry, Journal
from puhui.store.records import event_row, failure_row, request_row
from puhui.store.tables import contexts, experience, ledger

log = logging.getLogger("puhui.node")

READ_STORE_EVERY_S = 0.5
METER_ITSELF_EVERY_S = 30.0


class Seat(msgspec.Struct, frozen=True):
    """Where a request sits: its traffic, its task and expert if there are any, and how its coin fell."""

    traffic: Traffic | None = None
    task: str | None = None
    expert: Expert | None = None
    coin: bool = False
    case: Case | None = None

    def drop(self) -> None:
        """The request's loss will never be known; an open case would hold up all that came after it."""
        if self.case is not None:
            self.case.dropped = True


class Node:
    """An answerer in front of a big model. Use it as an async context manager: it has work of its own.

    Each reply's row is in the ledger before the reply leaves. A request whose row cannot be written gets a
    `StoreError`; one that the big model does not answer gets its `UpstreamError`, and a row that says so.
    """

    def __init__(
        self,
        store: Store,
        big: Answerer,
        roster: Roster,
        *,
        tariff: Tariff = Tariff(),
        audit_rate: AuditRate = AuditRate(),
        logprobs: bool = True,
        seed: int | None = None,
    ) -> None:
        self.store = store
        self.roster = roster
        self.tariff = tariff
        self._big = big
        self._audit_rate = audit_rate
        self._logprobs = logprobs
        self._coins = random.Random(seed)
        self._auditor = Auditor(store, big, tariff, open_case=self._open_case, judge=self._judge)
        self._known_contexts: set[str] = set()
        self._cpu_of_experts = 0.0
        self._background: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Node:
        (await asyncio.to_thread(self.roster.read))()
        self._journal = Journal(self.store)
        await self._auditor.resume()
        for work in (self._auditor.run(), self._keep_roster(), self._meter_itself()):
            self._start(work)
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await asyncio.to_thread(self._journal.close)

    @property
    def audits_due(self) -> int:
        """Audits that wait for the big model."""
        return self._auditor.due

    async def __call__(self, request: Request) -> Answer:
        """The expert's answer where it is proven to be sure enough, else the big model's."""
        seat = self._seat(request)
        try:
            answer = await self._cascade(request, seat)(self._asked(request, seat))
        except UpstreamError as error:
            await self._fail(request, seat, _status(error), str(error))
            raise
        except PuhuiError:
            seat.drop()
            raise
        if answer.pieces is not None:
            answer.pieces = self._streamed(request, answer, seat, answer.pieces)
            return answer
        await self._record(request, answer, seat)
        return answer

    def _seat(self, request: Request) -> Seat:
        traffic = sort_request(request)
        if traffic is None:
            return Seat()
        found = self.roster.find(traffic)
        task, expert = found if found is not None else (None, None)
        name = task.id if task is not None else None
        if request.needs.quality >= 1.0:
            return Seat(traffic, name)
        served = None
        if expert is not None:
            expert.served += 1
            served = expert.served
        rate = self._audit_rate.at(served)
        if expert is not None and expert.watch.suspicious:
            rate = max(rate, self._audit_rate.probation)
        coin = self._coins.random() < rate
        case = expert.docket.open() if expert is not None and coin else None
        return Seat(traffic, name, expert, coin, case)

    def _cascade(self, request: Request, seat: Seat) -> Answerer:
        if seat.expert is None:
            return self._big
        return Cascade(Stage(seat.expert, seat.expert.threshold), Stage(self._big))

    def _asked(self, request: Request, seat: Seat) -> Request:
        if seat.traffic is None or not self._logprobs or request.stream:
            return request
        return msgspec.structs.replace(request, alternatives=True)

    async def _record(self, request: Request, answer: Answer, seat: Seat) -> None:
        answer.usage = meter(request, answer, self.tariff)
        entries: list[Entry] = [(ledger, request_row(request, answer, seat.task))]
        audit = answer.expert is not None and seat.coin
        if answer.expert is not None:
            self._cpu_of_experts += answer.usage.cpu_seconds
        try:
            if seat.traffic is not None and (audit or answer.expert is None):
                await self._remember_context(request, seat.traffic)
                entries.append((experience, _experience_row(request, answer, seat, seat.traffic)))
            await self._journal.append(entries)
        except StoreError:
            seat.drop()
            raise
        if seat.expert is None or seat.case is None:
            return
        if audit:
            self._auditor.add(_audit(request, answer, seat.expert, seat.case))
        else:
            seat.case.loss = 0.0
            await self._settle(seat.expert, request.id)

    async def _streamed(
        self, request: Request, answer: Answer, seat: Seat, pieces: AsyncIterator[bytes]
    ) -> AsyncIterator[bytes]:
        """The pieces as they come; the last one leaves when the row is in the ledger."""
        written = False
        try:
            async for piece in pieces:
                if piece == DONE:
                    await self._record(request, answer, seat)
                    written = True
                yield piece
        except UpstreamError as error:
            await self._fail(request, seat, _status(error), str(error))
            raise
        except (asyncio.CancelledError, GeneratorExit):
            if not written:
                self._start(self._fail(request, seat, 499, "the client went away during the stream"))
            raise

    async def _fail(self, request: Request, seat: Seat, status: int, reason: str) -> None:
        seat.drop()
        await self._journal.append([(ledger, failure_row(request, seat.task, status, reason))])

    async def _remember_context(self, request: Request, traffic: Traffic) -> None:
        """Keeps the group's system prompt, once. If it cannot be kept now, the group's next request tries again."""
        if traffic.group not in self._known_contexts:
            await asyncio.to_thread(self._write_context, request.model, traffic)
            self._known_contexts.add(traffic.group)

    def _write_context(self, model: str, traffic: Traffic) -> None:
        # One statement: many first requests of a group come at once, from several nodes even.
        unknown = ~exists().where(contexts.c.group == traffic.group)
        row = select(literal(traffic.group), literal(model), literal(traffic.context)).where(unknown)
        with self.store.begin() as connection:
            connection.execute(insert(contexts).from_select(["group", "model", "text"], row))

    def _open_case(self, expert: str, request: str) -> Case:
        held = self.roster.get(expert)
        return held.left_over.pop(request, Case()) if held is not None else Case()

    async def _judge(self, audit: Audit) -> None:
        expert = self.roster.get(audit.expert)
        if expert is not None:
            await self._settle(expert, audit.request.id)

    async def _settle(self, expert: Expert, request: str) -> None:
        """Tells the expert's watch what is known; the loss that is one too many ends the expert at once."""
        if not expert.docket.settle() or self.roster.take(expert.id) is None:
            return
        reason = broken_promise(expert.watch, f"by the audit of {request}")
        log.warning("expert %s of task %s steps down: %s", expert.id[:12], expert.task.name, reason)
        await asyncio.to_thread(self.roster.end, expert.id, DEMOTED, "demotion", reason, expert.task.id)

    async def _keep_roster(self) -> None:
        while True:
            await asyncio.sleep(READ_STORE_EVERY_S)
            try:
                put_in_place = await asyncio.to_thread(self.roster.read)
            except StoreError as error:
                log.warning("the store cannot be read, the experts stay as they are: %s", error)
                continue
            put_in_place()

    async def _meter_itself(self) -> None:
        """Puts the node's own work into the ledger, so that the bill leaves nothing out."""
        before = time.process_time()
        try:
            while True:
                await asyncio.sleep(METER_ITSELF_EVERY_S)
                before = await self._note_own_work(before)
        finally:
            await asyncio.shield(self._note_own_work(before))

    async def _note_own_work(self, before: float) -> float:
        now = time.process_time()
        spent = max(0.0, now - before - self._cpu_of_experts)  # theirs is in the ledger with their answers
        self._cpu_of_experts = 0.0
        usage = price_usage(Usage(cpu_seconds=spent, energy=estimate_joules(spent)), self.tariff)
        row = event_row("node", at=time.time(), task=None, expert=None, note="the node's own work", usage=usage)
        with contextlib.suppress(StoreError):
            await self._journal.append([(ledger, row)])
        return now

    def _start(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("background work failed", exc_info=task.exception())


def _status(error: PuhuiError) -> int:
    if isinstance(error, UpstreamRefused):
        return error.status
    return 504 if isinstance(error, UpstreamTimeout) else 502


def _audit(request: Request, answer: Answer, expert: Expert, case: Case) -> Audit:
    asked = msgspec.structs.replace(request, stream=False, body=_not_streamed(request.body), alternatives=True)
    return Audit(asked, expert.task.id, expert.id, answer.text or "", case)


def _not_streamed(body: bytes) -> bytes:
    fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    for name in ("stream", "stream_options"):
        fields.pop(name, None)
    return msgspec.json.encode(fields)


def _experience_row(request: Request, answer: Answer, seat: Seat, traffic: Traffic) -> dict[str, Any]:
    by_expert = answer.expert is not None
    return {
        "id": request.id,
        "at": time.time(),
        "group": traffic.group,
        "input": traffic.input,
        "answer": None if by_expert else NOT_TEXT if answer.text is None else answer.text,
        "alternatives": answer.alternatives or None,
        "coin": seat.coin,
        "expert": seat.expert.id if seat.expert is not None else None,
        "expert_answer": answer.text if by_expert else None,
        "body": _not_streamed(request.body).decode() if by_expert else None,
        "task": seat.task,
        "key": request.caller.key,
    }
