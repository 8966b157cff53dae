"""A whole node behind the whole gateway, for tests of what looks at it from outside."""

from __future__ import annotations

import contextlib
import io
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
from starlette.applications import Starlette

import experts as sample
from puhui.core.settings import AuditRate
from puhui.evolve.traffic import sort_request
from puhui.gateway.app import build_app
from puhui.gateway.chat import read_request
from puhui.gateway.instruments import Instruments
from puhui.node.node import Node
from puhui.node.roster import Roster
from puhui.store.database import Store
from puhui.trust.keys import load_or_create_key
from puhui.upstreams.pool import Pool
from puhui.upstreams.upstream_settings import UpstreamSettings
from serving import serving

SELDOM = AuditRate(1e-9, 1e-9, 1e-9)
ALWAYS = AuditRate(0.9, 1.0, 0.9)


class Stage:
    """The gateway under test, its client, and what it has written."""

    def __init__(self, http: httpx.Client, node: Node, out: io.BytesIO) -> None:
        self.http = http
        self.node = node
        self.out = out

    def ask(self, text: str, **fields: Any) -> httpx.Response:
        """A reply to a request of the task that the sample expert is for."""
        headers = fields.pop("headers", {})
        return self.http.post("/v1/chat/completions", json=body(text, **fields), headers=headers)

    def lines(self) -> list[bytes]:
        """The lines written so far."""
        return self.out.getvalue().splitlines()


def body(text: str, **fields: Any) -> dict[str, Any]:
    """A chat request's body."""
    messages = [{"role": "system", "content": sample.SYSTEM}, {"role": "user", "content": text}]
    return {"model": "m", "messages": messages} | fields


def put_expert_in_place(store: Store, folder: Path) -> str:
    """The sample expert for those requests; its id."""
    traffic = sort_request(read_request(msgspec.json.encode(body("x")), {}))
    assert traffic is not None
    return sample.promote(store, folder, load_or_create_key(folder / "node.key"), traffic.group)[0]


@contextlib.contextmanager
def staged(store: Store, folder: Path, *urls: str, audit_rate: AuditRate = SELDOM, **more: Any) -> Iterator[Stage]:
    """A node in front of the big models at `urls`, instrumented, behind HTTP."""
    out = io.BytesIO()
    pool = Pool([UpstreamSettings(ref=url, retries=0) for url in urls])
    instruments = Instruments(store, pool.state, stream=out, **more)
    roster = Roster(store, {load_or_create_key(folder / "node.key").public})
    node = Node(
        store,
        instruments.around_big(pool),
        roster,
        audit_rate=audit_rate,
        seed=1,
        observers=instruments.observers,
        forward=instruments.around_forward(pool.forward),
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with instruments.at_work(), node:
            yield
        await pool.close()

    app = build_app(
        instruments.around_node(node),
        lifespan=lifespan,
        more_routes=instruments.routes(node),
        forward=node.forward,
    )
    instruments.surround(app)
    with serving(app) as url, httpx.Client(base_url=url, timeout=20.0, trust_env=False) as http:
        yield Stage(http, node, out)
