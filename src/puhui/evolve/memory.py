"""What the learning loop reads from and writes to the store."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import func, insert, select, update

from puhui.cascade.agreement import canonical
from puhui.core.answer import Usage
from puhui.evolve.gate import Verdict
from puhui.evolve.soft_answers import Alternatives
from puhui.evolve.traffic import Task
from puhui.store.database import Store
from puhui.store.records import event_row
from puhui.store.tables import contexts, experience, experts, ledger, tasks


class Progress(msgspec.Struct):
    """How far the learning of one task has come; kept in the store, so that a restart loses none of δ.

    `attempts` counts calibrations over the task's whole life. Rows are counted by their numbers in the table of
    experience: those up to `changed_at` are from before the last demotion, those up to `closed_at` may teach
    whatever their coin, and the coin rows after it are the sample. `next_rows` is how many answers there must
    be before the next attempt.
    """

    attempts: int = 0
    changed_at: int = 0
    closed_at: int = 0
    next_rows: int = 0


class Row(NamedTuple):
    """One answer of the big model's."""

    number: int
    input: str
    answer: str
    alternatives: Alternatives | None
    coin: bool


class InPlace(NamedTuple):
    """An expert as the store knows it."""

    id: str
    folder: Path
    threshold: float


class Memory:
    """The store, as the learning loop sees it. Every method blocks."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def groups(self) -> list[tuple[str, str, str, int]]:
        """Group, model, context and number of answers of every kind of traffic so far."""
        counted = (
            select(experience.c.group, func.count().label("rows"))
            .where(experience.c.answer.is_not(None))
            .group_by(experience.c.group)
            .subquery()
        )
        query = select(contexts, counted.c.rows).join(counted, counted.c.group == contexts.c.group)
        with self._store.begin() as connection:
            return [(row.group, row.model, row.text, row.rows) for row in connection.execute(query)]

    def rows(self, group: str) -> list[Row]:
        """All answers of the big model's in a group, oldest first."""
        query = (
            select(experience)
            .where(experience.c.group == group, experience.c.answer.is_not(None))
            .order_by(experience.c.number)
        )
        with self._store.begin() as connection:
            return [
                Row(row.number, row.input, canonical(row.answer), row.alternatives, row.coin)
                for row in connection.execute(query)
            ]

    def tasks(self) -> list[tuple[Task, Progress]]:
        """Every task known, with its progress."""
        with self._store.begin() as connection:
            return [
                (
                    Task(row.id, row.name, row.group, row.model, row.prefix, row.suffix),
                    msgspec.convert(row.state, Progress),
                )
                for row in connection.execute(select(tasks))
            ]

    def add_task(self, task: Task) -> None:
        """Puts a new task in the store."""
        row = msgspec.structs.asdict(task) | {
            "created": time.time(),
            "state": msgspec.to_builtins(Progress()),
        }
        with self._store.begin() as connection:
            connection.execute(insert(tasks), row)

    def save(self, task: Task, progress: Progress) -> None:
        """Keeps a task's progress."""
        with self._store.begin() as connection:
            connection.execute(_set_progress(task, progress))

    def in_place(self, task: Task) -> InPlace | None:
        """The expert that answers the task now."""
        return self._latest(task, "active")

    def demoted(self, task: Task) -> InPlace | None:
        """The expert of the task that was demoted last."""
        return self._latest(task, "demoted")

    def last_row_before_demotion(self, task: Task) -> int:
        """The number of the last row of experience from before the task's last demotion; 0 if there was none."""
        ended = select(func.max(experts.c.ended)).where(experts.c.task == task.id, experts.c.status == "demoted")
        query = select(func.max(experience.c.number)).where(experience.c.at <= ended.scalar_subquery())
        with self._store.begin() as connection:
            return connection.execute(query).scalar() or 0

    def _latest(self, task: Task, status: str) -> InPlace | None:
        query = (
            select(experts)
            .where(experts.c.task == task.id, experts.c.status == status)
            .order_by(experts.c.created.desc())
            .limit(1)
        )
        with self._store.begin() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else InPlace(row.id, Path(row.folder), row.threshold)

    def joules_of_big(self, task: Task) -> float:
        """Mean joules of the big model's answers to the task; 0 if it has given none."""
        query = select(func.avg(ledger.c.joules)).where(
            ledger.c.task == task.id,
            ledger.c.status == 200,
            ledger.c.expert.is_(None),
            ledger.c.kind == "request",
        )
        fallback = select(func.avg(ledger.c.joules)).where(ledger.c.model == task.model, ledger.c.kind == "request")
        with self._store.begin() as connection:
            found = connection.execute(query).scalar() or connection.execute(fallback).scalar()
        return float(found or 0.0)

    def note(self, kind: str, task: Task, note: str, usage: Usage = Usage()) -> None:
        """A row in the ledger for what learning did and used."""
        with self._store.begin() as connection:
            connection.execute(
                insert(ledger),
                event_row(kind, at=time.time(), task=task.id, expert=None, note=note, usage=usage),
            )

    def promote(self, task: Task, progress: Progress, expert: str, folder: Path, verdict: Verdict) -> None:
        """Puts an expert in place of the one before, in one transaction."""
        now, proven = time.time(), verdict.calibration
        row: dict[str, Any] = {
            "id": expert,
            "task": task.id,
            "status": "active",
            "folder": str(folder),
            "threshold": proven.threshold,
            "coverage": proven.coverage,
            "risk_bound": proven.risk_bound,
            "epsilon": proven.epsilon,
            "delta": proven.delta,
            "created": now,
        }
        with self._store.begin() as connection:
            connection.execute(
                update(experts)
                .where(experts.c.task == task.id, experts.c.status == "active")
                .values(status="retired", ended=now, reason=f"a better one came: {expert[:12]}")
            )
            connection.execute(insert(experts), row)
            connection.execute(_set_progress(task, progress))
            connection.execute(
                insert(ledger),
                event_row("promotion", at=now, task=task.id, expert=expert, note=verdict.reason),
            )


def _set_progress(task: Task, progress: Progress) -> Any:
    return update(tasks).where(tasks.c.id == task.id).values(state=msgspec.to_builtins(progress))


def answers_of(rows: Sequence[Row]) -> list[str]:
    """The answers of rows, in order."""
    return [row.answer for row in rows]
