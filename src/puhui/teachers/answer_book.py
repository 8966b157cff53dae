"""What teachers told, kept in one SQLite file of the work folder, so that nothing is asked twice across runs.

An answer is kept the moment it comes, under the digest of its teacher, its text and how often it was asked before. The
file is in WAL mode: several processes may keep answers at once, and a process that dies leaves no half answer.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import numpy as np

from puhui.core.errors import StoreError
from puhui.store.database import use_write_ahead_log
from puhui.teachers.teacher import Told

BOOK_FILE = "answers.db"
_BUSY_S = 30.0
LEAD_WITHIN_S = 0.1


class _Kept(msgspec.Struct, array_like=True):
    """A `Told` without its vector, as it lies on disk. New fields go to the end and need a default."""

    answer: str
    probabilities: dict[str, float] | None
    alternatives: tuple[tuple[str, float], ...]
    seconds: float
    tokens_in: int
    tokens_out: int
    cost: float | None


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Kept).decode


def plain(text: str) -> str:
    """The text as it is asked and kept: half a surrogate pair has no place in UTF-8."""
    return text.encode("utf-8", "replace").decode()


def bare(text: str) -> str:
    """By what copies of a text are known: as it is asked, without the white space around it.

    >>> bare(" my parcel\\n") == bare("my parcel")
    True
    """
    return plain(text).strip()


def key_of(teacher: str, text: str, again: int = 0) -> bytes:
    """Under what an answer is kept: the teacher's digest, the plain text, and how often it was asked before."""
    return hashlib.sha256(f"{teacher}\n{again}\n{text}".encode()).digest()


class AnswerBook:
    """The answers in `folder`, which is made if need be. A context manager; belongs to the thread that opened it."""

    def __init__(self, folder: Path) -> None:
        """StoreError where the file cannot be opened or is damaged."""
        self.path = folder / BOOK_FILE
        self._lock: sqlite3.Connection | None = None
        with self._explained():
            folder.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None)
            use_write_ahead_log(self._file)
            self._file.execute("PRAGMA synchronous=NORMAL")
            self._file.execute(
                "CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, told BLOB NOT NULL, vector BLOB)"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._lock is not None:
            self._lock.close()

    def leads(self, teacher: str) -> bool:
        """Whether nobody else asks this teacher for this folder; then nobody else leads until the book is closed.

        The lock is one of SQLite's, on an empty file beside: it works on every system and ends with its process.
        """
        digest = hashlib.sha256(teacher.encode()).hexdigest()
        with self._explained():
            # With no patience at all, two that ask at the same moment may both be refused.
            place = self.path.with_name(f"asking-{digest[:16]}.lock")
            lock = sqlite3.connect(place, timeout=LEAD_WITHIN_S, isolation_level=None)
            try:
                lock.execute("BEGIN EXCLUSIVE")
            except sqlite3.Error as error:
                lock.close()
                if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
                    return False
                raise
        self._lock = lock
        return True

    def find(self, key: bytes) -> Told | None:
        """What was told, if it was."""
        with self._explained():
            row = self._file.execute("SELECT told, vector FROM answers WHERE key = ?", (key,)).fetchone()
            return None if row is None else _told(*row)

    def keep(self, answers: Iterable[tuple[bytes, Told]]) -> None:
        """Writes answers down, all or none; one that is there already stays."""
        rows = [(key, _encode(_kept(told)), _bytes_of(told)) for key, told in answers]
        with self._explained():
            self._file.execute("BEGIN IMMEDIATE")
            try:
                self._file.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?, ?)", rows)
            except BaseException:
                self._file.execute("ROLLBACK")
                raise
            self._file.execute("COMMIT")

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, msgspec.MsgspecError) as error:
            raise StoreError(
                f"the answers in {self.path} cannot be read or written ({error}); if the file is damaged, move it "
                "away: what it held is then asked again"
            ) from error


def _kept(told: Told) -> _Kept:
    fields: dict[str, Any] = {name: getattr(told, name) for name in _Kept.__struct_fields__}
    return _Kept(**fields)


def _bytes_of(told: Told) -> bytes | None:
    return None if told.vector is None else np.ascontiguousarray(told.vector, "<f4").tobytes()


def _told(kept: bytes, vector: bytes | None) -> Told:
    fields = msgspec.structs.asdict(_decode(kept))
    return Told(**fields, vector=None if vector is None else np.frombuffer(vector, "<f4"))
