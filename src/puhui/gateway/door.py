"""The gateway's door: who comes in, what they may do, and how much of it.

With keys, each request but for a few open paths shows one (`Authorization: Bearer …` or `x-api-key`). The door finds
whose it is, takes the key out of the request, so that nothing behind the door can pass it on, log it or keep it, and
puts the `Caller` into the request's state.

Without keys the node is its owner's alone, and the danger is the owner's own browser: any page in it can send requests
to 127.0.0.1. So a request must name this machine as its host (a page that reached us by DNS rebinding names its own
site), must not come through a proxy from elsewhere, and must not change anything from a page of another origin.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import time
from collections.abc import Collection, Sequence

from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from puhui.browser import FOLDER
from puhui.core.errors import NotAllowed, NotAuthenticated, PuhuiError, SettingsError
from puhui.core.request import Caller
from puhui.gateway.allowance import Allowance, Allowances
from puhui.gateway.key_ring import Held, KeyRing
from puhui.gateway.replies import error_response
from puhui.trust import api_keys

RawHeaders = Sequence[tuple[bytes, bytes]]

ADMIN_PATHS = ("/puhui/v1/keys", "/puhui/v1/traces")
"""What is an administrator's, even to look at."""
OPEN_PATHS = frozenset(
    {"/healthz", "/readyz", "/favicon.ico", "/device"}
    | {f"/device/{path.name}" for path in FOLDER.iterdir() if path.suffix in (".js", ".css")}
)
"""What may be seen without a key: whether the node is well, and pages that hold no data."""
ANSWERS: tuple[api_keys.Scope, ...] = ("chat", "embeddings")
_CREDENTIALS = (b"authorization", b"x-api-key")
_PASSED_ON = frozenset({b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-real-ip", b"via"})
_WHENCE = _PASSED_ON | {b"host", b"origin"}
_LIMITS = b"x-ratelimit-"
"""How headers of limits begin: a key's own here take the place of those that an upstream told."""
_OWNER = Caller()
_READING = ("GET", "HEAD", "OPTIONS")


def add_door(
    app: Starlette,
    ring: KeyRing,
    allowances: Allowances,
    *,
    required: bool = False,
    open_to_all: bool = False,
    origins: Sequence[str] = (),
    open_paths: Collection[str] = (),
) -> None:
    """Puts the door before all routes of `app`.

    `required`: keys even while none exists. `open_to_all`: without keys, anyone who reaches the address may use it.
    `origins` are other sites' whose pages may use the node from a browser, such as https://chat.example.com.
    `open_paths` need no key, beside those of this module: pages that hold no data.
    """
    others = [read_origin(given) for given in origins]
    app.add_middleware(
        Door,
        ring=ring,
        allowances=allowances,
        required=required,
        open_to_all=open_to_all,
        origins=frozenset(others),
        open_paths=OPEN_PATHS | frozenset(open_paths),
    )
    if others:
        methods = ("GET", "POST", "PATCH", "DELETE")
        app.add_middleware(
            CORSMiddleware,
            allow_origins=others,
            allow_methods=methods,
            allow_headers=("*",),
            expose_headers=("*",),  # who answered, what it cost, when to come back
        )


def check_address(host: str, ring: KeyRing, *, required: bool, allow_open: bool) -> None:
    """Raises `SettingsError` if a node without keys could be reached from elsewhere, and nobody said so."""
    if ring.empty and not required and not allow_open and not is_loopback(host):
        raise SettingsError(
            f"--host {host} can be reached from elsewhere and there is no key yet: anyone there could spend your big "
            "model's money; make one with `puhui keys new NAME --scope admin`, or serve on 127.0.0.1, or say "
            "--allow-open"
        )


class Door:
    """An ASGI application around another one. It runs for each request, so it does little and waits for nothing."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        ring: KeyRing,
        allowances: Allowances,
        required: bool,
        open_to_all: bool,
        origins: Collection[str],
        open_paths: Collection[str],
    ) -> None:
        self._app = app
        self._ring = ring
        self._allowances = allowances
        self._required = required
        self._open_to_all = open_to_all
        self._origins = origins
        self._open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # nothing here speaks it
            return
        if scope["type"] != "http" or (scope["path"] in self._open_paths and scope["method"] in _READING):
            await self._app(scope, receive, send)
            return
        allowance: Allowance | None = None
        try:
            wanted = scope_of(scope["method"], scope["path"])
            if self._ring.empty and not self._required:
                self._check_stranger(scope, wanted)
            else:
                held = self._check_key(scope, wanted)
                if wanted is None or wanted in ANSWERS:
                    allowance = self._allowances.of(held.key)
                    send = _with_headers(send, allowance)
                    allowance.admit(time.time(), time.monotonic())
        except PuhuiError as error:
            await error_response(error)(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            if allowance is not None:
                allowance.leave()

    def _check_key(self, scope: Scope, wanted: api_keys.Scope | None) -> Held:
        headers: RawHeaders = scope["headers"]
        shown = _shown(headers)
        # Before anything can fail: what is told of a failure must not have it either.
        scope["headers"] = [header for header in headers if header[0] not in _CREDENTIALS]
        if shown is None:
            raise NotAuthenticated("this node asks for a key: send it as `Authorization: Bearer pk-puhui-…`")
        held = self._ring.find(shown)
        if not any(held.key.rules.allow(one) for one in ((wanted,) if wanted is not None else ANSWERS)):
            has, needs = ", ".join(held.key.rules.scopes), repr(wanted) if wanted is not None else " or ".join(ANSWERS)
            raise NotAllowed(f"the key {held.key.id} has not the scope {needs} that this needs, only {has}")
        scope.setdefault("state", {})["caller"] = held.caller
        return held

    def _check_stranger(self, scope: Scope, wanted: api_keys.Scope | None) -> None:
        """While there are no keys: only the owner, at this machine, and no page of somebody else's."""
        told = [header for header in scope["headers"] if header[0] in _WHENCE]
        hosts = [value.decode("latin-1").lower() for name, value in told if name == b"host"]
        if wanted == "admin" or not self._open_to_all:
            if wanted == "admin" and not _is_near(scope):
                raise NotAllowed("there is no key yet, and without one this may be done at the node's machine only")
            for host in hosts:
                if not _is_loopback_host(host):
                    raise NotAllowed(
                        f"this node has no keys, so it answers at 127.0.0.1 and localhost only, not at {host[:100]!r}; "
                        "make a key with `puhui keys new`"
                    )
            if any(name in _PASSED_ON for name, _ in told):
                raise NotAllowed(
                    "this request came through a proxy, and a node without keys serves its own machine only; "
                    "make a key with `puhui keys new`, or start it with --allow-open"
                )
        if scope["method"] not in _READING:
            self._check_origin([value.decode("latin-1").lower() for name, value in told if name == b"origin"], hosts)
        scope.setdefault("state", {})["caller"] = _OWNER

    def _check_origin(self, origins: Sequence[str], hosts: Sequence[str]) -> None:
        for origin in origins:
            own = origin.partition("://")[2] in hosts
            if not own and origin not in self._origins and "*" not in self._origins:
                raise NotAllowed(
                    f"pages of {origin[:100]!r} may not use this node; if they should, start it with "
                    "--allow-origin and that origin"
                )


def scope_of(method: str, path: str) -> api_keys.Scope | None:
    """The scope that a request needs; None: any that lets a key ask (`ANSWERS`).

    >>> scope_of("POST", "/v1/chat/completions"), scope_of("GET", "/metrics"), scope_of("DELETE", "/puhui/v1/keys/k")
    ('chat', 'read', 'admin')
    """
    if path == "/v1/embeddings":
        return "embeddings"
    if path.startswith("/v1/"):
        return None if path.startswith("/v1/models") and method in _READING else "chat"
    return "read" if method in _READING and not path.startswith(ADMIN_PATHS) else "admin"


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is this machine's, reached from nowhere else."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def read_origin(given: str) -> str:
    """An origin as browsers write it. Raises `SettingsError` for what is none."""
    if given != "*" and not given.startswith(("http://", "https://")):
        raise SettingsError(f"--allow-origin is {given!r}, but must be an origin such as https://chat.example.com")
    return given.rstrip("/").lower()


def _shown(headers: RawHeaders) -> bytes | None:
    """The key in the headers; a bearer's comes before an `x-api-key`."""
    other: bytes | None = None
    for name, value in headers:
        if name == b"authorization":
            kind, _, token = value.partition(b" ")
            if kind.lower() == b"bearer":
                return token.strip()
        elif name == b"x-api-key":
            other = value.strip()
    return other


def _with_headers(send: Send, allowance: Allowance) -> Send:
    if allowance.rules.requests_per_minute is None and allowance.rules.tokens_per_minute is None:
        return send

    async def send_with_limits(message: Message) -> None:
        if message["type"] == "http.response.start":
            others = (each for each in message.get("headers", ()) if not each[0].startswith(_LIMITS))
            message["headers"] = [*others, *allowance.headers(time.monotonic())]
        await send(message)

    return send_with_limits


def _is_near(scope: Scope) -> bool:
    client = scope.get("client")
    return client is None or is_loopback(client[0])  # None: over a socket in the file system


@functools.lru_cache(maxsize=256)
def _is_loopback_host(host: str) -> bool:
    if host.startswith("["):
        return is_loopback(host[1:].partition("]")[0])
    return is_loopback(host.partition(":")[0])
