"""Audits: the big model is asked about an expert's answer after the user was served."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable

import msgspec
from sqlalchemy import insert, select, update

from puhui.cascade.agreement import NOT_TEXT
from puhui.core.answer import Answer, Answerer
from puhui.core.errors import PuhuiError, StoreError, UpstreamRefused
from puhui.core.request import Message, Request
from puhui.core.settings import Tariff
from puhui.node.expert import Case
from puhui.node.meter import meter
from puhui.store.database import Store
from puhui.store.records import failure_row, request_row
from puhui.store.tables import experience, ledger

log = logging.getLogger("puhui.node")

RETRY_AFTER_S = 5.0
LOOK_AGAIN_S = 0.05
MOST_AT_ONCE, LONG_QUEUE = 4, 8
"""One audit at a time disturbs the big model's users the least; where that does not keep up, the watch would be late,
so there is one more at a time for each eight that wait."""
LET_THE_REPLY_LEAVE_S = 0.002
LATER = (401, 403, 408, 429)  # a key that is missing for now, or too many questions: no verdict on the request


class Audit(msgspec.Struct, frozen=True):
    """One audit that is due: the request, what the expert answered to it, and its case before the watch."""

    request: Request
    task: str
    expert: str
    given: str
    case: Case


class Auditor:
    """Asks the big model about audited requests in the order in which they came, few at a time.

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
        open_case: Callable[[str, str], Case],
        judge: Callable[[Audit], Awaitable[None]],
    ) -> None:
        self._store = store
        self._big = big
        self._tariff = tariff
        self._case = open_case
        self._judge = judge
        self._due: deque[Audit] = deque()
        self._asking = 0
        self._wake = asyncio.Event()

    @property
    def due(self) -> int:
        """How many audits are not done."""
        return len(self._due) + self._asking

    def add(self, audit: Audit) -> None:
        """Puts an audit in the queue. Its row is committed already."""
        self._due.append(audit)
        self._wake.set()

    def read_due(self) -> list[Audit]:
        """The audits that an earlier run left (blocking)."""
        rows = select(experience).where(experience.c.answer.is_(None), experience.c.body.is_not(None))
        with self._store.begin() as connection:
            return [
                Audit(
                    _request(row.id, row.body),
                    row.task or "",
                    row.expert,
                    row.expert_answer,
                    self._case(row.expert, row.id),
                )
                for row in connection.execute(rows.order_by(experience.c.number))
            ]

    async def resume(self) -> None:
        """Puts what an earlier run left in the queue. Comes before any request is served."""
        for audit in await asyncio.to_thread(self.read_due):
            self.add(audit)

    async def run(self) -> None:
        """Works the queue until cancelled."""
        async with asyncio.TaskGroup() as workers:
            for spare in range(MOST_AT_ONCE):
                workers.create_task(self._work(spare))

    async def _work(self, spare: int) -> None:
        """One worker; those with a higher number help only while the queue is long."""
        while True:
            while len(self._due) <= spare * LONG_QUEUE:
                await (asyncio.sleep(LOOK_AGAIN_S) if spare else self._until_some())
            audit = self._due.popleft()
            self._asking += 1
            await asyncio.sleep(LET_THE_REPLY_LEAVE_S)
            try:
                await self._ask(audit)
            except UpstreamRefused as error:
                if error.status < 500 and error.status not in LATER:
                    await self._give_up(audit, error)
                else:
                    await self._later(audit, error)
            except PuhuiError as error:
                await self._later(audit, error)
            finally:
                self._asking -= 1

    async def _until_some(self) -> None:
        self._wake.clear()
        await self._wake.wait()

    async def _later(self, audit: Audit, error: PuhuiError) -> None:
        """Puts an audit back in front, and waits: what failed it will fail the next."""
        log.warning("an audit waits: %s", error)
        self._due.appendleft(audit)
        await asyncio.sleep(RETRY_AFTER_S)

    async def _ask(self, audit: Audit) -> None:
        answer = await self._big(audit.request)
        answer.usage = meter(audit.request, answer, self._tariff)
        # An answer that is not text (a tool call, say) is a disagreement like any other.
        said = answer.text if answer.text is not None else NOT_TEXT
        await asyncio.to_thread(self._write, audit, answer, said)
        audit.case.decide(audit.given, said)
        await self._judge(audit)

    def _write(self, audit: Audit, answer: Answer, said: str) -> None:
        with self._store.begin() as connection:
            connection.execute(
                update(experience)
                .where(experience.c.id == audit.request.id, experience.c.answer.is_(None))
                .values(answer=said, alternatives=answer.alternatives or None, body=None)
            )
            connection.execute(insert(ledger), request_row(audit.request, answer, audit.task, kind="audit"))

    async def _give_up(self, audit: Audit, error: UpstreamRefused) -> None:
        log.warning("an audit is given up: %s", error)
        row = failure_row(audit.request, audit.task, error.status, f"audit refused: {error}", kind="audit")
        with contextlib.suppress(StoreError):
            await asyncio.to_thread(self._drop, audit, row)
        audit.case.dropped = True
        await self._judge(audit)

    def _drop(self, audit: Audit, row: dict[str, object]) -> None:
        with self._store.begin() as connection:
            connection.execute(update(experience).where(experience.c.id == audit.request.id).values(body=None))
            connection.execute(insert(ledger), row)


def _request(id: str, body: str) -> Request:
    """The request as it was asked, without streaming, which an audit has no use for."""
    fields = msgspec.json.decode(body)
    messages = msgspec.convert(fields["messages"], tuple[Message, ...], strict=False)
    return Request(id=id, model=fields["model"], messages=messages, body=body.encode(), alternatives=True)
