"""Text that is too old goes, and goes from the disk: out of the rows, the pages, and the write-ahead log.

A database that deletes a row marks its place as free and leaves the bytes. With `secure_delete` SQLite overwrites
them; but where it had moved rows between pages before, copies may lie in the unused part of a page, which no deletion
touches. (Measured: of 2,900 rows cleared in place, 2 to 26 could still be read in the file.) So rows that are cleared
are also taken out with their neighbours and put in again: their pages become free, and free pages are zeroed whole.
At last the log is emptied, which holds pages as they were before.

What the rows proved stays: `loss` of a sampled request, so that an expert's watch knows after a restart what it knew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, Select, case, func, null, select, text, update

from puhui.store.database import Store
from puhui.store.tables import HOLDS_TEXT, contexts, experience
from puhui.store.write_ahead import empty_log

BATCH = 50
"""Rows to a transaction: some milliseconds, so that no reply waits for long."""
NEIGHBOURS = 40
MOST_REWRITTEN_BYTES = 64 * 1024 * 1024
_CHUNK = 500


def sweep(store: Store, before: float, *, most: int = BATCH) -> int:
    """Deletes the text of at most `most` rows from before that time, the oldest first; returns of how many."""
    old = select(experience.c.number).where(HOLDS_TEXT, experience.c.at < before).order_by(experience.c.at).limit(most)
    with store.begin() as connection:
        numbers = connection.execute(old).scalars().all()
        clear_text(connection, numbers)
        for first, last in _runs(numbers):
            _put_anew(connection, first, last)
    return len(numbers)


def sweep_contexts(store: Store) -> int:
    """Deletes the system prompts of groups whose rows have no text any more; returns of how many."""
    with store.begin() as connection:
        groups = connection.execute(select(contexts.c.group).where(contexts.c.text != "")).scalars().all()
        idle = [group for group in groups if _is_empty(connection, group)]
        clear_contexts(connection, idle)
        return len(idle)


def clear_text(connection: Connection, numbers: Sequence[int]) -> None:
    """Takes the text out of rows of experience; a sampled row keeps its loss."""
    for some in _chunks(numbers):
        connection.execute(update(experience).where(experience.c.number.in_(some)).values(without_text()))


def without_text() -> dict[Any, Any]:
    """The values of a row of experience whose text goes."""
    gone = dict.fromkeys((experience.c.answer, experience.c.expert_answer, experience.c.body), null())
    return gone | {experience.c.input: "", experience.c.alternatives: null(), experience.c.loss: _loss_that_stays()}


def _loss_that_stays() -> Any:
    """A row that was decided has its loss; one of a store of schema 1 gets the greatest that its text allows."""
    row = experience.c
    return case(
        (row.loss.is_not(None), row.loss),
        (~row.coin | row.expert.is_(None) | row.answer.is_(None), null()),
        (row.expert_answer.is_(None) | (func.trim(row.expert_answer) == func.trim(row.answer)), 0.0),
        else_=1.0,
    )


def clear_contexts(connection: Connection, groups: Sequence[str]) -> None:
    """Takes the text out of contexts, and puts all of them in anew."""
    if not groups:
        return
    for some in _chunks(groups):
        connection.execute(update(contexts).where(contexts.c.group.in_(some)).values(text=""))
    if connection.dialect.name == "sqlite":
        rows = connection.execute(select(contexts)).mappings().all()
        connection.execute(contexts.delete())
        if rows:
            connection.execute(contexts.insert(), [dict(row) for row in rows])


def _is_empty(connection: Connection, group: str) -> bool:
    """Whether a group has rows, and none with text (a group without rows has only just come)."""
    rows: Select[Any] = select(experience.c.number).where(experience.c.group == group).limit(1)
    held = rows.where(HOLDS_TEXT).order_by(experience.c.number.desc())
    return connection.execute(held).first() is None and connection.execute(rows).first() is not None


def scrub(store: Store, numbers: Sequence[int]) -> bool:
    """Overwrites what the rows of experience with these numbers may have left behind; whether surely nothing is left.

    A store up to 64 MiB is written anew as a whole, for which replies wait a second or two; a larger one only
    around the rows, in small transactions, after which a copy of a single row may rarely be left (measured: 1 of 240).
    """
    if store.engine.dialect.name != "sqlite":
        return False
    as_a_whole = _bytes_of(store) <= MOST_REWRITTEN_BYTES
    if as_a_whole:
        _write_anew(store)
    else:
        for first, last in _runs(numbers):
            with store.begin() as connection:
                _put_anew(connection, first - NEIGHBOURS, last + NEIGHBOURS)
    return empty_log(store) and as_a_whole


def _write_anew(store: Store) -> None:
    with store.explained(), store.engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT").exec_driver_sql("VACUUM")


def _bytes_of(store: Store) -> int:
    with store.begin() as connection:
        pages, size = (connection.execute(text(f"PRAGMA {name}")).scalar_one() for name in ("page_count", "page_size"))
    return int(pages) * int(size)


def _put_anew(connection: Connection, first: int, last: int) -> None:
    """Takes rows out and puts them in again as they are, so that their pages become free and are zeroed."""
    if connection.dialect.name != "sqlite":
        return
    between = "number BETWEEN ? AND ?"
    rows = connection.exec_driver_sql(f"SELECT * FROM experience WHERE {between}", (first, last))
    names = ", ".join(f'"{name}"' for name in rows.keys())  # noqa: SIM118 - a result, not a dictionary
    values = [tuple(row) for row in rows]
    if values:
        connection.exec_driver_sql(f"DELETE FROM experience WHERE {between}", (first, last))
        marks = ", ".join("?" * len(values[0]))
        connection.exec_driver_sql(f"INSERT INTO experience ({names}) VALUES ({marks})", values)


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The numbers as ranges that leave no gap longer than the neighbours and hold few rows each."""
    first = last = -1
    for number in sorted(numbers):
        if first < 0:
            first = number
        elif number - last > NEIGHBOURS or number - first >= _CHUNK:
            yield first, last
            first = number
        last = number
    if first >= 0:
        yield first, last


def _chunks(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), _CHUNK):
        yield values[start : start + _CHUNK]
