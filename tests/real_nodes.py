"""A whole node for the tests: as `puhui serve` puts it together, over real HTTP, without the learning process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import select

from puhui.gateway.server import ServeSettings, node_app
from puhui.store.database import open_store, sqlite_url
from puhui.store.tables import experience, ledger
from serving import serving


@contextlib.contextmanager
def real_node(folder: Path, upstream: str, **more: Any) -> Iterator[str]:
    """Serves a node in front of `upstream`; gives its URL."""
    store = sqlite_url(folder / "puhui.db")
    settings = ServeSettings(upstream=upstream, store=store, folder=folder, learn=False, access_log=False, **more)
    with serving(node_app(settings)) as url:
        yield url


def rows(folder: Path, table: str = "ledger") -> list[Any]:
    """What the node's store holds of requests, in order (`ledger` or `experience`)."""
    store = open_store(sqlite_url(folder / "puhui.db"))
    query = select(experience).order_by(experience.c.number)
    if table == "ledger":
        query = select(ledger).where(ledger.c.kind == "request").order_by(ledger.c.number)
    with store.begin() as connection:
        found = list(connection.execute(query))
    store.close()
    return found
