"""Opening a store: SQLite in WAL mode by default, any other database that SQLAlchemy speaks by URL."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, insert, inspect, literal, select, text, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, SQLAlchemyError
from sqlalchemy.schema import CreateColumn, CreateIndex, CreateTable

from puhui.core.errors import StoreError
from puhui.store.tables import SCHEMA_VERSION, about, metadata

# Reading a whole store through at each opening is for small ones; a larger one tells of damage where it is met.
OLDER = ("1",)
"""Schemas that are brought up to date at opening."""
CHECKED_AT_OPENING_BYTES = 64 * 1024 * 1024
PATIENCE_S = 10
"""How long another process may hold the store."""


class Store:
    """An open store. `begin()` gives a connection in a transaction that commits when the block ends."""

    def __init__(self, engine: Engine, url: str, *, commits_without_waiting: bool = False) -> None:
        """`commits_without_waiting`: a commit goes to the operating system and does not wait for the disk."""
        self.engine = engine
        self.url = url
        self.commits_without_waiting = commits_without_waiting

    def __repr__(self) -> str:
        return f"Store({make_url(self.url).render_as_string(hide_password=True)!r})"

    @contextlib.contextmanager
    def begin(self) -> Iterator[Connection]:
        """A transaction; a failure of the database becomes a `StoreError` that says what to do."""
        with self.explained(), self.engine.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Turns failures of the database inside the block into `StoreError`s."""
        try:
            yield
        except SQLAlchemyError as error:
            raise _explain(error, self) from error
        except (OverflowError, UnicodeEncodeError) as error:  # the driver's, which SQLAlchemy lets pass
            raise StoreError(f"{self} cannot hold a value: {error}") from error

    def check(self) -> str:
        """ "ok", or what the database's own integrity check found."""
        if self.engine.dialect.name != "sqlite":
            return "ok"
        with self.begin() as connection:
            return "; ".join(row[0] for row in connection.execute(text("PRAGMA integrity_check")))

    def close(self) -> None:
        """Closes every connection."""
        self.engine.dispose()


def sqlite_url(path: Path) -> str:
    """The URL of the SQLite store in the file `path`."""
    return f"sqlite:///{path}"


def open_store(url: str, *, durable: bool = False, create: bool = True) -> Store:
    """Opens the store at `url` (made if it is not there and `create`); checks that it is sound and of this version.

    `durable` makes each commit wait for the disk itself, so that a power cut loses nothing either; without it
    a commit is safe against the death of any process, not of the machine.
    """
    parsed = _parse(url)
    path = Path(parsed.database or "") if parsed.get_backend_name() == "sqlite" else None
    if path is not None and not create and not path.exists():
        raise StoreError(f"there is no store at {path}; `puhui serve` makes one, --store and --data-dir name another")
    try:
        if path is not None:
            _make_for_its_owner(path)
        engine = create_engine(parsed, pool_size=8, max_overflow=8)
    except (OSError, ImportError, TypeError, SQLAlchemyError) as error:
        raise StoreError(f"the store {parsed} cannot be opened: {error}") from error
    if path is not None:
        event.listen(engine, "connect", _sqlite_pragmas(durable))
    store = Store(engine, url, commits_without_waiting=path is not None and not durable)
    try:
        _prepare(store)
    except StoreError:
        store.close()
        raise
    return store


def _make_for_its_owner(path: Path) -> None:
    """An empty file that nobody else may read, and its folder, where they are not there yet.

    SQLite's log is made alike. What is there keeps its mode: somebody may have given it a group.
    """
    if str(path).startswith("file:"):  # SQLite's own form of a name: no path
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(OSError):  # it is there, or cannot be made, which SQLite will say
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except (ArgumentError, ValueError) as error:
        scheme = url.partition(":")[0]  # what follows may hold a password
        raise StoreError(f"store URL {scheme!r}… is not a database URL, such as sqlite:///puhui.db") from error
    if backend == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise StoreError(
            f"the store {url!r} would lie in memory, where the learning process cannot read it; "
            "name a file, such as sqlite:///puhui.db"
        )
    return parsed


def _sqlite_pragmas(durable: bool) -> Any:
    def configure(connection: sqlite3.Connection, _: object) -> None:
        connection.execute(f"PRAGMA busy_timeout={PATIENCE_S * 1000}")  # first: those that follow may have to wait
        use_write_ahead_log(connection)
        for pragma in (
            f"synchronous={'FULL' if durable else 'NORMAL'}",
            "wal_autocheckpoint=4000",
            "secure_delete=ON",  # what is deleted is overwritten with zeros
        ):
            connection.execute(f"PRAGMA {pragma}")

    return configure


def use_write_ahead_log(connection: sqlite3.Connection) -> None:
    """Puts a new file into WAL mode. SQLite itself does not wait while another process is doing just that."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > end:
                raise
        time.sleep(0.02)


def _prepare(store: Store) -> None:
    """Makes what is missing and checks what is there; of processes that do so at once, all succeed."""
    with store.begin() as connection:
        if store.engine.dialect.name == "sqlite" and _bytes_of(connection) <= CHECKED_AT_OPENING_BYTES:
            found = connection.execute(text("PRAGMA quick_check(1)")).scalar_one()
            if found != "ok":
                raise StoreError(f"{store} is damaged: {found}; {_RECOVER}")
        for table in metadata.sorted_tables:
            connection.execute(CreateTable(table, if_not_exists=True))
            for index in table.indexes:
                connection.execute(CreateIndex(index, if_not_exists=True))
    if _version(store) in OLDER:
        try:
            _upgrade(store)
        except StoreError:
            if _version(store) in OLDER:  # else another process has just done it
                raise
    version = _version(store)
    if version is None:
        mark = select(literal("schema"), literal(str(SCHEMA_VERSION))).where(~select(about).exists())
        with store.begin() as connection:
            connection.execute(insert(about).from_select(["key", "value"], mark))
        version = _version(store)
    if version != str(SCHEMA_VERSION):
        raise StoreError(
            f"{store} has schema {version}, this Puhui reads schema {SCHEMA_VERSION}; "
            "use the Puhui that wrote it, or give another --store"
        )


def _upgrade(store: Store) -> None:
    """Adds the columns that a store of an earlier schema lacks, in one transaction. Nothing is taken away."""
    with store.begin() as connection:
        found = inspect(connection)
        for table in metadata.sorted_tables:
            there = {column["name"] for column in found.get_columns(table.name)}
            for column in table.columns:
                if column.name not in there:
                    spelled = CreateColumn(column).compile(dialect=connection.dialect)
                    connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {spelled}")
        connection.execute(update(about).where(about.c.key == "schema").values(value=str(SCHEMA_VERSION)))


def _bytes_of(connection: Connection) -> int:
    pages = connection.execute(text("PRAGMA page_count")).scalar_one()
    size = connection.execute(text("PRAGMA page_size")).scalar_one()
    return int(pages) * int(size)


def _version(store: Store) -> str | None:
    with store.begin() as connection:
        return connection.execute(select(about.c.value).where(about.c.key == "schema")).scalar_one_or_none()


_RECOVER = "move the file away to start afresh, or restore a copy"


def _explain(error: SQLAlchemyError, store: Store) -> StoreError:
    cause = str(error.orig) if isinstance(error, DatabaseError) and error.orig else str(error)
    if "readonly" in cause or "read-only" in cause:
        advice = "make the file and its folder writable, or give another --store"
    elif "full" in cause or "No space" in cause:
        advice = "free some space on its disk"
    elif "not a database" in cause or "malformed" in cause:
        advice = _RECOVER
    elif "unable to open" in cause:
        advice = "check that its folder exists and can be written"
    elif "locked" in cause:
        advice = "another process holds it for long; see which one"
    else:
        advice = "see the message of the database"
    return StoreError(f"{store} failed: {cause}; {advice}")
