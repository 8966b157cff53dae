"""What the learning loop reads from and writes to the store."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, case, func, insert, select, update

from puhui.cascade.agreement import canonical
from puhui.core.answer import Usage
from puhui.evolve.gate import Verdict
from puhui.evolve.traffic import Task
from puhui.store.database import Store
from puhui.store.records import event_row
from puhui.store.tables import contexts, experience, experts, ledger, tasks
from puhui.teachers.soft_answers import Alternatives


class Progress(msgspec.Struct):
    """How far the learning of one task has come; kept in the store, so that a restart loses none of δ.

    `attempts` counts calibrations over the task's whole life, `demoted_at` is the time of its last demotion.
    Rows are counted by their numbers in the table of experience: those up to `changed_at` are from before that
    demotion, those up to `closed_at` may teach whatever their coin, and the coin rows after it are the sample.
    `next_rows` is how many rows its group must have before the next attempt. `relearned` is the stale expert for
    which an attempt was brought forward.
    """

    attempts: int = 0
    demoted_at: float = 0.0
    changed_at: int = 0
    closed_at: int = 0
    next_rows: int = 0
    relearned: str = ""


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
    stale: bool


MOST_ROWS = 60_000
"""Read of a group at once: a busy one has millions, and what is older teaches little that these do not."""


class Memory:
    """The store, as the learning loop sees it. Every method blocks."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._counts: dict[str, int] = {}
        self._counted_to = 0

    def groups(self) -> list[tuple[str, str, str, int]]:
        """Group, model, context and number of rows of every kind of traffic so far, counting only what is new."""
        fresh = (
            select(experience.c.group, func.count(), func.max(experience.c.number))
            .where(experience.c.number > self._counted_to)
            .group_by(experience.c.group)
        )
        with self._store.begin() as connection:
            for group, rows, last in connection.execute(fresh).all():
                self._counts[group] = self._counts.get(group, 0) + rows
                self._counted_to = max(self._counted_to, last)
            known = connection.execute(select(contexts)).all()
        return [(row.group, row.model, row.text, self._counts[row.group]) for row in known if row.group in self._counts]

    def judged_before(self, group: str) -> int:
        """The number of the group's first row whose audit is still due; one past its last row if none is.

        Up to there the coin rows are a fair sample: those that the expert answered are not missing.
        """
        due = case(
            (experience.c.coin & experience.c.answer.is_(None) & experience.c.body.is_not(None), experience.c.number)
        )
        query = select(func.coalesce(func.min(due), func.max(experience.c.number) + 1))
        with self._store.begin() as connection:
            return connection.execute(query.where(experience.c.group == group)).scalar() or 0

    def rows(self, group: str) -> list[Row]:
        """The big model's answers in a group, the newest `MOST_ROWS` of them, oldest first."""
        query = (
            select(experience)
            .where(experience.c.group == group, experience.c.answer.is_not(None))
            .order_by(experience.c.number.desc())
            .limit(MOST_ROWS)
        )
        with self._store.begin() as connection:
            newest = [
                Row(row.number, row.input, canonical(row.answer), row.alternatives, row.coin)
                for row in connection.execute(query)
            ]
        return newest[::-1]

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
            _keep_progress(connection, task, progress)

    def in_place(self, task: Task) -> InPlace | None:
        """The expert that answers the task now."""
        return self._latest(task, "active")

    def demoted(self, task: Task) -> InPlace | None:
        """The expert of the task that was demoted last."""
        return self._latest(task, "demoted")

    def demoted_at(self, task: Task) -> float:
        """When an expert of the task was last demoted; 0 if none was."""
        query = select(func.max(experts.c.ended)).where(experts.c.task == task.id, experts.c.status == "demoted")
        with self._store.begin() as connection:
            return connection.execute(query).scalar() or 0.0

    def last_row_at(self, at: float) -> int:
        """The number of the last row of experience of that time or earlier; 0 if there is none."""
        with self._store.begin() as connection:
            found = connection.execute(select(func.max(experience.c.number)).where(experience.c.at <= at))
            return found.scalar() or 0

    def _latest(self, task: Task, status: str) -> InPlace | None:
        query = (
            select(experts)
            .where(experts.c.task == task.id, experts.c.status == status)
            .order_by(experts.c.created.desc())
            .limit(1)
        )
        with self._store.begin() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else InPlace(row.id, Path(row.folder), row.threshold, row.stale is not None)

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

    def forgettings(self, task: Task) -> int:
        """How often rows of the task were forgotten so far."""
        with self._store.begin() as connection:
            return int(connection.execute(_forgettings(task)).scalar_one())

    def promote(
        self,
        task: Task,
        progress: Progress,
        expert: str,
        folder: Path,
        verdict: Verdict,
        *,
        forgettings: int | None = None,
    ) -> None:
        """Puts an expert in place of the one before, in one transaction.

        `forgettings` is how many there had been when its rows were read: if there are more by now, it may know what
        it should not, and is stale from the start.
        """
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
            if forgettings is not None and connection.execute(_forgettings(task)).scalar_one() > forgettings:
                row["stale"] = "answers were forgotten while it was learned"
            connection.execute(insert(experts), row)
            _keep_progress(connection, task, progress)
            connection.execute(
                insert(ledger),
                event_row("promotion", at=now, task=task.id, expert=expert, note=verdict.reason),
            )


def _forgettings(task: Task) -> Any:
    return select(func.count()).where(ledger.c.kind == "forgetting", ledger.c.task == task.id)


def _keep_progress(connection: Connection, task: Task, progress: Progress) -> None:
    """Writes a task's progress; a sample that was closed by hand meanwhile (`close_sample`) stays closed."""
    held = connection.execute(select(tasks.c.state).where(tasks.c.id == task.id)).scalar_one_or_none() or {}
    progress.closed_at = max(progress.closed_at, held.get("closed_at", 0))
    connection.execute(update(tasks).where(tasks.c.id == task.id).values(state=msgspec.to_builtins(progress)))


def close_sample(connection: Connection, task: str) -> None:
    """Closes a task's sample: its rows teach from now on, and the next candidate is calibrated on later ones."""
    state = connection.execute(select(tasks.c.state).where(tasks.c.id == task)).scalar_one()
    last = connection.execute(select(func.max(experience.c.number))).scalar() or 0
    state = state | {"closed_at": max(last, state.get("closed_at", 0))}
    connection.execute(update(tasks).where(tasks.c.id == task).values(state=state))


def answers_of(rows: Sequence[Row]) -> list[str]:
    """The answers of rows, in order."""
    return [row.answer for row in rows]
