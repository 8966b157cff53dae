"""Forgetting: a key's, a request's, a task's or a time's traces go from every table, in one transaction.

What goes: the text of the rows of experience, and whose they were; in the ledger the ids, the key and the words of a
failure. What stays: what was used and when, so that the bill's sums are what they were; and each sampled request's
loss, so that an expert's watch is. Experts that may have learned from the rows are marked stale, and the learning loop
makes others from what is left.
"""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, and_, case, false, func, insert, null, or_, select, update

from puhui.core.errors import SettingsError, UnknownModel
from puhui.store.database import Store
from puhui.store.records import event_row
from puhui.store.retention import clear_contexts, scrub, without_text
from puhui.store.tables import HOLDS_TEXT, experience, experts, keys, ledger, tasks

FORGOTTEN = "forgotten"
"""Stands where an id or a key was."""
BY_REQUEST = ("request", "audit")
"""Kinds of rows in the ledger that came of a request."""


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Whose traces are to go: exactly one of a key's id, a request's id, a task (name or id), or all before a time."""

    key: str | None = None
    request: str | None = None
    task: str | None = None
    before: float | None = None

    def __post_init__(self) -> None:
        given = [name for name in self.__struct_fields__ if getattr(self, name) is not None]
        if len(given) != 1:
            what = " and ".join(given) or "nothing"
            raise SettingsError(f"{what} given; forgetting takes exactly one of key, request, task and before")
        if getattr(self, given[0]) in ("", FORGOTTEN):
            raise SettingsError(f"{given[0]} is {getattr(self, given[0])!r}, which names nobody")


class Traces(msgspec.Struct, frozen=True, kw_only=True):
    """What was found, or forgotten: rows of experience (`texts` of them with text), rows of the ledger, system
    prompts that nothing else needs, and experts that may have learned from them.

    `clean` says whether surely no copy of the texts is left on the disk (None: nothing was forgotten yet).
    """

    rows: int = 0
    texts: int = 0
    ledger_rows: int = 0
    contexts: int = 0
    experts: tuple[str, ...] = ()
    clean: bool | None = None


def find_traces(store: Store, wanted: Wanted) -> Traces:
    """What `forget` would take away. Raises `UnknownModel` for a task, or for a key, that is not there.

    A request that is not there is no error: one that was forgotten has no id any more, and looks the same.
    """
    with store.begin() as connection:
        rows, of_ledger = _conditions(connection, wanted)
        groups = _groups(connection, rows)
        return Traces(
            rows=_count(connection, rows),
            texts=_count(connection, and_(rows, HOLDS_TEXT)),
            ledger_rows=_count(connection, of_ledger),
            contexts=sum(_count(connection, _left(group, rows)) == 0 for group in groups),
            experts=tuple(_taught(connection, groups)),
        )


def forget(store: Store, wanted: Wanted, *, now: float, at_once: bool = False) -> Traces:
    """Takes the traces away, all or none of them; returns what it took.

    Experts that may have learned from them are marked stale; `at_once` retires those in place, else they answer
    until another is proven. `now` is in seconds since 1970.
    """
    with store.begin() as connection:
        _take_the_write_lock(connection)
        rows, of_ledger = _conditions(connection, wanted)
        numbers = connection.execute(select(experience.c.number).where(rows)).scalars().all()
        texts = _count(connection, and_(rows, HOLDS_TEXT))
        groups = _groups(connection, rows)
        stale = _taught(connection, groups)
        idle = [group for group in groups if _count(connection, _left(group, rows)) == 0]
        ledger_rows = _count(connection, of_ledger)
        connection.execute(update(experience).where(rows).values(without_text() | _without_name()))
        connection.execute(update(ledger).where(of_ledger).values(id=FORGOTTEN, key=FORGOTTEN, note=null()))
        clear_contexts(connection, idle)
        _mark(connection, stale, now, at_once)
        _note(connection, groups, now)
    clean = scrub(store, numbers)
    return Traces(
        rows=len(numbers),
        texts=texts,
        ledger_rows=ledger_rows,
        contexts=len(idle),
        experts=tuple(stale),
        clean=clean,
    )


def is_forgotten(connection: Connection, request: str) -> bool:
    """Whether the request's row of experience was forgotten while its audit was under way."""
    found = select(experience.c.number).where(experience.c.id == request, experience.c.key == FORGOTTEN)
    return connection.execute(found.limit(1)).first() is not None


def _take_the_write_lock(connection: Connection) -> None:
    """From here on no other process commits: what is counted is what goes."""
    connection.execute(update(experts).where(false()).values(stale=null()))


def _conditions(connection: Connection, wanted: Wanted) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """Which rows of experience and of the ledger are meant."""
    asked = ledger.c.kind.in_(BY_REQUEST)
    if wanted.key is not None:
        of_key = experience.c.key == wanted.key, asked & (ledger.c.key == wanted.key)
        # A key's row may be gone, and its requests still be here.
        if not any(_count(connection, each) for each in (keys.c.id == wanted.key, *of_key)):
            raise UnknownModel(f"no key has the id {wanted.key!r}, and no request of one; `puhui keys list` shows them")
        return of_key
    if wanted.request is not None:
        return experience.c.id == wanted.request, asked & (ledger.c.id == wanted.request)
    if wanted.before is not None:
        old = (experience.c.at < wanted.before) & (or_(HOLDS_TEXT, experience.c.key != FORGOTTEN))
        return old, asked & (ledger.c.at < wanted.before) & (ledger.c.id != FORGOTTEN)
    found = connection.execute(select(tasks).where(or_(tasks.c.name == wanted.task, tasks.c.id == wanted.task))).all()
    if not found:
        raise UnknownModel(f"no task {wanted.task!r} here; `puhui experts list` shows the tasks")
    return or_(*map(_of_task, found)), asked & ledger.c.task.in_([task.id for task in found])


def _of_task(task: Any) -> ColumnElement[bool]:
    """Rows of a task: those of its group, where it is a template those that begin and end as it does."""
    fits = experience.c.group == task.group
    if task.prefix:
        fits &= func.substr(experience.c.input, 1, len(task.prefix)) == task.prefix
    if task.suffix:
        fits &= func.substr(experience.c.input, -len(task.suffix)) == task.suffix
    return or_(fits, experience.c.task == task.id)


def _groups(connection: Connection, rows: ColumnElement[bool]) -> dict[str, tuple[float, int]]:
    """The groups of rows, each with the time of its first row and how many there are."""
    row = experience.c
    query = select(row.group, func.min(row.at), func.count()).where(rows, row.group != "").group_by(row.group)
    return {group: (first, count) for group, first, count in connection.execute(query)}


def _left(group: str, rows: ColumnElement[bool]) -> ColumnElement[bool]:
    return and_(experience.c.group == group, HOLDS_TEXT, ~rows)


def _taught(connection: Connection, groups: dict[str, tuple[float, int]]) -> list[str]:
    """The experts that came after the first of the rows in their group."""
    found: list[str] = []
    for group, (first, _) in groups.items():
        of_group = select(tasks.c.id).where(tasks.c.group == group)
        query = select(experts.c.id).where(experts.c.task.in_(of_group), experts.c.created >= first)
        found += connection.execute(query).scalars()
    return found


def _without_name() -> dict[Any, Any]:
    """An audit that is under way needs its row's id, and takes it away when it ends."""
    row = experience.c
    under_way = row.coin & row.expert.is_not(None) & row.answer.is_(None) & row.loss.is_(None) & row.body.is_not(None)
    return {row.key: FORGOTTEN, row.id: case((under_way, row.id), else_=FORGOTTEN)}


def _mark(connection: Connection, stale: list[str], now: float, at_once: bool) -> None:
    reason = "answers that it may have learned from were forgotten"
    for expert in stale:
        connection.execute(update(experts).where(experts.c.id == expert).values(stale=reason))
        if at_once:
            retire(connection, expert, reason, now)


def retire(connection: Connection, expert: str, reason: str, now: float) -> None:
    """Takes an expert out if it is in place; a running node follows within a second."""
    active = (experts.c.id == expert) & (experts.c.status == "active")
    task = connection.execute(select(experts.c.task).where(active)).scalar_one_or_none()
    if task is not None:
        connection.execute(update(experts).where(active).values(status="retired", ended=now, reason=reason))
        connection.execute(
            insert(ledger), event_row("retirement", at=now, task=task, expert=expert, note=f"retired: {reason}")
        )


def _note(connection: Connection, groups: dict[str, tuple[float, int]], now: float) -> None:
    """The ledger says of each task how much was forgotten; whoever learns at this moment looks there."""
    for group, (_, count) in groups.items():
        for task in connection.execute(select(tasks.c.id).where(tasks.c.group == group)).scalars().all():
            note = f"{count} rows of experience were forgotten"
            connection.execute(insert(ledger), event_row("forgetting", at=now, task=task, expert=None, note=note))


def _count(connection: Connection, where: ColumnElement[bool]) -> int:
    return connection.execute(select(func.count()).where(where)).scalar_one()
