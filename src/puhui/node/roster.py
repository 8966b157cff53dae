"""Which experts are in place: read from the store, verified, and put in or taken out between two requests."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import bindparam, func, insert, select, update

from puhui.bundles.bundle import open_bundle
from puhui.cascade.agreement import Rule
from puhui.cascade.monitor import RiskMonitor
from puhui.core.errors import BundleError
from puhui.core.settings import Promise
from puhui.evolve.traffic import Task, TaskIndex, Traffic
from puhui.node.expert import Expert
from puhui.store.database import Store
from puhui.store.records import event_row
from puhui.store.tables import experience, experts, ledger, tasks

log = logging.getLogger("puhui.node")

_WITH_LOSS = update(experience).where(experience.c.number == bindparam("which")).values(loss=bindparam("of"))

ACTIVE, RETIRED, DEMOTED, REFUSED = "active", "retired", "demoted", "refused"


class Roster:
    """The tasks and experts that a node knows. Reading the store takes place off the event loop."""

    def __init__(self, store: Store, trusted: Collection[str], *, promise: Promise = Promise()) -> None:
        """`trusted` are the public keys whose experts are loaded; `promise` is that of experts to come, and its delta
        the level of each expert's watch."""
        self._store = store
        self._epsilon = promise.epsilon
        self._delta = promise.delta
        self._trusted = trusted
        self._index = TaskIndex()
        self._names: dict[str, str] = {}
        self._by_task: dict[str, Expert] = {}
        self._taken: set[str] = set()

    @property
    def delta(self) -> float:
        """The level δ of each expert's watch."""
        return self._delta

    def epsilon_for(self, expert: Expert | None) -> float:
        """The risk that the expert promises; without one, what the next will promise."""
        return self._epsilon if expert is None else expert.watch.epsilon

    @property
    def trusted(self) -> Collection[str]:
        """The public keys whose experts are loaded."""
        return self._trusted

    @property
    def experts(self) -> tuple[Expert, ...]:
        """Those in place now."""
        return tuple(self._by_task.values())

    def find(self, traffic: Traffic) -> tuple[Task, Expert | None] | None:
        """The task of a request and the expert in place for it, if any."""
        found = self._index.find(traffic)
        return None if found is None else (found[0], self._by_task.get(found[0].id))

    def take(self, expert: str) -> Expert | None:
        """Takes an expert out at once and for good; None if it is not in place (any more)."""
        self._taken.add(expert)
        for task, held in self._by_task.items():
            if held.id == expert:
                return self._by_task.pop(task)
        return None

    def name_of(self, task: str) -> str:
        """The name of a task by its id; "" for one that is not known (yet)."""
        return self._names.get(task, "")

    def let_back(self, expert: str) -> None:
        """An expert that was taken out may come in again, once the store says so."""
        self._taken.discard(expert)

    def get(self, expert: str) -> Expert | None:
        """The expert of that id, if it is in place."""
        return next((held for held in self._by_task.values() if held.id == expert), None)

    def read(self) -> Callable[[], None]:
        """Reads the store (blocking); returns what puts the news in place, to be called on the event loop."""
        taken = set(self._taken)
        with self._store.begin() as connection:
            known = [
                Task(row.id, row.name, row.group, row.model, row.prefix, row.suffix)
                for row in connection.execute(select(tasks))
            ]
            active = connection.execute(select(experts).where(experts.c.status == ACTIVE)).all()
        by_id = {task.id: task for task in known}
        held = {expert.id: expert for expert in self.experts}
        fresh: dict[str, Expert] = {}
        for row in active:
            if row.task in by_id:
                expert = held.get(row.id) or self._load(row, by_id[row.task])
                if expert is not None:
                    expert.stale = row.stale is not None
                    fresh[row.task] = expert

        def put_in_place() -> None:
            self._index = TaskIndex(known)
            self._names = {task.id: task.name for task in known}
            # Once the store knows that one is out, it is the store that says when it is in again (by another node).
            self._taken -= taken - {row.id for row in active}
            # What was taken out while the store was being read stays out.
            self._by_task = {task: expert for task, expert in fresh.items() if expert.id not in self._taken}

        return put_in_place

    def _load(self, row: Any, task: Task) -> Expert | None:
        try:
            card, model = open_bundle(Path(row.folder), expert=row.id, trusted=self._trusted)
            rule = msgspec.convert(card.agreement_rule, Rule)
        except (BundleError, msgspec.ValidationError) as error:
            log.error("expert %s is refused: %s", row.id[:12], error)
            self.end(row.id, REFUSED, "refusal", str(error), task.id)
            return None
        watch = RiskMonitor(epsilon=row.epsilon, delta=self._delta)
        expert = Expert(row.id, task, model, row.threshold, watch, rule=rule)
        if self._replay(expert, row.created):
            self.end(row.id, DEMOTED, "demotion", broken_promise(expert.watch, "before the node stopped"), task.id)
            return None
        return expert

    def _replay(self, expert: Expert, since: float) -> bool:
        """Tells the watch what an earlier run saw, in the order of the requests; whether the promise is broken."""
        with self._store.begin() as connection:
            expert.served = connection.execute(
                select(func.count()).where(
                    ledger.c.kind == "request", ledger.c.task == expert.task.id, ledger.c.at >= since
                )
            ).scalar_one()
            sampled = connection.execute(
                select(experience)
                .where(experience.c.expert == expert.id, experience.c.coin)
                .order_by(experience.c.number)
            ).all()
        written_later: list[dict[str, Any]] = []
        for row in sampled:
            case = expert.docket.open()
            if row.loss is not None:
                case.loss = row.loss
            elif row.answer is not None:  # of a store from before losses were written down
                case.decide(row.expert_answer, row.answer)
                written_later.append({"which": row.number, "of": case.loss})
            elif row.body:
                expert.left_over[row.id] = case
            else:  # given up, or known to the memory of a node that has ended
                case.dropped = True
        if written_later:
            with self._store.begin() as connection:
                connection.execute(_WITH_LOSS, written_later)
        return expert.docket.settle()

    def end(self, expert: str, status: str, kind: str, reason: str, task: str) -> None:
        """Writes down that an expert is out, and why (blocking). Once out, it stays out."""
        now = time.time()
        with self._store.begin() as connection:
            changed = connection.execute(
                update(experts)
                .where(experts.c.id == expert, experts.c.status == ACTIVE)
                .values(status=status, ended=now, reason=reason)
            )
            if changed.rowcount:
                connection.execute(insert(ledger), event_row(kind, at=now, task=task, expert=expert, note=reason))


def broken_promise(watch: RiskMonitor, when: str) -> str:
    """Why an expert steps down, in words for the ledger."""
    return (
        f"risk above {watch.epsilon:.1%} is proven: {watch.losses:g} of {watch.observations} sampled requests "
        f"got another answer than the big model's (evidence {watch.evidence:.0f} of {1 / watch.delta:.0f}), {when}"
    )
