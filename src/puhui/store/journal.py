"""Group commit: rows are on disk before their replies leave, and concurrent requests share the commits."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Iterable, Sequence

from sqlalchemy import Connection, Executable, Table, insert
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from puhui.core.errors import StoreError
from puhui.store.at_once import AtOnce, Batches, Row, Statement
from puhui.store.database import Store
from puhui.store.write_ahead import keep_log_short, log_bytes

Entry = tuple[Statement, Row]
Waiting = tuple[Sequence[Entry], asyncio.AbstractEventLoop, "asyncio.Future[None]"]

CHECKPOINT_EVERY_COMMITS = 2000
CHECKPOINT_EVERY_BYTES = 16 * 1024 * 1024
"""By which the log has grown: a commit has the rows of many requests, and a row may have 200 kB of text."""
LOOK_EVERY_COMMITS = 8
"""At the log's size, which takes two microseconds."""
MOST_LOG_PAGES = 16_384
"""Of SQLite's write-ahead log, 64 MiB."""


class Journal:
    """Appends rows to a store from an event loop.

    A commit that has not to wait for the disk takes a tenth of a millisecond, less than to wake another thread:
    then the loop itself commits what its requests have gathered since its last turn. Where the disk is waited
    for, the store is not a file, or another process holds it, a writer thread commits; while it does, further
    entries gather for its next commit.

    Where a commit fails because of one request's row, the others are committed without it. A failure is told
    to every request that it concerns, so none is acknowledged without its row.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._at_once = AtOnce(store) if store.commits_without_waiting else None
        self._patient = _Patient(store)
        self._gathered: list[Waiting] = []
        self._waiting: deque[Waiting] = deque()
        self._door = threading.Lock()
        self._wake = threading.Semaphore(0)
        self._closing = False
        self._commits = 0
        self._log_bytes = 0
        self._thread = threading.Thread(target=self._run, name="puhui-journal", daemon=True)
        self._thread.start()

    async def append(self, entries: Sequence[Entry]) -> None:
        """Returns once all `entries` are committed, in one transaction. Raises `StoreError` if they are not."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        with self._door:
            if self._closing:
                raise StoreError("the journal is closed: the node is shutting down")
            if self._at_once is None:
                self._hand_over([(entries, loop, done)])
            else:
                self._gathered.append((entries, loop, done))
                if len(self._gathered) == 1:
                    loop.call_soon(self._commit_gathered, self._at_once)
        await done  # a caller that goes away leaves what is already on its way to disk

    def close(self) -> None:
        """Commits what is waiting and stops the writer."""
        with self._door:
            self._closing = True
            self._hand_over(self._gathered)
            self._gathered = []
        self._thread.join()
        if self._at_once is not None:
            self._at_once.hang_up()

    def _hand_over(self, batch: Sequence[Waiting]) -> None:
        self._waiting.extend(batch)
        self._wake.release()

    def _commit_gathered(self, writer: AtOnce) -> None:
        """On the event loop: one commit for all that its last turn brought; the thread has what cannot be now."""
        with self._door:
            batch, self._gathered = self._gathered, []
        if not batch:
            return
        try:
            writer.write(_batches(batch))
        except StoreError:
            self._hand_over(batch)
            return
        self._commits += 1
        if self._commits % CHECKPOINT_EVERY_COMMITS == 0 or (
            self._commits % LOOK_EVERY_COMMITS == 0 and self._log_has_grown()
        ):
            self._wake.release()
        for _, _, done in batch:
            _settle(done, None)

    def _log_has_grown(self) -> bool:
        size = log_bytes(self._store)
        grown = size >= self._log_bytes + CHECKPOINT_EVERY_BYTES
        if grown or size < self._log_bytes:  # or it was emptied
            self._log_bytes = size
        return grown

    def _run(self) -> None:
        while True:
            self._wake.acquire()
            batch = []
            while self._waiting:
                batch.append(self._waiting.popleft())
            if batch:
                self._commit(batch)
            elif not self._closing:
                self._patient.checkpoint()
            if self._closing and not self._waiting:
                self._patient.hang_up()
                return

    def _commit(self, batch: list[Waiting]) -> None:
        failure: StoreError | None = None
        try:
            self._patient.write(_batches(batch))
        except StoreError as error:
            failure = error
            if len(batch) > 1 and not isinstance(error.__cause__, OperationalError):  # not the store, but a row
                for waiting in batch:
                    self._commit([waiting])
                return
        for _, loop, done in batch:
            with contextlib.suppress(RuntimeError):  # its loop is closed: nobody waits any more
                loop.call_soon_threadsafe(_settle, done, failure)


class _Patient:
    """Writes on a connection that is kept, by whatever database there is, and waits as long as the store has it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._connection: Connection | None = None
        self._statements: dict[Statement, Executable] = {}

    def write(self, batches: Batches) -> None:
        """All rows in one transaction; `StoreError` if it fails."""
        with self._store.explained():
            try:
                if self._connection is None:
                    self._connection = self._store.engine.connect()
                with self._connection.begin():
                    for (statement, _), rows in batches.items():
                        if statement not in self._statements:
                            self._statements[statement] = (
                                insert(statement) if isinstance(statement, Table) else statement
                            )
                        self._connection.execute(self._statements[statement], rows)
            except Exception:
                self.hang_up()
                raise

    def checkpoint(self) -> None:
        """Moves what SQLite's write-ahead log holds into the store's file."""
        if self._store.commits_without_waiting:
            with contextlib.suppress(StoreError):  # later again
                keep_log_short(self._store, MOST_LOG_PAGES)

    def hang_up(self) -> None:
        """Gives the connection back."""
        if self._connection is not None:
            with contextlib.suppress(SQLAlchemyError):
                self._connection.invalidate()
                self._connection.close()
            self._connection = None


def _batches(waiting: Iterable[Waiting]) -> Batches:
    batches: dict[tuple[Statement, tuple[str, ...]], list[Row]] = {}
    for entries, _, _ in waiting:
        for statement, row in entries:
            batches.setdefault((statement, tuple(row)), []).append(row)
    return batches


def _settle(done: asyncio.Future[None], failure: StoreError | None) -> None:
    if done.done():  # its request was cancelled
        return
    if failure is None:
        done.set_result(None)
    else:
        done.set_exception(failure)
