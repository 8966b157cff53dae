"""Probes of a whole node, well and ill."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import yaml
from instrumented import put_expert_in_place, staged

from puhui.core.errors import StoreError
from puhui.gateway import health
from puhui.gateway.health import Readiness, Verdict, journal_moves, somebody_answers, store_is_writable
from puhui.store.database import Store
from serving import BigModel, wait_until

NOWHERE = "openai:big@http://127.0.0.1:9/v1"
MANIFEST = Path(__file__).parents[2] / "examples" / "gateway" / "kubernetes.yaml"


def test_a_node_that_is_well(store: Store, big: BigModel, tmp_path: Path) -> None:
    with staged(store, tmp_path, big.url) as stage:
        assert stage.http.get("/healthz").json() == {"status": "ok"}
        reply = stage.http.get("/readyz")
    assert (reply.status_code, reply.headers["cache-control"]) == (200, "no-store")
    assert reply.json()["status"] == "ready"
    assert {name: check["ok"] for name, check in reply.json()["checks"].items()} == {
        "store": True,
        "journal": True,
        "answers": True,
    }


def test_without_an_upstream_it_is_ready_only_while_an_expert_is_in_place(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "REMEMBER_S", 0.0)
    with staged(store, tmp_path, NOWHERE) as stage:
        assert stage.http.get("/readyz").status_code == 200
        for _ in range(6):
            stage.ask("hello", model="big")
        reply = stage.http.get("/readyz")
        assert reply.status_code == 503
        assert reply.json()["checks"]["answers"] == {"ok": False, "detail": "0 usable upstreams, 0 experts in place"}
        assert stage.http.get("/healthz").status_code == 200
        put_expert_in_place(store, tmp_path)
        wait_until(lambda: stage.node.roster.experts)
        assert stage.http.get("/readyz").status_code == 200


def test_a_store_that_another_process_holds(
    store: Store, big: BigModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "REMEMBER_S", 0.0)
    monkeypatch.setattr(health, "PATIENCE_S", 0.3)
    with staged(store, tmp_path, big.url) as stage:
        other = sqlite3.connect(tmp_path / "puhui.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        reply = stage.http.get("/readyz")
        assert reply.status_code == 503
        assert reply.json()["checks"]["store"] == {"ok": False, "detail": "no result within 0.3 s"}
        other.rollback()
        other.close()
        wait_until(lambda: stage.http.get("/readyz").status_code == 200)


async def test_a_store_that_takes_no_writes(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    check = store_is_writable(store)
    assert await check() == Verdict(True, "takes writes")
    with store.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER refuse BEFORE UPDATE ON about BEGIN SELECT RAISE(ABORT, 'the disk is full'); END"
        )
    verdict = await check()
    assert not verdict.ok
    assert verdict.detail == "takes no writes; see the log"
    assert "the disk is full" in caplog.text


async def test_a_journal_that_fails() -> None:
    async def settle() -> None:
        raise StoreError("it is closed")

    assert await journal_moves(settle)() == Verdict(False, "commits nothing; see the log")


async def test_verdicts_are_remembered_and_each_check_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "PATIENCE_S", 0.05)
    made = 0

    async def quick() -> Verdict:
        nonlocal made
        made += 1
        return Verdict(True, "fine")

    async def stuck() -> Verdict:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    checks: dict[str, Callable[[], Awaitable[Verdict]]] = {"quick": quick, "stuck": stuck}
    readiness = Readiness(checks)
    verdicts, again = await asyncio.gather(readiness.verdicts(), readiness.verdicts())
    assert verdicts == again == {"quick": Verdict(True, "fine"), "stuck": Verdict(False, "no result within 0.05 s")}
    assert made == 1


@pytest.mark.parametrize(("upstreams", "experts", "ok"), [(0, 0, False), (1, 0, True), (0, 1, True), (2, 3, True)])
async def test_who_answers(upstreams: int, experts: int, ok: bool) -> None:
    assert (await somebody_answers(lambda: upstreams, lambda: experts)()).ok is ok


def test_the_example_for_kubernetes_probes_what_there_is(store: Store, big: BigModel, tmp_path: Path) -> None:
    documents = list(yaml.safe_load_all(MANIFEST.read_text()))
    assert [document["kind"] for document in documents] == ["PersistentVolumeClaim", "Deployment", "Service"]
    deployment = documents[1]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    paths = [container[probe]["httpGet"]["path"] for probe in ("livenessProbe", "readinessProbe", "startupProbe")]
    with staged(store, tmp_path, big.url) as stage:
        for path in {*paths, deployment["spec"]["template"]["metadata"]["annotations"]["prometheus.io/path"]}:
            assert stage.http.get(path).status_code == 200
    assert container["readinessProbe"]["timeoutSeconds"] > health.PATIENCE_S
    assert deployment["spec"]["replicas"] == 1
