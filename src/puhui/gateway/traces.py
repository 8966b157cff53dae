"""Forgetting over HTTP: `/puhui/v1/traces`, for whoever may administer the node (the door sees to that).

GET    /puhui/v1/traces?key=ID      what would go: counts, and the experts that may have learned from it
DELETE /puhui/v1/traces?key=ID      takes it away, all or nothing; `now=true` retires those experts at once

In place of `key`: `request=ID`, `task=NAME`, or `before=DATE` (YYYY-MM-DD, UTC, or seconds since 1970). A key or a task
that is not here gets 404, a request counts of 0: of one that was forgotten already nobody knows that it was here.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import time
from collections.abc import Iterator
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from puhui.core.errors import InvalidRequest, SettingsError, UnknownModel
from puhui.store.database import Store
from puhui.store.forgetting import Traces, Wanted, find_traces, forget

log = logging.getLogger("puhui.gateway")

PATH = "/puhui/v1/traces"
FLAGS = {"true": True, "false": False}


def forget_routes(store: Store) -> list[Route]:
    """The routes that show and take away traces in `store`."""

    async def show(http: HttpRequest) -> Response:
        wanted, _ = _read(http)
        with _unknown_is_404():
            return _json(await asyncio.to_thread(find_traces, store, wanted))

    async def take(http: HttpRequest) -> Response:
        wanted, at_once = _read(http)
        with _unknown_is_404():
            traces = await asyncio.to_thread(forget, store, wanted, now=time.time(), at_once=at_once)
        log.info("%d rows of experience and %d of the ledger were forgotten", traces.rows, traces.ledger_rows)
        return _json(traces)

    return [Route(PATH, show, methods=["GET"]), Route(PATH, take, methods=["DELETE"])]


def seconds_of(given: str) -> float:
    """Seconds since 1970 of a day (its beginning, UTC) or of a number. Raises `SettingsError`.

    >>> seconds_of("1970-01-02"), seconds_of("12.5")
    (86400.0, 12.5)
    """
    try:
        return float(given)
    except ValueError:
        pass
    try:
        moment = datetime.datetime.fromisoformat(given)
    except ValueError as error:
        raise SettingsError(f"before is {given!r}, but must be a day such as 2026-11-01") from error
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=datetime.UTC)).timestamp()


def _read(http: HttpRequest) -> tuple[Wanted, bool]:
    given: dict[str, Any] = dict(http.query_params)
    unknown = given.keys() - {*Wanted.__struct_fields__, "now"}
    now = given.pop("now", "false")
    if unknown or now not in FLAGS or len(given) != len(http.query_params.multi_items()) - ("now" in http.query_params):
        raise InvalidRequest(
            f"the query {http.url.query!r} is not usable: give one of key, request, task and before; now may be true"
        )
    try:
        if "before" in given:
            given["before"] = seconds_of(given["before"])
        return Wanted(**given), FLAGS[now]
    except SettingsError as error:
        raise InvalidRequest(str(error)) from error


@contextlib.contextmanager
def _unknown_is_404() -> Iterator[None]:
    """The caller named no model, so it is not told of one."""
    try:
        yield
    except UnknownModel as error:
        raise HTTPException(404, str(error)) from error


def _json(traces: Traces) -> Response:
    return Response(msgspec.json.encode(traces), media_type="application/json")
