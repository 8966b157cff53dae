"""Putting a node together and serving it: store, experts, learning process, HTTP."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import uvicorn
from starlette.applications import Starlette

from puhui.core.errors import SettingsError
from puhui.core.settings import AuditRate, Promise, Tariff
from puhui.evolve.process import LearnerProcess, LearnerSettings
from puhui.gateway.app import build_app
from puhui.gateway.device import device_routes
from puhui.models.endpoint import Endpoint, open_reference
from puhui.node.node import Node
from puhui.node.roster import Roster
from puhui.store.database import open_store
from puhui.trust.keys import load_or_create_key


class ServeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that `puhui serve` can be told. `folder` holds bundles and keys, `store` is a database URL."""

    upstream: str
    store: str
    folder: Path
    upstream_key: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    allow_open: bool = False
    timeout_s: float = 120.0
    durable: bool = False
    learn: bool = True
    logprobs: bool = True
    promise: Promise = Promise()
    tariff: Tariff = Tariff()
    audit_rate: AuditRate = AuditRate()
    log_level: str = "INFO"

    @property
    def bundles(self) -> Path:
        """Where experts' bundles lie."""
        return self.folder / "experts"

    @property
    def key(self) -> Path:
        """The node's signing key."""
        return self.folder / "keys" / "node.key"


def node_app(settings: ServeSettings) -> Starlette:
    """The node as an ASGI application. Opens the store at once, so that a bad one is an error here."""
    endpoint = open_reference(settings.upstream, key=settings.upstream_key, timeout_s=settings.timeout_s)
    store = open_store(settings.store, durable=settings.durable)
    key = load_or_create_key(settings.key)
    node = Node(
        store,
        endpoint,
        Roster(store, {key.public}, delta=settings.promise.delta),
        tariff=settings.tariff,
        audit_rate=settings.audit_rate,
        logprobs=settings.logprobs,
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        learner = LearnerProcess(_learner_settings(settings)) if settings.learn else contextlib.nullcontext()
        try:
            async with node:
                with learner:
                    yield
        finally:
            await endpoint.close()
            store.close()

    models = () if endpoint.model is None else (endpoint.model, "puhui")
    routes = device_routes(store, node.roster)
    return build_app(node, models=models, state=lambda: _state(node, endpoint), lifespan=lifespan, more_routes=routes)


def run_app(app: Starlette, host: str, port: int) -> None:
    """Serves until SIGINT or SIGTERM, then finishes what is under way. Raises `SettingsError` for a taken port."""
    try:
        listening = socket.create_server((host, port), family=_family(host), backlog=2048)
    except OSError as error:
        raise SettingsError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; give another --port"
        ) from error
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=10,
    )
    with listening:
        uvicorn.Server(config).run(sockets=[listening])


def serve(settings: ServeSettings) -> None:
    """Runs a node until it is told to end."""
    if not settings.allow_open and not _is_loopback(settings.host):
        raise SettingsError(
            f"--host {settings.host} can be reached from elsewhere and Puhui has no keys yet: anyone there could "
            "spend your big model's money; serve on 127.0.0.1, or say --allow-open"
        )
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(name)s %(message)s")
    run_app(node_app(settings), settings.host, settings.port)


def _learner_settings(settings: ServeSettings) -> LearnerSettings:
    return LearnerSettings(
        settings.store,
        str(settings.bundles),
        str(settings.key),
        settings.promise,
        settings.tariff,
        settings.audit_rate,
        settings.log_level,
    )


def _state(node: Node, endpoint: Endpoint) -> dict[str, Any]:
    """What GET /puhui/state shows: the experts in place and the evidence against them."""
    return {
        "upstream": endpoint.url,
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


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
