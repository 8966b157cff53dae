"""The node's own API under /puhui/v1: what its pages read, and the two things that a person may do to an expert.

Whoever may speak to the node may read all of it: `gateway.door` asks for a key with the scope `read`, or `admin` for
what changes something, and without keys lets no page of another site in. Text of requests is in one place only, the
disagreements, and there a key that is no admin's sees that of its own requests.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import get_args

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from puhui.core.errors import InvalidRequest, StoreError
from puhui.core.request import Caller
from puhui.gateway.assets import ALWAYS
from puhui.gateway.expert_view import Kept, NodeView, Period
from puhui.gateway.live_feed import LiveFeed
from puhui.node.by_hand import REASONS, put_back, take_out
from puhui.node.expert import Expert
from puhui.node.node import Node

PREFIX = "/puhui/v1"
MOST_DISAGREEMENTS = 200


def node_api_routes(
    node: Node,
    feed: LiveFeed,
    *,
    models: Sequence[str] = (),
    is_admin: Callable[[str], bool] = lambda _: False,
    learns: bool = True,
) -> list[Route]:
    """The routes of the node's own API, for `build_app`.

    `models` are the names that a request may give, `is_admin` says of a key's id whether it may read everybody's text,
    `learns` whether this node learns experts.
    """
    api = NodeApi(node, feed, models, is_admin, learns)
    routes = (
        ("/status", api.status, "GET"),
        ("/bill", api.bill, "GET"),
        ("/experts", api.experts, "GET"),
        ("/experts/{expert}/disagreements", api.disagreements, "GET"),
        ("/experts/{expert}/promote", api.promote, "POST"),
        ("/experts/{expert}/demote", api.demote, "POST"),
        ("/live", api.live, "GET"),
    )
    return [Route(PREFIX + path, endpoint, methods=[method]) for path, endpoint, method in routes]


class NodeApi:
    """The endpoints."""

    def __init__(
        self, node: Node, feed: LiveFeed, models: Sequence[str], is_admin: Callable[[str], bool], learns: bool
    ) -> None:
        self._node = node
        self._feed = feed
        self._models = tuple(models)
        self._is_admin = is_admin
        self._learns = learns
        self._began = time.monotonic()
        self._view = NodeView(node.store, node.roster, node.tariff)
        self._bills = {period: Kept(partial(self._view.bill, period)) for period in get_args(Period)}
        self._experts = Kept(self._view.experts)

    async def status(self, _: HttpRequest) -> Response:
        """How the node is, in a few numbers."""
        return _json(
            {
                "up_s": time.monotonic() - self._began,
                "models": self._models,
                "experts": len(self._node.roster.experts),
                "audits_due": self._node.audits_due,
                "watchers": self._feed.watchers,
                "delta": self._node.roster.delta,
                "currency": self._node.tariff.currency,
            }
        )

    async def bill(self, http: HttpRequest) -> Response:
        """The bill of a period: `?period=hour`, `today`, `week`, `month` or `all`."""
        period = http.query_params.get("period", "week")
        if period not in self._bills:
            allowed = ", ".join(self._bills)
            raise InvalidRequest(f"'period' is {period[:40]!r}; it may be {allowed}", param="period")
        return _json(await self._bills[period].get())

    async def experts(self, _: HttpRequest) -> Response:
        """Each task with its experts, their evidence and what came to pass; and how far learning is elsewhere."""
        return _json(await self._experts.get() | {"audits_due": self._node.audits_due, "learns": self._learns})

    async def disagreements(self, http: HttpRequest) -> Response:
        """Requests whose audit did not agree with the expert, the latest first: `?limit=` 1 to 200."""
        given = http.query_params.get("limit", "50")
        if not given.isascii() or not given.isdigit() or not 1 <= int(given[:9]) <= MOST_DISAGREEMENTS:
            raise InvalidRequest(f"'limit' is {given[:40]!r}; it may be 1 to {MOST_DISAGREEMENTS}", param="limit")
        expert, key = http.path_params["expert"], _caller(http).key
        own = key if key and not self._is_admin(key) else None
        await self._experts.get()  # reads what is new into the evidence
        found = await asyncio.to_thread(self._view.evidence.disagreements, expert, most=int(given), key=own)
        return _json({"expert": expert, "disagreements": [one._asdict() for one in found]})

    async def promote(self, http: HttpRequest) -> Response:
        """Puts an earlier expert back; 409 where the promise would not cover it."""
        expert = http.path_params["expert"]
        reason = await asyncio.to_thread(put_back, self._node.store, self._node.roster, expert, _who(http))
        if reason is not None:
            raise HTTPException(409, f"expert {expert[:12]} is not put in place: {REASONS[reason]}")
        return await self._changed(expert)

    async def demote(self, http: HttpRequest) -> Response:
        """Takes an expert out; it answers nobody from this moment on. 409 if it is not in place."""
        expert, before = http.path_params["expert"], self._node.roster.experts
        taken = self._node.roster.take(expert)
        try:
            done = await asyncio.to_thread(take_out, self._node.store, expert, _who(http))
        except StoreError:
            if taken is not None:
                self._node.roster.let_back(expert)  # the store still says that it is in place
            raise
        if not done:
            raise HTTPException(409, f"expert {expert[:12]} is not in place")
        return await self._changed(expert, before)

    async def live(self, _: HttpRequest) -> Response:
        """Requests as they flow, as server-sent events."""
        return self._feed.watch()

    async def _changed(self, expert: str, before: Iterable[Expert] | None = None) -> Response:
        """What is in place now; the node looks at once instead of half a second later."""
        await self._node.read_roster(before)
        self._experts.forget()
        return _json({"expert": expert, "in_place": self._node.roster.get(expert) is not None})


def _caller(http: HttpRequest) -> Caller:
    found = http.scope.get("state", {}).get("caller")
    return found if isinstance(found, Caller) else Caller()


def _who(http: HttpRequest) -> str:
    return _caller(http).key or "no key"


def _json(content: object) -> Response:
    return Response(
        msgspec.json.encode(content), headers={"cache-control": "no-store", **ALWAYS}, media_type="application/json"
    )
