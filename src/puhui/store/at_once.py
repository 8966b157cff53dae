"""SQLite's own driver for the rows of each reply: what SQLAlchemy's layers cost there is more than the rows cost.

SQLAlchemy still spells the statements and binds the values; only running them is done by hand, on one connection
of the store's pool that is kept.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias, cast

import msgspec
from sqlalchemy import JSON, Insert, PoolProxiedConnection, Table, Update, insert
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.types import TypeEngine

from puhui.core.errors import StoreError
from puhui.store.database import Store

Row: TypeAlias = Mapping[str, Any]
Statement: TypeAlias = Table | Insert | Update
"""Where rows are inserted, or a statement with the names of a row as its parameters."""
Batches: TypeAlias = Mapping[tuple[Statement, tuple[str, ...]], Sequence[Row]]
"""The rows for each statement and set of names."""
Bind: TypeAlias = Callable[[Any], Any]

PATIENCE_MS = 20
"""How long the event loop may wait for another process's commit."""
_FAILURES = (sqlite3.Error, SQLAlchemyError, OverflowError, UnicodeEncodeError, TypeError, ValueError)


class AtOnce:
    """Writes rows in one short transaction, or raises a `StoreError` and has written nothing.

    Checkpoints, which wait for the disk, are left to others.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._kept: PoolProxiedConnection | None = None
        self._prepared: dict[tuple[Statement, tuple[str, ...]], _Prepared] = {}

    def write(self, batches: Batches) -> None:
        """All of them, or none."""
        try:
            driver = self._driver()
            for (statement, names), rows in batches.items():
                prepared = self._prepared.get((statement, names)) or self._prepare(statement, names)
                driver.executemany(prepared.sql, prepared.bound(rows))
            driver.commit()
        except _FAILURES as error:
            self._undo()
            raise StoreError(f"{self._store} failed: {error}") from error

    def _undo(self) -> None:
        try:
            self._driver().rollback()  # most often another process holds the store: the connection is still good
        except _FAILURES:
            self.hang_up()

    def hang_up(self) -> None:
        """Undoes what is not committed, and gives the connection back."""
        if self._kept is not None:
            with contextlib.suppress(SQLAlchemyError, sqlite3.Error):
                self._kept.invalidate()  # its settings are not for others
                self._kept.close()
            self._kept = None

    def _driver(self) -> sqlite3.Connection:
        if self._kept is None:
            self._kept = self._store.engine.raw_connection()
            for pragma in (f"busy_timeout={PATIENCE_MS}", "wal_autocheckpoint=0"):
                self._kept.cursor().execute(f"PRAGMA {pragma}")
        return cast(sqlite3.Connection, self._kept.driver_connection)

    def _prepare(self, statement: Statement, names: tuple[str, ...]) -> _Prepared:
        prepared = _Prepared(statement, names, self._store.engine.dialect)
        if len(self._prepared) < 100:  # a handful in use; no caller can make it grow
            self._prepared[statement, names] = prepared
        return prepared


class _Prepared:
    """A statement's SQL, and how the values of a row become its parameters, in their order."""

    def __init__(self, statement: Statement, names: Iterable[str], dialect: Dialect) -> None:
        spelled = insert(statement) if isinstance(statement, Table) else statement
        compiled: SQLCompiler = spelled.compile(dialect=dialect, column_keys=list(names))
        self.sql = str(compiled)
        fixed = {name: bind.value for name, bind in compiled.binds.items() if not bind.required}
        of_columns = {column.key: cast(Any, column.default).arg for column in compiled.insert_prefetch}
        self._defaults = fixed | of_columns
        self._order: Sequence[tuple[str, Bind | None]] = [
            (name, _bind(compiled.binds[name].type, dialect)) for name in compiled.positiontup or ()
        ]

    def bound(self, rows: Sequence[Row]) -> list[list[Any]]:
        """The parameters of each row."""
        if self._defaults:
            rows = [{**self._defaults, **row} for row in rows]
        return [[row[name] if bind is None else bind(row[name]) for name, bind in self._order] for row in rows]


def _bind(kind: TypeEngine[Any], dialect: Dialect) -> Bind | None:
    if isinstance(kind, JSON):
        return _json  # as SQLAlchemy's own (None is null), at a tenth of its time
    return kind.dialect_impl(dialect).bind_processor(dialect)


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
