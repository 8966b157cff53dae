"""Nodes with keys, for tests: real servers, and keys made as `puhui keys new` makes them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from puhui.core.settings import Tariff
from puhui.gateway.admin import row_of
from puhui.gateway.server import ServeSettings, node_app
from puhui.store.database import Store, open_store, sqlite_url
from puhui.store.key_table import KeyTable
from puhui.trust.api_keys import new_key, read_rules
from serving import BigModel, serving

TARIFF = Tariff(price_in=1000.0, price_out=1000.0)  # 14 tokens of `BigModel` cost 0.014


class Keyed(NamedTuple):
    """A node that runs, and the store beneath it as another process would open it."""

    url: str
    store: Store
    http: httpx.Client

    def key(self, name: str = "a key", expires: float | None = None, **rules: Any) -> tuple[str, str]:
        """Makes a key beside the node; gives it and its id."""
        shown, key = new_key(name, read_rules(rules), expires=expires)
        KeyTable(self.store).add(row_of(key))
        return shown, key.id

    def chat(self, key: str | None = None, text: str = "hi", **more: Any) -> httpx.Response:
        """Asks with that key."""
        body = {"model": "m", "messages": [{"role": "user", "content": text}]} | more
        return self.http.post("/v1/chat/completions", json=body, headers=bearer(key))


def bearer(key: str | None) -> dict[str, str]:
    """The header that shows a key."""
    return {} if key is None else {"authorization": f"Bearer {key}"}


@contextlib.contextmanager
def keyed_and_big(folder: Path, **more: Any) -> Iterator[tuple[Keyed, BigModel]]:
    """A node in front of a big model of its own, for tests that share one."""
    big = BigModel()
    with serving(big.app) as url, keyed(folder, f"{url}/v1", **more) as node:
        yield node, big


@contextlib.contextmanager
def keyed(folder: Path, upstream: str, **more: Any) -> Iterator[Keyed]:
    """A node in front of `upstream`."""
    settings = ServeSettings(
        upstream=upstream,
        store=sqlite_url(folder / "puhui.db"),
        folder=folder,
        learn=False,
        tariff=TARIFF,
        **({"access_log": False} | more),
    )
    store = open_store(settings.store)
    with serving(node_app(settings)) as url, httpx.Client(base_url=url, timeout=20.0, trust_env=False) as http:
        yield Keyed(url, store, http)
    store.close()
