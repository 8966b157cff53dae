"""Group commit: rows are on disk before their replies leave, and concurrent requests share the commits."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Insert, Table, insert
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from puhui.core.errors import StoreError
from puhui.store.database import Store

Row = Mapping[str, Any]
Entry = tuple[Table, Row]
Waiting = tuple[Sequence[Entry], asyncio.AbstractEventLoop, "asyncio.Future[None]"]


class Journal:
    """Appends rows to a store from an event loop, through one writer thread.

    While the writer commits, entries of other requests gather; the next commit takes all of them. Where that
    fails because of one request's row, the others are committed without it. A failure is told to every request
    that it concerns, so none is acknowledged without its row.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: deque[Waiting] = deque()
        self._door = threading.Lock()
        self._wake = threading.Semaphore(0)
        self._closing = False
        self._connection: Connection | None = None
        self._statements: dict[Table, Insert] = {}
        self._thread = threading.Thread(target=self._run, name="puhui-journal", daemon=True)
        self._thread.start()

    async def append(self, entries: Sequence[Entry]) -> None:
        """Returns once all `entries` are committed, in one transaction. Raises `StoreError` if they are not."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        with self._door:
            if self._closing:
                raise StoreError("the journal is closed: the node is shutting down")
            self._waiting.append((entries, loop, done))
        self._wake.release()
        # A caller that goes away must not undo what is already on its way to disk.
        await asyncio.shield(done)

    def close(self) -> None:
        """Commits what is waiting and stops the writer."""
        with self._door:
            self._closing = True
        self._wake.release()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._wake.acquire()
            batch = []
            while self._waiting:
                batch.append(self._waiting.popleft())
            if batch:
                self._commit(batch)
            elif self._closing:
                self._hang_up()
                return

    def _commit(self, batch: list[Waiting]) -> None:
        failure: StoreError | None = None
        try:
            self._insert(_by_table(entry for entries, _, _ in batch for entry in entries))
        except StoreError as error:
            failure = error
            if len(batch) > 1 and not isinstance(error.__cause__, OperationalError):  # not the store, but a row
                for waiting in batch:
                    self._commit([waiting])
                return
        for _, loop, done in batch:
            with contextlib.suppress(RuntimeError):  # its loop is closed: nobody waits any more
                loop.call_soon_threadsafe(_settle, done, failure)

    def _insert(self, rows: dict[Table, list[Row]]) -> None:
        """One transaction, on a connection that is kept: taking one from the pool costs as much as the rows."""
        with self._store.explained():
            try:
                if self._connection is None:
                    self._connection = self._store.engine.connect()
                with self._connection.begin():
                    for table, of_table in rows.items():
                        statement = self._statements.setdefault(table, insert(table))
                        self._connection.execute(statement, of_table)
            except Exception:
                self._hang_up()
                raise

    def _hang_up(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(SQLAlchemyError):
                self._connection.close()
            self._connection = None


def _by_table(entries: Any) -> dict[Table, list[Row]]:
    rows: dict[Table, list[Row]] = {}
    for table, row in entries:
        rows.setdefault(table, []).append(row)
    return rows


def _settle(done: asyncio.Future[None], failure: StoreError | None) -> None:
    if done.cancelled():
        return
    if failure is None:
        done.set_result(None)
    else:
        done.set_exception(failure)
