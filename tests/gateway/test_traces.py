"""Forgetting over HTTP, on a whole node as `puhui serve` puts it together."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from sqlalchemy import select

from puhui.core.settings import Privacy
from puhui.gateway.server import ServeSettings, node_app
from puhui.gateway.traces import seconds_of
from puhui.store.database import open_store, sqlite_url
from puhui.store.tables import experience
from serving import BigModel, serving


def test_a_request_is_forgotten_while_the_node_runs(big: BigModel, tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "puhui.db")
    settings = ServeSettings(
        upstream=big.url,
        store=url,
        folder=tmp_path,
        learn=False,
        access_log=False,
        privacy=Privacy("whole", float("inf")),
    )
    body = {"model": "m", "messages": [{"role": "user", "content": "SECRET of mine"}]}
    with serving(node_app(settings)) as base, httpx.Client(base_url=base) as client:
        first, second = (client.post("/v1/chat/completions", json=body).headers["x-request-id"] for _ in range(2))
        found = client.get("/puhui/v1/traces", params={"request": first}).json()
        assert (found["rows"], found["texts"], found["clean"]) == (1, 1, None)
        taken = client.delete("/puhui/v1/traces", params={"request": first, "now": "true"}).json()
        assert (taken["rows"], taken["ledger_rows"]) == (1, 1)
        assert client.get("/puhui/v1/traces", params={"request": first}).json()["rows"] == 0
        assert client.post("/v1/chat/completions", json=body).status_code == 200
        for wrong in ({}, {"key": "a", "task": "b"}, {"who": "me"}, {"key": ""}, {"key": "k", "now": "yes"}):
            for method in ("GET", "DELETE"):
                refused = client.request(method, "/puhui/v1/traces", params=wrong)
                assert refused.status_code == 400
                assert refused.json()["error"]["type"] == "invalid_request_error"
        assert client.delete("/puhui/v1/traces", params={"before": "soon"}).status_code == 400
        for unknown in ({"task": "none"}, {"key": "none"}):
            for method in ("GET", "DELETE"):
                refused = client.request(method, "/puhui/v1/traces", params=unknown)
                assert (refused.status_code, refused.json()["error"]["code"]) == (404, None)
                assert "'none'" in refused.json()["error"]["message"]
        made = client.post("/puhui/v1/keys", json={"name": "owner", "rules": {"scopes": ["admin"]}}).json()
        headers = {"authorization": f"Bearer {made['key']}"}
        of_key = client.get("/puhui/v1/traces", params={"key": made["id"]}, headers=headers)
        assert (of_key.status_code, of_key.json()["rows"]) == (200, 0)
    store = open_store(url)
    with store.begin() as connection:
        rows = connection.execute(select(experience.c.id, experience.c.input).order_by(experience.c.number)).all()
    store.close()
    assert [tuple(row) for row in rows[:2]] == [("forgotten", ""), (second, "SECRET of mine")]


TIMES = {"1970-01-02": 86_400.0, "1970-01-01T01:00": 3_600.0, "1970-01-01T09:00+08:00": 3_600.0, "7.5": 7.5}


@pytest.mark.parametrize(("given", "seconds"), TIMES.items())
def test_times(given: str, seconds: float) -> None:
    assert seconds_of(given) == seconds
