"""Putting a node together and serving it: store, experts, learning process, HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Route

from puhui.core.errors import SettingsError
from puhui.core.log_lines import LogFormat, set_up_logging
from puhui.core.settings import AuditRate, Privacy, Promise, Tariff
from puhui.evolve.process import LearnerProcess, LearnerSettings
from puhui.gateway.admin import key_routes
from puhui.gateway.admission import MOST_AT_ONCE, Gate, add_gate
from puhui.gateway.allowance import Allowances
from puhui.gateway.app import build_app
from puhui.gateway.bodies import MOST_BODY_MB
from puhui.gateway.connections import KEEP_ALIVE_S, BoundedProtocol, BoundedServer, allow_many_files
from puhui.gateway.device import device_routes
from puhui.gateway.door import add_door, check_address, read_origin
from puhui.gateway.instruments import Instruments
from puhui.gateway.key_ring import KeyRing
from puhui.gateway.live_feed import LiveFeed
from puhui.gateway.node_api import node_api_routes
from puhui.gateway.traces import forget_routes
from puhui.node.node import Node
from puhui.node.roster import Roster
from puhui.store.database import Store, open_store
from puhui.store.key_table import KeyTable
from puhui.trust.keys import load_or_create_key
from puhui.upstreams.pool import Pool
from puhui.upstreams.upstream_settings import UpstreamSettings

STOP_WITHIN_S = 10
"""From the signal to the end, for what is under way."""
BROKEN_OFF_AT = 0.8
"""Of that time: what the big model still says is broken off, so that its reader is told and its row is true."""
COLLECT_AFTER = (5_000, 20, 20)
"""Of Python's collector of cycles, by generation; it took 8 % of a node's time as it comes (700, 10, 10)."""


class ServeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that `puhui serve` can be told. `folder` holds bundles and keys, `store` is a database URL.

    The big models are `upstreams`; `upstream`, a reference, is a short way of saying one.
    """

    upstream: str = ""
    upstreams: tuple[UpstreamSettings, ...] = ()
    store: str
    folder: Path
    host: str = "127.0.0.1"
    port: int = 8000
    allow_open: bool = False
    keys_required: bool = False
    allow_origins: tuple[str, ...] = ()
    durable: bool = False
    learn: bool = True
    logprobs: bool = True
    promise: Promise = Promise()
    tariff: Tariff = Tariff()
    audit_rate: AuditRate = AuditRate()
    privacy: Privacy = Privacy()
    log_level: str = "INFO"
    log_format: LogFormat = "text"
    access_log: bool = True
    otlp_endpoint: str | None = None
    most_at_once: int = MOST_AT_ONCE
    max_body_mb: int = MOST_BODY_MB
    stop_within_s: int = STOP_WITHIN_S

    @property
    def big_models(self) -> tuple[UpstreamSettings, ...]:
        """The big models, however they were said."""
        return (UpstreamSettings(ref=self.upstream), *self.upstreams) if self.upstream else self.upstreams

    @property
    def bundles(self) -> Path:
        """Where experts' bundles lie."""
        return self.folder / "experts"

    @property
    def key(self) -> Path:
        """The node's signing key."""
        return self.folder / "keys" / "node.key"


def node_app(settings: ServeSettings, *, more_routes: Sequence[Route] = ()) -> Starlette:
    """The node as an ASGI application. Opens the store at once, so that a bad one is an error here.

    `more_routes` are pages that hold no data: they need no key.
    """
    pool = Pool(settings.big_models, tariff=settings.tariff)
    store = open_store(settings.store, durable=settings.durable)
    table = KeyTable(store)
    ring, allowances = KeyRing(table), Allowances(table)
    check_address(settings.host, ring, required=settings.keys_required, allow_open=settings.allow_open)
    roster = Roster(store, {load_or_create_key(settings.key).public}, promise=settings.promise)
    feed = LiveFeed(roster.name_of)
    gate = Gate(settings.most_at_once, origins=[read_origin(each) for each in settings.allow_origins])
    instruments = _instruments(settings, store, pool, gate)
    node = Node(
        store,
        instruments.around_big(pool),
        roster,
        tariff=settings.tariff,
        audit_rate=settings.audit_rate,
        logprobs=settings.logprobs,
        privacy=settings.privacy,
        observers=(allowances.observe, feed, *instruments.observers),
        forward=instruments.around_forward(pool.forward),
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        learner = LearnerProcess(_learner_settings(settings)) if settings.learn else contextlib.nullcontext()
        try:
            async with instruments.at_work(), node, ring:
                with learner:
                    yield
        finally:
            await pool.close()
            store.close()

    own = _own_routes(settings, node, feed, ring, allowances, pool)
    app = build_app(
        instruments.around_node(node),
        models=pool.models,
        state=lambda: _state(node, pool),
        lifespan=lifespan,
        more_routes=[*own, *instruments.routes(node), *more_routes],
        forward=node.forward,
        max_body_mb=settings.max_body_mb,
    )
    add_door(
        app,
        ring,
        allowances,
        required=settings.keys_required,
        open_to_all=settings.allow_open,
        origins=settings.allow_origins,
        open_paths={route.path for route in more_routes},
    )
    add_gate(app, gate)
    instruments.surround(app)
    app.state.ending = feed.close
    app.state.break_off = pool.stop
    return app


def _own_routes(
    settings: ServeSettings, node: Node, feed: LiveFeed, ring: KeyRing, allowances: Allowances, pool: Pool
) -> list[Route]:
    """What a node has beside OpenAI's API."""
    api = node_api_routes(node, feed, models=pool.models, is_admin=ring.is_admin, learns=settings.learn)
    page = device_routes(node.store, node.roster, learns=settings.learn)
    return [*page, *key_routes(ring, allowances), *api, *forget_routes(node.store)]


def run_app(
    app: Starlette,
    host: str,
    port: int,
    *,
    ready: Callable[[], None] = lambda: None,
    stop_within_s: int = STOP_WITHIN_S,
) -> None:
    """Serves until SIGINT or SIGTERM, then finishes what is under way. Raises `SettingsError` for a taken port.

    `ready` is called when it listens. What is not finished in `stop_within_s` seconds is broken off, a little before.
    """
    try:
        listening = socket.create_server((host, port), family=_family(host), backlog=2048)
    except OSError as error:
        raise SettingsError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; give another --port"
        ) from error
    allow_many_files()
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=stop_within_s,
        timeout_keep_alive=KEEP_ALIVE_S,
        http=BoundedProtocol,
    )
    ready()
    with listening:
        _Server(config).run(sockets=[listening])


class _Server(BoundedServer):
    """Tells the application first that it is to end: streams that have no end of their own would hold it up, and those
    of big models may take longer than there is time."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """What is there by now stays: looking through all of it for garbage held up requests for 0.15 s at a time."""
        await super().startup(sockets)
        gc.collect()
        gc.freeze()
        gc.set_threshold(*COLLECT_AFTER)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        state = getattr(self.config.app, "state", None)
        getattr(state, "ending", lambda: None)()
        breaking_off = asyncio.ensure_future(self._break_off(getattr(state, "break_off", None)))
        await super().shutdown(sockets)
        breaking_off.cancel()

    async def _break_off(self, break_off: Callable[[], Awaitable[None]] | None) -> None:
        if break_off is not None:
            await asyncio.sleep(BROKEN_OFF_AT * (self.config.timeout_graceful_shutdown or 0))
            await break_off()


def serve(
    settings: ServeSettings, *, more_routes: Sequence[Route] = (), ready: Callable[[], None] = lambda: None
) -> None:
    """Runs a node until it is told to end. `more_routes` are pages, as for `node_app`, `ready` as for `run_app`."""
    set_up_logging(settings.log_format, settings.log_level)
    app = node_app(settings, more_routes=more_routes)
    run_app(app, settings.host, settings.port, ready=ready, stop_within_s=settings.stop_within_s)


def _learner_settings(settings: ServeSettings) -> LearnerSettings:
    return LearnerSettings(
        settings.store,
        str(settings.bundles),
        str(settings.key),
        settings.promise,
        settings.tariff,
        settings.audit_rate,
        settings.log_level,
        settings.log_format,
    )


def _instruments(settings: ServeSettings, store: Store, pool: Pool, gate: Gate) -> Instruments:
    return Instruments(
        store,
        pool.state,
        refused=lambda: gate.refused,
        currency=settings.tariff.currency,
        log_format=settings.log_format if settings.access_log else None,
        otlp_endpoint=settings.otlp_endpoint,
    )


def _state(node: Node, pool: Pool) -> dict[str, Any]:
    """What GET /puhui/state shows: the upstreams' health, the experts in place and the evidence against them."""
    return {
        "upstreams": pool.state(),
        "audits_due": node.audits_due,
        "experts": [
            {
                "id": expert.id,
                "task": expert.task.name,
                "threshold": expert.threshold,
                "served": expert.served,
                "audited": expert.watch.observations,
                "losses": expert.watch.losses,
                "evidence": expert.watch.evidence,
                "epsilon": expert.watch.epsilon,
            }
            for expert in node.roster.experts
        ],
    }


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
