"""A running node with pages, an expert in place, an earlier one, and real traffic: for tests of its API and pages."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx

import experts as sample
from puhui.dashboard.pages import dashboard_routes
from puhui.evolve.traffic import group_key
from puhui.gateway.server import ServeSettings, node_app
from puhui.store.database import Store, open_store, sqlite_url
from puhui.trust.keys import load_or_create_key
from serving import BigModel, serving, wait_until

GROUP = group_key("m", "", "context", sample.SYSTEM)
ODD = "number 7"
"""What makes the big model say something else than the expert."""


class Paged(NamedTuple):
    """The node: its URL, a client, its store, its settings, and the ids of its experts, the one in place last."""

    url: str
    http: httpx.Client
    store: Store
    settings: ServeSettings
    earlier: str
    expert: str
    big: BigModel

    def ask(self, text: str, **more: object) -> httpx.Response:
        """One request of the experts' task."""
        messages = [{"role": "system", "content": sample.SYSTEM}, {"role": "user", "content": text}]
        headers = more.pop("headers", None)
        body = {"model": "m", "messages": messages, **more}
        return self.http.post("/v1/chat/completions", json=body, headers=headers)  # type: ignore[arg-type]

    def audited(self) -> None:
        """Waits until no audit is due."""
        wait_until(lambda: self.http.get("/puhui/state").json()["audits_due"] == 0)


def says(text: str) -> str:
    """The big model: the subject, but for what is odd."""
    return "something else" if text.endswith(ODD) else sample.subject_of(text)


@contextlib.contextmanager
def paged_node(folder: Path, *, requests: int = 60, **more: object) -> Iterator[Paged]:
    """The node, after so many requests of which one has an answer that the expert does not agree with."""
    big = BigModel(says)
    with serving(big.app) as upstream:
        chosen = ServeSettings(
            upstream=f"{upstream}/v1",
            store=sqlite_url(folder / "puhui.db"),
            folder=folder,
            learn=False,
            access_log=False,
            **more,
        )  # type: ignore[arg-type]
        store = open_store(chosen.store)
        key = load_or_create_key(chosen.key)
        earlier, _, _ = sample.promote(store, chosen.bundles, key, GROUP, threshold=0.6)
        with_other_card = sample.card
        try:
            sample.card = lambda task, **given: with_other_card(task, rows=800, **given)  # type: ignore[assignment]
            expert, _, _ = sample.promote(store, chosen.bundles, key, GROUP)
        finally:
            sample.card = with_other_card
        app = node_app(chosen, more_routes=dashboard_routes())
        with serving(app) as url, httpx.Client(base_url=url, timeout=20.0, trust_env=False) as http:
            node = Paged(url, http, store, chosen, earlier, expert, big)
            for text in sample.questions(requests, seed=5):
                node.ask(text).raise_for_status()
            if requests:
                node.audited()
            yield node
        store.close()
