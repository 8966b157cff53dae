"""The gateway's keys in memory, never more than a second behind the store: a request waits for no database."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

import msgspec

from puhui.core.errors import NotAuthenticated, SettingsError, StoreError
from puhui.core.request import Caller
from puhui.store.key_table import KeyRow, KeyTable
from puhui.trust.api_keys import ApiKey, digest_of, read_rules, same_digest

log = logging.getLogger("puhui.gateway")

READ_STORE_EVERY_S = 0.5
_INDEXED = 32  # digits of a digest by which it is looked up; all of them are then compared
_NOBODY = "0" * 64


class Held(msgspec.Struct, frozen=True):
    """A key of the ring, and whose requests with it are."""

    key: ApiKey
    caller: Caller


class KeyRing:
    """All keys by their digests. As an async context manager it follows the store: what another process adds or
    revokes is seen within a second.

    A key whose rules this version cannot read opens nothing. Once there was a key, the ring is not `empty` again,
    even when all are revoked: a node never falls back to being open.
    """

    def __init__(self, table: KeyTable) -> None:
        self.table = table
        self._mark: str | None = None
        self._by_digest: dict[str, Held] = {}
        self._by_id: dict[str, ApiKey] = {}
        self.empty = True
        self.read()()

    @property
    def keys(self) -> Sequence[ApiKey]:
        """Every key, the oldest first."""
        return tuple(self._by_id.values())

    def get(self, id: str) -> ApiKey | None:
        """The key of that id."""
        return self._by_id.get(id)

    def is_admin(self, id: str) -> bool:
        """Whether that key is one, in force, that may do everything."""
        key = self._by_id.get(id)
        return key is not None and key.state(time.time()) == "active" and key.rules.allow("admin")

    def find(self, shown: bytes) -> Held:
        """The key that was shown. Raises `NotAuthenticated` if there is none, or it has ended."""
        digest = digest_of(shown)
        held = self._by_digest.get(digest[:_INDEXED])
        if not same_digest(digest, _NOBODY if held is None else held.key.digest) or held is None:
            raise NotAuthenticated("the key that was shown is not one of this node; ask whoever runs it for one")
        if (state := held.key.state(time.time())) != "active":
            raise NotAuthenticated(f"the key {held.key.id} is {state}; ask whoever runs this node for another")
        return held

    def read(self) -> Callable[[], None]:
        """Reads the store if it has changed (in any thread); what it returns puts that in place (on the loop)."""
        mark = self.table.mark()
        if mark == self._mark:
            return lambda: None
        # Rows that come after the mark was read are seen at the next reading at the latest.
        rows = self.table.rows()
        found = [key for row in rows if (key := _key_of(row)) is not None]
        return lambda: self._put(found, mark, empty=not rows)

    async def refresh(self) -> None:
        """The ring as the store has it now."""
        (await asyncio.to_thread(self.read))()

    async def __aenter__(self) -> KeyRing:
        self._following = asyncio.create_task(self._follow())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._following.cancel()
        await asyncio.gather(self._following, return_exceptions=True)

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(READ_STORE_EVERY_S)
            try:
                await self.refresh()
            except StoreError as error:
                log.warning("the keys cannot be read, they stay as they are: %s", error)

    def _put(self, found: Sequence[ApiKey], mark: str, *, empty: bool) -> None:
        self._by_digest = {key.digest[:_INDEXED]: Held(key, key.caller) for key in found}
        self._by_id = {key.id: key for key in found}
        self._mark = mark
        self.empty = self.empty and empty and not mark  # a mark without rows: there was one


def _key_of(row: KeyRow) -> ApiKey | None:
    try:
        # An empty list of models, which may be in the store from before it was refused, meant any.
        rules = read_rules(row.rules | {"models": row.rules.get("models") or None})
    except SettingsError as error:
        log.warning("key %s is not used: %s", row.id, error)
        return None
    return ApiKey(
        id=row.id,
        name=row.name,
        digest=row.digest,
        created=row.created,
        expires=row.expires,
        revoked=row.revoked,
        rules=rules,
    )
