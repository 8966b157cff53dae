"""One node: an answerer that finds the task, asks the expert or the big model, meters, and writes it down."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from typing import Any, Literal

import msgspec
from sqlalchemy import bindparam, exists, insert, select

from puhui.cascade.cascade import Cascade, Stage
from puhui.core.answer import Answer, Answerer, Usage
from puhui.core.errors import NeedsUnmet, PuhuiError, StoreError, UpstreamError, UpstreamUnavailable
from puhui.core.request import Keep, Needs, Request
from puhui.core.settings import AuditRate, Privacy, Tariff
from puhui.energy.power import estimate_joules
from puhui.energy.tariff import price_usage
from puhui.evolve.traffic import Traffic
from puhui.models.endpoint import Forwarded
from puhui.models.wire import DONE
from puhui.node.audit import Audit, Auditor
from puhui.node.expert import Case, Expert
from puhui.node.forwarding import Forward, forward, status_of
from puhui.node.meter import meter, meter_broken_off
from puhui.node.observer import Changed, Observer, Observers, Served
from puhui.node.privacy import Reading, experience_row, read_request, reader, sweep_for_ever
from puhui.node.roster import DEMOTED, Roster, broken_promise
from puhui.store.database import Store
from puhui.store.journal import Entry, Journal
from puhui.store.records import event_row, failure_row, request_row
from puhui.store.tables import contexts, experience, ledger

log = logging.getLogger("puhui.node")

READ_STORE_EVERY_S = 0.5
METER_ITSELF_EVERY_S = 30.0
MOST_KNOWN_CONTEXTS = 10_000
"""Groups whose system prompts are known to be in the store: bounded, for some callers have a new one each time."""

# One statement: many first requests of a group come at once, from several nodes even.
_NEW_CONTEXT = insert(contexts).from_select(
    ["group", "model", "text"],
    select(*(bindparam(column.name, type_=column.type) for column in contexts.columns)).where(
        ~exists().where(contexts.c.group == bindparam("group"))
    ),
)


class Seat(msgspec.Struct, frozen=True):
    """Where a request sits: its traffic, its task and expert if there are any, and how its coin fell."""

    traffic: Traffic | None = None
    task: str | None = None
    expert: Expert | None = None
    coin: bool = False
    case: Case | None = None
    keep: Keep = "whole"
    started: float = msgspec.field(default_factory=time.perf_counter)

    def drop(self) -> None:
        """The request's loss will never be known; an open case would hold up all that came after it."""
        if self.case is not None:
            self.case.dropped = True


class Node:
    """An answerer in front of a big model. Use it as an async context manager: it has work of its own.

    Each reply's row is in the ledger before the reply leaves. A request whose row cannot be written gets a
    `StoreError`; one that the big model does not answer, or may not, gets its `UpstreamError` or `NeedsUnmet`, and a
    row that says so.
    `observers` are told of each once its row is there, and of audits and changes of experts (see `observer`).
    `forward` asks the big model for other things than chat, such as embeddings.
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
        privacy: Privacy = Privacy(),
        observers: Iterable[Observer] = (),
        forward: Forward | None = None,
    ) -> None:
        self.store = store
        self.roster = roster
        self.tariff = tariff
        self._big = big
        self._passed_on = forward
        self._audit_rate = audit_rate
        self._logprobs = logprobs
        self._coins = random.Random(seed)
        self._privacy = privacy
        self._observers = Observers(observers)
        self._auditor = Auditor(
            store,
            big,
            tariff,
            write=self._write,
            open_case=self._open_case,
            judge=self._judge,
            privacy=privacy,
            observers=self._observers,
        )
        self._known_contexts: set[str] = set()
        self._reading = asyncio.Lock()
        self._cpu_of_experts = 0.0
        self._background: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Node:
        (await asyncio.to_thread(self.roster.read))()
        self._journal = Journal(self.store)
        await self._auditor.resume()
        for work in (self._auditor.run(), self._keep_roster(), self._meter_itself()):
            self._start(work)
        self._start(sweep_for_ever(self.store, self._privacy.keep_days))
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

    async def settle_journal(self) -> None:
        """Returns once the journal has committed what it had now. Raises `StoreError` if it cannot."""
        await self._journal.append([])

    async def __call__(self, request: Request) -> Answer:
        """The expert's answer where it is proven to be sure enough, else the big model's."""
        seat = self._seat(request)
        try:
            answer = await self._cascade(request, seat)(self._asked(request, seat))
        except (UpstreamError, NeedsUnmet) as error:
            await self._fail(request, seat, status_of(error), str(error))
            raise
        except PuhuiError:
            seat.drop()
            raise
        if answer.pieces is not None:
            answer.pieces = self._streamed(request, answer, seat, answer.pieces)
            return answer
        await self._record(request, answer, seat)
        return answer

    async def forward(self, path: str, request: Request) -> Forwarded:
        """The upstream's own reply to `path`, such as "/embeddings": no expert answers such a request."""
        if self._passed_on is None:
            raise UpstreamUnavailable(f"the big model of this node answers chat completions only, not {path}")
        seat = Seat()
        return await forward(
            path,
            request,
            self._passed_on,
            record=lambda answer, first_s: self._to_its_end(self._record(request, answer, seat, first_s)),
            fail=lambda status, reason, answer, sent: self._to_its_end(
                self._fail(request, seat, status, reason, meter_broken_off(request, answer, sent, self.tariff))
            ),
            start=self._start,
        )

    def _seat(self, request: Request) -> Seat:
        traffic, keep = read_request(request, self._privacy)
        if traffic is None:
            return Seat()
        found = self.roster.find(traffic)
        task, expert = found if found is not None else (None, None)
        name = task.id if task is not None else None
        quality = request.needs.quality
        if quality and quality > _quality_at(self.roster.epsilon_for(expert)):
            return Seat(traffic, name, keep=keep)
        served = None
        if expert is not None:
            expert.served += 1
            served = expert.served
        rate = self._audit_rate.at(served)
        if expert is not None and (expert.watch.suspicious or expert.stale):
            rate = max(rate, self._audit_rate.probation)
        # An audit asks the big model, so what may not leave the node draws none while an expert is in place.
        may_audit = request.needs.privacy != "device" and self._auditor.keeps_up
        coin = self._coins.random() < rate and (expert is None or may_audit)
        case = expert.docket.open() if expert is not None and coin else None
        return Seat(traffic, name, expert, coin, case, keep)

    def _cascade(self, request: Request, seat: Seat) -> Answerer:
        if seat.expert is None or seat.traffic is None:
            return self._big
        return Cascade(Stage(reader(seat.expert, request, seat.traffic), seat.expert.threshold), Stage(self._big))

    def _asked(self, request: Request, seat: Seat) -> Request:
        if seat.traffic is None or not self._logprobs or request.stream:
            return request
        return msgspec.structs.replace(request, alternatives=True)

    async def _record(self, request: Request, answer: Answer, seat: Seat, first_s: float | None = None) -> None:
        answer.usage = meter(request, answer, self.tariff)
        entries: list[Entry] = [(ledger, request_row(request, answer, seat.task))]
        # What the big model is asked for an audit, without streaming, which an audit has no use for.
        audited = _not_streamed(request.body) if answer.expert is not None and seat.coin else None
        if answer.expert is not None:
            self._cpu_of_experts += answer.usage.cpu_seconds
        try:
            if seat.traffic is not None and (audited is not None or answer.expert is None):
                entries += self._experience(request, answer, seat, seat.traffic, audited or b"")
            await self._journal.append(entries)
        except StoreError:
            seat.drop()
            raise
        if seat.traffic is not None and len(entries) > 2:
            self._remember(seat.traffic)
        if self._observers:
            self._observers.tell(_served(request, answer, seat, first_s=first_s))
        if seat.expert is None or seat.case is None:
            return
        if audited is not None:
            self._auditor.add(_audit(request, answer, seat.expert, seat.case, seat.keep, audited))
        else:
            seat.case.loss = 0.0
            await self._settle(seat.expert, request.id)

    def _experience(
        self, request: Request, answer: Answer, seat: Seat, traffic: Traffic, audited: bytes
    ) -> list[Entry]:
        """What is kept of the request, as far as any of it may be; `audited` is what an audit asks (empty: none)."""
        row = experience_row(
            request,
            answer,
            Reading(traffic, seat.keep),
            task=seat.task,
            expert=seat.expert.id if seat.expert is not None else None,
            coin=seat.coin,
            body=audited,
        )
        if row is None:
            return []
        if row["group"] and traffic.group not in self._known_contexts:
            return [(_NEW_CONTEXT, _context_row(request, traffic)), (experience, row)]
        return [(experience, row)]

    async def _streamed(
        self, request: Request, answer: Answer, seat: Seat, pieces: AsyncIterator[bytes]
    ) -> AsyncIterator[bytes]:
        """The pieces as they come; the last one leaves when the row is in the ledger."""
        written, first_s, sent = False, None, 0
        try:
            async for piece in pieces:
                sent += 1
                if first_s is None:
                    first_s = time.perf_counter() - seat.started
                if piece == DONE:
                    written = True  # whatever becomes of the client from here on
                    await self._to_its_end(self._record(request, answer, seat, first_s))
                yield piece
        except UpstreamError as error:
            usage = meter_broken_off(request, answer, sent, self.tariff)
            await self._to_its_end(self._fail(request, seat, status_of(error), str(error), usage))
            raise
        except (asyncio.CancelledError, GeneratorExit):
            if not written:
                usage = meter_broken_off(request, answer, max(1, sent), self.tariff)
                self._start(self._fail(request, seat, 499, "the client went away during the stream", usage))
            raise

    async def _fail(self, request: Request, seat: Seat, status: int, reason: str, usage: Usage = Usage()) -> None:
        seat.drop()
        await self._journal.append([(ledger, failure_row(request, seat.task, status, reason, usage=usage))])
        if self._observers:
            self._observers.tell(_served(request, None, seat, status=status, reason=reason, usage=usage))

    async def _write(self, entries: Sequence[Entry]) -> None:
        await self._journal.append(entries)

    def _remember(self, traffic: Traffic) -> None:
        """The group's system prompt is in the store. Forgetting it again costs no more than asking the store."""
        if len(self._known_contexts) >= MOST_KNOWN_CONTEXTS:
            self._known_contexts.clear()
        self._known_contexts.add(traffic.group)

    def _open_case(self, expert: str, request: str) -> Case:
        held = self.roster.get(expert)
        return held.left_over.pop(request, Case(None)) if held is not None else Case(None)

    async def _judge(self, audit: Audit) -> None:
        expert = self.roster.get(audit.expert)
        if expert is not None:
            await self._settle(expert, audit.request.id)

    async def _settle(self, expert: Expert, request: str) -> None:
        """Tells the expert's watch what is known; the loss that is one too many ends the expert at once."""
        if not expert.docket.settle() or self.roster.take(expert.id) is None:
            return
        reason = broken_promise(expert.watch, f"by the audit of {request}")
        log.warning("expert %s of task %s steps down: %s", expert.id[:12], expert.task.id, reason)
        if self._observers:
            self._observers.tell(_changed("demotion", expert, reason))
        await asyncio.to_thread(self.roster.end, expert.id, DEMOTED, "demotion", reason, expert.task.id)

    async def _keep_roster(self) -> None:
        while True:
            await asyncio.sleep(READ_STORE_EVERY_S)
            try:
                await self.read_roster()
            except StoreError as error:
                log.warning("the store cannot be read, the experts stay as they are: %s", error)

    async def read_roster(self, before: Iterable[Expert] | None = None) -> None:
        """Reads now which experts are in place; observers are told who came and went (since `before`)."""
        async with self._reading:  # an older reading must not be put in place after a newer one
            put_in_place = await asyncio.to_thread(self.roster.read)
            before = self.roster.experts if before is None else before
            put_in_place()
        self._tell_changes(before)

    def _tell_changes(self, before: Iterable[Expert]) -> None:
        if not self._observers:
            return
        was, now = ({expert.id: expert for expert in experts} for experts in (before, self.roster.experts))
        for expert in now.keys() - was.keys():
            self._observers.tell(_changed("promotion", now[expert]))
        for expert in was.keys() - now.keys():
            self._observers.tell(_changed("retirement", was[expert]))

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

    async def _to_its_end(self, work: Coroutine[Any, Any, None]) -> None:
        """Does `work`, all of it even if who waits for it is cancelled meanwhile."""
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        await asyncio.shield(task)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("background work failed", exc_info=task.exception())


def _quality_at(epsilon: float) -> float:
    """The share of requests for which a risk of `epsilon` promises the big model's answer, as people write it: 0.93."""
    return round(1.0 - epsilon, 9)


def _served(
    request: Request,
    answer: Answer | None,
    seat: Seat,
    *,
    status: int = 200,
    reason: str | None = None,
    first_s: float | None = None,
    usage: Usage = Usage(),
) -> Served:
    return Served(
        request=request,
        answer=answer,
        task=seat.task,
        expert=seat.expert.id if seat.expert is not None else None,
        coin=seat.coin,
        status=status,
        reason=reason,
        seconds=time.perf_counter() - seat.started,
        first_s=first_s,
        usage=usage if answer is None else answer.usage,
    )


def _changed(kind: Literal["promotion", "demotion", "retirement"], expert: Expert, reason: str = "") -> Changed:
    return Changed(kind=kind, task=expert.task.id, task_name=expert.task.name, expert=expert.id, reason=reason)


def _audit(request: Request, answer: Answer, expert: Expert, case: Case, keep: Keep, body: bytes) -> Audit:
    needs = Needs(privacy=request.needs.privacy)  # nobody waits for an audit, but it may go no further than that
    asked = msgspec.structs.replace(request, stream=False, body=body, alternatives=True, needs=needs, awaited=False)
    return Audit(asked, expert.task.id, expert.id, answer.text or "", case, keep)


def _not_streamed(body: bytes) -> bytes:
    fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    for name in ("stream", "stream_options"):
        fields.pop(name, None)
    return msgspec.json.encode(fields)


def _context_row(request: Request, traffic: Traffic) -> dict[str, Any]:
    return {"group": traffic.group, "model": request.model, "text": traffic.context}
