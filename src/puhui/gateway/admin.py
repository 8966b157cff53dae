"""Keys over HTTP: `/puhui/v1/keys`. The door lets in whoever shows an admin key, or the owner while there is none.

GET    /puhui/v1/keys         all keys, what each may do, and what it has spent; never a key or its digest
POST   /puhui/v1/keys         {"name", "expires"?, "rules"?}: a new key, shown in this reply and never again
PATCH  /puhui/v1/keys/{id}    {"name"?, "expires"?, "rules"?}: rules that are named change, null takes one away
DELETE /puhui/v1/keys/{id}    ends a key for good
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Annotated, Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from puhui.core.errors import InvalidRequest, SettingsError
from puhui.gateway.allowance import Allowances
from puhui.gateway.bodies import read_body, read_headers
from puhui.gateway.key_ring import KeyRing
from puhui.gateway.replies import bytes_reply
from puhui.models.wire import NOT_JSON
from puhui.store.key_table import KeyRow
from puhui.trust.api_keys import ApiKey, checked_name, new_key, read_rules

log = logging.getLogger("puhui.gateway")

PATH = "/puhui/v1/keys"
_Time = Annotated[float, msgspec.Meta(gt=0.0, lt=1e11)]


class Wanted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a new key is to be, or what is to change of one. `expires` is in seconds since 1970; null: never."""

    name: str | msgspec.UnsetType = msgspec.UNSET
    expires: _Time | msgspec.UnsetType | None = msgspec.UNSET
    rules: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


class KeyDesk:
    """The routes. What they change is in the ring before they answer."""

    def __init__(self, ring: KeyRing, allowances: Allowances) -> None:
        self._ring = ring
        self._allowances = allowances

    async def show_all(self, _: HttpRequest) -> Response:
        """GET: every key."""
        await self._ring.refresh()
        return _json({"object": "list", "data": [self._shown(key) for key in self._ring.keys]})

    async def make(self, http: HttpRequest) -> Response:
        """POST: a new key; the only reply that shows it."""
        wanted = await _wanted(http)
        if wanted.name is msgspec.UNSET:
            raise InvalidRequest("the field 'name' is missing: say whose key it is", param="name")
        expires = None if wanted.expires is msgspec.UNSET else wanted.expires
        try:
            rules = read_rules({} if wanted.rules is msgspec.UNSET else wanted.rules)
            shown, key = new_key(wanted.name, rules, expires=expires)
        except SettingsError as error:
            raise InvalidRequest(str(error)) from error
        if self._ring.empty and not rules.allow("admin"):
            raise InvalidRequest(
                "the first key needs the scope 'admin': from then on nobody may make another without it", param="rules"
            )
        await asyncio.to_thread(self._ring.table.add, row_of(key))
        await self._ring.refresh()
        log.info("key %s (%s) was made", key.id, key.name)
        return _json(self._shown(key) | {"key": shown}, 201)

    async def change(self, http: HttpRequest) -> Response:
        """PATCH: another name, time or rules."""
        key = await self._find(http)
        wanted = await _wanted(http)
        values: dict[str, Any] = {}
        try:
            if wanted.name is not msgspec.UNSET:
                values["name"] = checked_name(wanted.name)
            if wanted.rules is not msgspec.UNSET:
                values["rules"] = read_rules(key.rules.as_dict() | wanted.rules).as_dict()
        except SettingsError as error:
            raise InvalidRequest(str(error)) from error
        if wanted.expires is not msgspec.UNSET:
            values["expires"] = wanted.expires
        if values:
            await asyncio.to_thread(self._ring.table.change, key.id, **values)
            await self._ring.refresh()
            log.info("key %s (%s): %s changed", key.id, key.name, ", ".join(values))
        return _json(self._shown(self._ring.get(key.id) or key))

    async def revoke(self, http: HttpRequest) -> Response:
        """DELETE: the key opens nothing any more. It stays in the list, and its spending in the ledger."""
        key = await self._find(http)
        await asyncio.to_thread(self._ring.table.revoke, key.id, time.time())
        await self._ring.refresh()
        log.info("key %s (%s) was revoked", key.id, key.name)
        return _json(self._shown(self._ring.get(key.id) or key))

    async def _find(self, http: HttpRequest) -> ApiKey:
        await self._ring.refresh()
        key = self._ring.get(http.path_params["id"])
        if key is None:
            raise HTTPException(404, f"there is no key {http.path_params['id'][:100]!r}; GET {PATH} shows them")
        return key

    def _shown(self, key: ApiKey) -> dict[str, Any]:
        now = time.time()
        return shown_key(key, now) | {"spent": self._allowances.of(key).spent(now)}


def key_routes(ring: KeyRing, allowances: Allowances) -> list[Route]:
    """The routes of this module's docstring."""
    desk = KeyDesk(ring, allowances)
    return [
        Route(PATH, desk.show_all, methods=["GET"]),
        Route(PATH, desk.make, methods=["POST"]),
        Route(PATH + "/{id}", desk.change, methods=["PATCH"]),
        Route(PATH + "/{id}", desk.revoke, methods=["DELETE"]),
    ]


def shown_key(key: ApiKey, now: float) -> dict[str, Any]:
    """A key as it is listed."""
    return {
        "object": "key",
        "id": key.id,
        "name": key.name,
        "state": key.state(now),
        "created": key.created,
        "expires": key.expires,
        "revoked": key.revoked,
        "rules": key.rules.as_dict(),
    }


def row_of(key: ApiKey) -> KeyRow:
    """A key as the store keeps it."""
    return KeyRow(
        id=key.id,
        name=key.name,
        digest=key.digest,
        created=key.created,
        expires=key.expires,
        revoked=key.revoked,
        rules=key.rules.as_dict(),
    )


async def _wanted(http: HttpRequest) -> Wanted:
    body = await read_body(http, read_headers(http))
    try:
        return msgspec.json.decode(body, type=Wanted)
    except NOT_JSON as error:
        raise InvalidRequest(f"the body is not usable: {error}") from error


def _json(content: dict[str, Any], status: int = 200) -> Response:
    return bytes_reply(msgspec.json.encode(content), status, {"cache-control": "no-store"})
