"""GET /readyz: whether the node can serve, or what keeps it from it. (GET /healthz, in `app`: the process is alive.)

Made for Kubernetes' probes: a failed liveness probe has a node killed, so it looks at nothing that a restart does not
mend; a failed readiness probe only takes it out of the balance.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

import msgspec
from sqlalchemy import update
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from puhui.core.errors import StoreError
from puhui.store.database import Store
from puhui.store.tables import about

log = logging.getLogger("puhui.gateway")

PATIENCE_S = 2.0
"""How long a check may take; a probe of Kubernetes' gives up after one second unless told otherwise."""
REMEMBER_S = 0.5
"""How long a verdict holds, so that probing costs little however often it is done."""


class Verdict(msgspec.Struct, frozen=True):
    """Whether a check passed, and in words what it found."""

    ok: bool
    detail: str


Check: TypeAlias = Callable[[], Awaitable[Verdict]]


def ready_route(checks: Mapping[str, Check]) -> Route:
    """GET /readyz: 200 if all `checks` pass, else 503; the body names each and what it found."""
    readiness = Readiness(checks)

    async def show(_: HttpRequest) -> Response:
        verdicts = await readiness.verdicts()
        ready = all(verdict.ok for verdict in verdicts.values())
        body = {"status": "ready" if ready else "not ready", "checks": verdicts}
        return Response(
            msgspec.json.encode(body),
            200 if ready else 503,
            headers={"cache-control": "no-store"},
            media_type="application/json",
        )

    return Route("/readyz", show)


class Readiness:
    """Makes all checks at once, each bounded in time, and remembers what they found for a moment."""

    def __init__(self, checks: Mapping[str, Check]) -> None:
        self._checks = dict(checks)
        self._found: dict[str, Verdict] = {}
        self._made_at = float("-inf")
        self._making = asyncio.Lock()

    async def verdicts(self) -> dict[str, Verdict]:
        """What each check found, by its name."""
        async with self._making:
            if time.monotonic() - self._made_at > REMEMBER_S:
                found = await asyncio.gather(*(_bounded(check) for check in self._checks.values()))
                self._found = dict(zip(self._checks, found, strict=True))
                self._made_at = time.monotonic()
            return self._found


async def _bounded(check: Check) -> Verdict:
    try:
        async with asyncio.timeout(PATIENCE_S):
            return await check()
    except TimeoutError:
        return Verdict(False, f"no result within {PATIENCE_S:g} s")


def _failed(what: str, error: StoreError) -> Verdict:
    """Probes show no key: the store's own words, with its path, are for the log."""
    log.warning("not ready: the store %s: %s", what, error)
    return Verdict(False, f"{what}; see the log")


def store_is_writable(store: Store) -> Check:
    """Whether the store takes writes: one is made and committed, for a full disk is not noticed before that."""

    def write() -> None:
        with store.begin() as connection:
            connection.execute(update(about).where(about.c.key == "schema").values(value=about.c.value))

    async def check() -> Verdict:
        try:
            await asyncio.to_thread(write)
        except StoreError as error:
            return _failed("takes no writes", error)
        return Verdict(True, "takes writes")

    return check


def journal_moves(settle: Callable[[], Awaitable[None]]) -> Check:
    """Whether rows get committed: `settle` returns once the journal has taken up what comes now."""

    async def check() -> Verdict:
        try:
            await settle()
        except StoreError as error:
            return _failed("commits nothing", error)
        return Verdict(True, "commits")

    return check


def somebody_answers(upstreams_open: Callable[[], int], experts: Callable[[], int]) -> Check:
    """Whether anybody can answer: an upstream whose breaker lets requests through, or an expert in place."""

    async def check() -> Verdict:
        usable, held = upstreams_open(), experts()
        said = f"{usable} usable upstream{'s' * (usable != 1)}, {held} expert{'s' * (held != 1)} in place"
        return Verdict(usable + held > 0, said)

    return check
