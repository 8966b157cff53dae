"""The gateway's keys in the store, and what the ledger says that each has spent."""

from __future__ import annotations

import secrets
from typing import Any

import msgspec
from sqlalchemy import Connection, func, insert, select, update

from puhui.store.database import Store
from puhui.store.tables import about, keys, ledger

CHANGED = "keys_changed"
CHARGED = (200, 499)
"""Answers, and streams that their clients broke off."""


class KeyRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the table `keys`; `rules` as they are stored."""

    id: str
    name: str
    digest: str
    created: float
    expires: float | None
    revoked: float | None
    rules: dict[str, Any]


class SpentRow(msgspec.Struct, frozen=True):
    """What the answers to one key have used: requests answered, tokens, joules, money."""

    key: str
    requests: int
    tokens: int
    joules: float
    money: float


class KeyTable:
    """Reads and writes keys. Every change also changes `mark`, so that whoever holds a copy sees that it is old."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def mark(self) -> str:
        """A text that is another one after each change."""
        with self._store.begin() as connection:
            return connection.execute(select(about.c.value).where(about.c.key == CHANGED)).scalar_one_or_none() or ""

    def rows(self) -> list[KeyRow]:
        """All keys that ever were, the oldest first."""
        with self._store.begin() as connection:
            found = connection.execute(select(keys).order_by(keys.c.created, keys.c.id)).mappings()
            return [KeyRow(**row) for row in found]

    def add(self, row: KeyRow) -> None:
        """Puts a new key into the table."""
        with self._store.begin() as connection:
            connection.execute(insert(keys).values(msgspec.structs.asdict(row)))
            _mark(connection)

    def change(self, id: str, **values: Any) -> bool:
        """Sets columns of the key `id`; False if there is none."""
        with self._store.begin() as connection:
            if not connection.execute(update(keys).where(keys.c.id == id).values(values)).rowcount:
                return False
            _mark(connection)
        return True

    def revoke(self, id: str, at: float) -> bool:
        """Ends the key for good; False if there is none. One that has ended before keeps its time."""
        with self._store.begin() as connection:
            if connection.execute(select(keys.c.id).where(keys.c.id == id)).first() is None:
                return False
            connection.execute(update(keys).where(keys.c.id == id, keys.c.revoked.is_(None)).values(revoked=at))
            _mark(connection)
        return True

    def spent_since(self, since: float) -> list[SpentRow]:
        """What each key's answers have used since the time `since`. Audits and learning are not the key's."""
        query = (
            select(
                ledger.c.key,
                func.count(),
                func.sum(ledger.c.prompt_tokens + ledger.c.completion_tokens),
                func.sum(ledger.c.joules),
                func.sum(ledger.c.cost),
            )
            .where(ledger.c.at >= since, ledger.c.kind == "request", ledger.c.key != "", ledger.c.status.in_(CHARGED))
            .group_by(ledger.c.key)
        )
        with self._store.begin() as connection:
            return [SpentRow(*row) for row in connection.execute(query)]


def _mark(connection: Connection) -> None:
    token = secrets.token_hex(8)
    if not connection.execute(update(about).where(about.c.key == CHANGED).values(value=token)).rowcount:
        connection.execute(insert(about).values(key=CHANGED, value=token))
