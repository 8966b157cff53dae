"""The node's own API against a running node with real traffic."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from sqlalchemy import insert, select, update

from paged_node import ODD, Paged, paged_node
from puhui.node.bill import draw_up
from puhui.store.records import event_row
from puhui.store.tables import experience, experts, ledger, tasks
from serving import wait_until

API = "/puhui/v1"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Paged]:
    with paged_node(tmp_path_factory.mktemp("node")) as running:
        yield running


@pytest.fixture
def own_node(tmp_path: Path) -> Iterator[Paged]:
    with paged_node(tmp_path, requests=12) as running:
        yield running


def task_of(node: Paged) -> dict[str, Any]:
    (task,) = node.http.get(f"{API}/experts").json()["tasks"]
    return task  # type: ignore[no-any-return]


def fresh(node: Paged, true: Any) -> None:
    """Waits until a reading that is kept for a second says so."""
    wait_until(lambda: true(task_of(node)))


def test_the_bill_is_that_of_the_command(node: Paged) -> None:
    found = node.http.get(f"{API}/bill?period=all").json()
    drawn = draw_up(node.store, "task", currency="USD", now=time.time()).as_dict()
    for name in ("requests", "by_expert", "failed", "audits", "share_by_expert", "proven_risk", "epsilon"):
        assert found["total"][name] == drawn["total"][name], name
    for name in ("kwh", "co2_g", "cost", "big_kwh", "big_co2_g", "big_cost"):
        assert found["total"][name] == pytest.approx(drawn["total"][name]), name
    assert [line["name"] for line in found["by_task"]] == [line["name"] for line in drawn["lines"]]
    assert found["total"]["by_expert"] > 40
    assert sum(found["parts"].values()) == pytest.approx(found["total"]["energy"]["joules"])
    assert sum(line["requests"] for line in found["by_time"]) == found["total"]["requests"]
    assert (found["currency"], found["delta"]) == ("USD", 0.05)


@pytest.mark.parametrize("period", ["hour", "today", "week", "month"])
def test_each_period(node: Paged, period: str) -> None:
    found = node.http.get(f"{API}/bill?period={period}").json()
    assert found["total"]["requests"] >= 59  # midnight may have come meanwhile
    assert found["since"] <= time.time()
    assert all(line["name"].startswith("20") for line in found["by_time"])


def test_what_is_not_known_is_refused(node: Paged) -> None:
    for path, param in (("bill?period=year", "period"), (f"experts/{node.expert}/disagreements?limit=0", "limit")):
        error = node.http.get(f"{API}/{path}")
        assert (error.status_code, error.json()["error"]["param"]) == (400, param)
    assert node.http.get(f"{API}/experts/none/disagreements").json()["disagreements"] == []
    for what in ("promote", "demote"):
        assert node.http.post(f"{API}/experts/none/{what}").status_code == 404
        assert node.http.get(f"{API}/experts/{node.expert}/{what}").status_code == 405


def test_the_experts_as_they_are(node: Paged) -> None:
    task = task_of(node)
    placed, earlier = task["versions"]
    assert (placed["id"], placed["status"], placed["why_not"]) == (node.expert, "active", "in_place")
    assert (earlier["id"], earlier["status"], earlier["why_not"]) == (node.earlier, "retired", None)
    assert (placed["family"], placed["labels"], placed["rows"], placed["limit"]) == ("static", 3, 800, 20.0)
    assert task["requests"] == 60
    assert task["audits"] == placed["audited"] > 30
    state = next(one for one in node.http.get("/puhui/state").json()["experts"] if one["id"] == node.expert)
    assert (placed["observations"], placed["losses"]) == (state["audited"], state["losses"])
    assert placed["evidence"] == pytest.approx(state["evidence"])
    observations, at, evidence, losses = placed["points"][-1]
    assert (observations, losses) == (state["audited"], state["losses"])
    assert evidence == pytest.approx(state["evidence"])
    assert abs(at - time.time()) < 300
    assert [event["kind"] for event in task["events"]] == ["promotion", "promotion"]


def test_disagreements_can_be_read(own_node: Paged) -> None:
    for _ in range(12):
        own_node.ask(f"my bank account and cash {ODD}")
    own_node.audited()
    fresh(own_node, lambda task: task["versions"][0]["disagreements"] > 0)
    found = own_node.http.get(f"{API}/experts/{own_node.expert}/disagreements?limit=2").json()["disagreements"]
    assert 1 <= len(found) <= 2
    assert all((row["expert"], row["big"], row["loss"]) == ("money", "something else", 1.0) for row in found)
    assert all(row["input"].endswith(ODD) for row in found)
    with own_node.store.begin() as connection:  # the text is gone, its loss is not
        connection.execute(update(experience).values(input="", loss=1.0))
    assert own_node.http.get(f"{API}/experts/{own_node.expert}/disagreements").json()["disagreements"] == []


def test_taken_out_and_put_back_by_hand(own_node: Paged) -> None:
    node = own_node
    reply = node.http.post(f"{API}/experts/{node.expert}/demote")
    assert reply.json() == {"expert": node.expert, "in_place": False}
    assert node.ask("my bank account and cash").json()["puhui"]["by"].startswith("big:")
    assert node.http.post(f"{API}/experts/{node.expert}/demote").status_code == 409
    reply = node.http.post(f"{API}/experts/{node.earlier}/promote")
    assert reply.json() == {"expert": node.earlier, "in_place": True}
    assert node.ask("my bank account and cash").json()["puhui"]["by"] == f"expert:{node.earlier[:12]}"
    # Back again: its watch goes on from what it has seen.
    seen = next(v for v in task_of(node)["versions"] if v["id"] == node.expert)["observations"]
    assert node.http.post(f"{API}/experts/{node.expert}/promote").json()["in_place"]
    (state,) = node.http.get("/puhui/state").json()["experts"]
    assert (state["id"], state["audited"]) == (node.expert, seen)
    with node.store.begin() as connection:
        rows = connection.execute(select(ledger).where(ledger.c.note.startswith("by hand"))).all()
        closed = connection.execute(select(tasks.c.state)).scalar_one()["closed_at"]
        last = connection.execute(select(experience.c.number).order_by(experience.c.number.desc())).scalars().first()
    assert [row.kind for row in rows] == ["retirement", "promotion", "promotion"]
    assert closed == last


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"status": "demoted"}, "proven broken"),
        ({"status": "refused"}, "did not verify"),
        ({"stale": "rows were forgotten"}, "had to be forgotten"),
    ],
)
def test_what_is_not_proven_is_not_put_back(own_node: Paged, change: dict[str, str], words: str) -> None:
    with own_node.store.begin() as connection:
        connection.execute(update(experts).where(experts.c.id == own_node.earlier).values(**change))
    error = own_node.http.post(f"{API}/experts/{own_node.earlier}/promote")
    assert error.status_code == 409
    assert words in error.json()["error"]["message"]
    assert own_node.http.get("/puhui/state").json()["experts"][0]["id"] == own_node.expert


def test_nor_one_from_before_a_demotion_nor_a_damaged_one(own_node: Paged) -> None:
    with own_node.store.begin() as connection:
        folder = connection.execute(select(experts.c.folder).where(experts.c.id == own_node.earlier)).scalar_one()
    weights = Path(folder) / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    error = own_node.http.post(f"{API}/experts/{own_node.earlier}/promote")
    assert (error.status_code, "does not verify" in error.text) == (409, True)
    with own_node.store.begin() as connection:
        values = {"status": "demoted", "ended": time.time()}
        connection.execute(update(experts).where(experts.c.id == own_node.expert).values(**values))
    error = own_node.http.post(f"{API}/experts/{own_node.earlier}/promote")
    assert (error.status_code, "was demoted since" in error.text) == (409, True)


@contextlib.contextmanager
def watching(node: Paged, found: list[dict[str, Any]], **more: Any) -> Iterator[None]:
    """Reads the live stream in a thread, and keeps its events."""
    stop, ready = threading.Event(), threading.Event()

    def read() -> None:
        with (
            httpx.Client(base_url=node.url, timeout=5.0, trust_env=False) as http,
            http.stream("GET", f"{API}/live", **more) as response,
        ):
            assert response.headers["content-type"].startswith("text/event-stream")
            for line in response.iter_lines():
                ready.set()
                if line.startswith("data: "):
                    found.extend(msgspec.json.decode(line[6:])["events"])
                    if stop.is_set():
                        return

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    assert ready.wait(10.0)
    yield
    stop.set()
    node.ask("one more, so that the reader looks")
    thread.join(10.0)


def test_requests_flow_live_and_without_their_text(own_node: Paged) -> None:
    found: list[dict[str, Any]] = []
    secret = "my bank account is 4711 0815"
    with watching(own_node, found):
        reply = own_node.ask(secret).json()
        wait_until(lambda: any(event.get("id") == reply["puhui"]["id"] for event in found))
        own_node.http.post(f"{API}/experts/{own_node.expert}/demote")
        wait_until(lambda: any(event["kind"] == "change" for event in found))
    (event,) = [one for one in found if one.get("id") == reply["puhui"]["id"] and one["kind"] == "request"]
    assert (event["by"], event["name"]) == ("expert", reply["puhui"]["by"])
    assert event["confidence"] == pytest.approx(reply["puhui"]["confidence"])
    assert event["ms"] > 0
    assert event["joules"] > 0
    assert event["task"].startswith("Which subject")
    assert secret not in str(found)
    assert {"request", "audit", "change"} >= {one["kind"] for one in found}
    wait_until(lambda: own_node.http.get(f"{API}/status").json()["watchers"] == 0)


def test_with_keys_each_path_needs_its_scope(own_node: Paged) -> None:
    http = own_node.http

    def make(name: str, scopes: list[str], key: str = "") -> str:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        reply = http.post(f"{API}/keys", json={"name": name, "rules": {"scopes": scopes}}, headers=headers)
        return str(reply.raise_for_status().json()["key"])

    admin = make("admin", ["admin"])
    read, chat = make("read", ["read"], admin), make("chat", ["chat"], admin)

    def status(method: str, path: str, key: str | None) -> int:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return http.request(method, f"{API}/{path}", headers=headers).status_code

    for path in ("bill", "experts", "status", f"experts/{own_node.expert}/disagreements"):
        assert [status("GET", path, key) for key in (None, chat, read, admin)] == [401, 403, 200, 200], path
    demote = f"experts/{own_node.expert}/demote"
    assert [status("POST", demote, key) for key in (None, chat, read, admin)] == [401, 403, 403, 200]
    with own_node.store.begin() as connection:
        note = connection.execute(select(ledger.c.note).where(ledger.c.kind == "retirement")).scalar_one()
    assert note.startswith("by hand (key_")


def test_text_of_others_is_for_administrators(own_node: Paged) -> None:
    for _ in range(12):
        own_node.ask(f"my bank account and cash {ODD}")
    own_node.audited()
    fresh(own_node, lambda task: task["versions"][0]["disagreements"] > 0)
    keys = {}
    for name in ("admin", "read"):
        headers = {"authorization": f"Bearer {keys['admin']}"} if keys else {}
        made = own_node.http.post(f"{API}/keys", json={"name": name, "rules": {"scopes": [name]}}, headers=headers)
        keys[name] = made.json()["key"]
    path = f"{API}/experts/{own_node.expert}/disagreements"
    shown = {
        name: len(own_node.http.get(path, headers={"authorization": f"Bearer {key}"}).json()["disagreements"])
        for name, key in keys.items()
    }
    assert shown["admin"] > 0
    assert shown["read"] == 0


def test_a_large_ledger_is_read_once(own_node: Paged) -> None:
    """What is new is read; what was there is not read again."""
    own_node.http.get(f"{API}/bill?period=week").raise_for_status()
    row = event_row("node", at=time.time() - 60, task=None, expert=None, note="the node's own work")
    rows = [row | {"id": f"node-{number}", "joules": 1.0} for number in range(20_000)]
    with own_node.store.begin() as connection:
        connection.execute(insert(ledger), rows)

    def seconds() -> float:
        started = time.perf_counter()
        found = own_node.http.get(f"{API}/bill?period=week").json()
        took = time.perf_counter() - started
        assert found["parts"]["node"] >= 20_000 or took < 0.5
        return took

    wait_until(lambda: own_node.http.get(f"{API}/bill?period=week").json()["parts"]["node"] >= 20_000)
    assert min(seconds() for _ in range(5)) < 0.1


def test_pages_may_be_read_by_nobody_from_elsewhere(own_node: Paged) -> None:
    reply = own_node.http.post(f"{API}/experts/{own_node.expert}/demote", headers={"origin": "https://evil.example"})
    assert reply.status_code == 403
    reply = own_node.http.get(f"{API}/bill", headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in reply.headers
    assert reply.headers["cache-control"] == "no-store"
