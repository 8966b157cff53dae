"""Audits: the big model is asked about an expert's answer after the user was served."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence

import msgspec
from sqlalchemy import bindparam, exists, select, update

from puhui.core.answer import Answer, Answerer
from puhui.core.errors import (
    NeedsUnmet,
    PuhuiError,
    StoreError,
    UnknownModel,
    UpstreamDenied,
    UpstreamError,
    UpstreamGarbled,
    UpstreamRefused,
    UpstreamTimeout,
)
from puhui.core.request import Keep, Message, Request, least_kept
from puhui.core.settings import Privacy, Tariff
from puhui.node.expert import Case
from puhui.node.fitting import said
from puhui.node.forwarding import status_of
from puhui.node.meter import meter
from puhui.node.observer import NOBODY, Audited, Observers
from puhui.node.privacy import IN_MEMORY, learned_alternatives, learned_text
from puhui.store.database import Store
from puhui.store.forgetting import FORGOTTEN
from puhui.store.journal import Entry
from puhui.store.records import failure_row, request_row
from puhui.store.tables import experience, ledger

log = logging.getLogger("puhui.node")

RETRY_AFTER_S = 5.0
MOST_AT_ONCE, LONG_QUEUE = 16, 8
"""One audit at a time disturbs the big model's users the least; where that does not keep up, the watch would be late,
so there is one more at a time for each eight that wait."""
MOST_DUE = 2_000
"""Audits wait in memory. While so many do, no coin falls on an expert's answers: which ones, chance alone decided."""
LET_THE_REPLY_LEAVE_S = 0.002
LATER = (408, 429)  # too many questions: no verdict on the request
MOST_FAILURES = 3
"""Of one audit, while others were answered: then the big model is not away, but has no answer to this one."""
MOST_WAYS = 256
_OF_ONE = (UpstreamRefused, UpstreamGarbled, UpstreamTimeout)
"""What may be said to one text and not to others."""

_ANSWERED = (
    update(experience)
    .where(experience.c.id == bindparam("which"), experience.c.answer.is_(None), experience.c.body.is_not(None))
    .values(answer=bindparam("told"), alternatives=bindparam("likely"), loss=bindparam("of"), body=None)
)
_JUDGED = (  # its text went while the big model was asked
    update(experience)
    .where(experience.c.id == bindparam("which"), experience.c.loss.is_(None), experience.c.body.is_(None))
    .values(loss=bindparam("of"))
)
_FORGOTTEN = (  # so was whose request it was
    update(ledger)
    .where(ledger.c.id == bindparam("which"))
    .where(exists().where(experience.c.id == ledger.c.id, experience.c.key == FORGOTTEN))
    .values(id=FORGOTTEN, key=FORGOTTEN, note=None),
    update(experience).where(experience.c.id == bindparam("which"), experience.c.key == FORGOTTEN).values(id=FORGOTTEN),
)
_DROPPED = update(experience).where(experience.c.id == bindparam("which")).values(body=None)


class Audit(msgspec.Struct, frozen=True):
    """One audit that is due: the request, what the expert answered to it, its case before the watch, and what may
    be kept of the answer. `failures` are those that were its own; `seen` how many audits were done at the last."""

    request: Request
    task: str
    expert: str
    given: str
    case: Case
    keep: Keep = "whole"
    failures: int = 0
    seen: int | None = None


class Auditor:
    """Asks the big model about audited requests in the order in which they came, few at a time.

    While the big model is away, all of them wait. One that fails again and again while others are answered is given
    up, as its case holds up all that came after it; so is one whose caller's key is refused: that key is not kept, and
    says nothing of what was asked.

    Each audit's row is in the store before the user has the answer, so a node that was killed takes up at its
    next start what was due. `open_case` gives the case of such an audit (of this expert, of this request);
    `judge` is told of each audit whose case is decided.
    """

    def __init__(
        self,
        store: Store,
        big: Answerer,
        tariff: Tariff,
        *,
        write: Callable[[Sequence[Entry]], Awaitable[None]],
        open_case: Callable[[str, str], Case],
        judge: Callable[[Audit], Awaitable[None]],
        privacy: Privacy = Privacy(),
        observers: Observers = NOBODY,
    ) -> None:
        self._store = store
        self._big = big
        self._tariff = tariff
        self._write = write
        self._case = open_case
        self._judge = judge
        self._privacy = privacy
        self._observers = observers
        self._due: deque[Audit] = deque()
        self._asking = 0
        self._done: Counter[tuple[str, str]] = Counter()
        self._workers = 0
        self._wake = asyncio.Event()

    @property
    def due(self) -> int:
        """How many audits are not done."""
        return len(self._due) + self._asking

    @property
    def keeps_up(self) -> bool:
        """Whether there is room for more."""
        return self.due < MOST_DUE

    def add(self, audit: Audit) -> None:
        """Puts an audit in the queue. Its row is committed already."""
        self._due.append(audit)
        self._wake.set()

    def read_due(self) -> list[Audit]:
        """The audits that an earlier run left (blocking). Those that lay in its memory are given up."""
        rows = select(experience).where(experience.c.answer.is_(None), experience.c.body.is_not(None))
        of_memory = update(experience).where(experience.c.body == IN_MEMORY)
        nobodys = update(experience).where(experience.c.key == FORGOTTEN, experience.c.id != FORGOTTEN)
        keep = least_kept(self._privacy.keep, "redacted")  # its key may not have allowed more
        with self._store.begin() as connection:
            connection.execute(of_memory.values(body=None))
            connection.execute(nobodys.values(id=FORGOTTEN))
            return [
                Audit(
                    _request(row.id, row.body),
                    row.task or "",
                    row.expert,
                    row.expert_answer,
                    self._case(row.expert, row.id),
                    keep,
                )
                for row in connection.execute(rows.order_by(experience.c.number))
            ]

    async def resume(self) -> None:
        """Puts what an earlier run left in the queue. Comes before any request is served."""
        for audit in await asyncio.to_thread(self.read_due):
            self.add(audit)

    async def run(self) -> None:
        """Works the queue until cancelled, with as many workers as its length asks for."""
        async with asyncio.TaskGroup() as workers:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._workers < min(MOST_AT_ONCE, -(-len(self._due) // LONG_QUEUE)):
                    self._workers += 1
                    workers.create_task(self._work())

    async def _work(self) -> None:
        """One worker, until the queue is empty."""
        try:
            await self._take_all()
        finally:
            self._workers -= 1

    async def _take_all(self) -> None:
        while self._due:
            audit = self._due.popleft()
            self._asking += 1
            await asyncio.sleep(LET_THE_REPLY_LEAVE_S)
            try:
                await self._ask(audit)
            except PuhuiError as error:
                audit = self._failed(audit, error)
                if audit.failures >= MOST_FAILURES or _is_final(error):
                    await self._give_up(audit, error)
                else:
                    await self._later(audit, error)
            finally:
                self._asking -= 1

    def _failed(self, audit: Audit, error: PuhuiError) -> Audit:
        """The audit with one more failure, if others of the same model were answered since its last one."""
        if isinstance(error, UpstreamDenied) or not isinstance(error, _OF_ONE):  # it says nothing of what was asked
            return audit
        done = self._done[_way(audit)]
        own = audit.seen is not None and done > audit.seen
        return msgspec.structs.replace(audit, failures=audit.failures + own, seen=done)

    async def _later(self, audit: Audit, error: PuhuiError) -> None:
        """Waits, for what failed it will often fail the next, and puts an audit behind the others."""
        log.warning("an audit waits: %s", error)
        await asyncio.sleep(RETRY_AFTER_S)  # it counts as being asked meanwhile, and not twice
        self._due.append(audit)

    async def _ask(self, audit: Audit) -> None:
        answer = await self._big(audit.request)
        answer.usage = meter(audit.request, answer, self._tariff)
        # An answer that is not text (a tool call, say) is a disagreement like any other.
        told = said(audit.request, answer)
        loss = audit.case.of(audit.given, told)
        which = {"which": audit.request.id}
        kept = learned_text(audit.request, answer, audit.keep)
        done = which | {"told": kept, "likely": learned_alternatives(answer, kept), "of": loss}
        row = request_row(audit.request, answer, audit.task, kind="audit")
        judged = (_JUDGED, which | {"of": loss})
        await self._write([(_ANSWERED, done), judged, (ledger, row), *((change, which) for change in _FORGOTTEN)])
        audit.case.loss = loss
        if len(self._done) >= MOST_WAYS:  # where callers choose the names, there may be any number
            self._done.clear()
        self._done[_way(audit)] += 1
        self._tell(audit, answer)
        await self._judge(audit)

    async def _give_up(self, audit: Audit, error: PuhuiError) -> None:
        log.warning("an audit is given up: %s", error)
        status = status_of(error) if isinstance(error, UpstreamError | NeedsUnmet) else 422
        row = failure_row(audit.request, audit.task, status, f"audit given up: {error}", kind="audit")
        with contextlib.suppress(StoreError):
            which = {"which": audit.request.id}
            await self._write([(_DROPPED, which), (ledger, row), *((change, which) for change in _FORGOTTEN)])
        audit.case.dropped = True
        self._tell(audit, None, status)
        await self._judge(audit)

    def _tell(self, audit: Audit, answer: Answer | None, status: int = 200) -> None:
        if self._observers:
            self._observers.tell(
                Audited(
                    request=audit.request,
                    answer=answer,
                    task=audit.task,
                    expert=audit.expert,
                    loss=audit.case.loss,
                    status=status,
                )
            )


def _way(audit: Audit) -> tuple[str, str]:
    """What decides who is asked."""
    return audit.request.model, audit.request.needs.privacy


def _is_final(error: PuhuiError) -> bool:
    """Whether the same would be said again, whenever it is asked."""
    if isinstance(error, UpstreamRefused):  # of a key that is the node's own, people will hear, and see to it
        return error.status < 500 and error.status not in LATER and not isinstance(error, UpstreamDenied)
    return isinstance(error, NeedsUnmet | UnknownModel)  # nobody here may be asked


def _request(id: str, body: str) -> Request:
    """The request as it was asked, without streaming, which an audit has no use for."""
    fields = msgspec.json.decode(body)
    messages = msgspec.convert(fields["messages"], tuple[Message, ...], strict=False)
    return Request(
        id=id, model=fields["model"], messages=messages, body=body.encode(), alternatives=True, awaited=False
    )
