"""The bill against sums worked out row by row."""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import insert

from puhui.core.answer import Energy, Usage
from puhui.node.bill import By, Line, draw_up
from puhui.store.database import Store, open_store, sqlite_url
from puhui.store.records import event_row
from puhui.store.tables import experts, ledger, tasks

DAY = 86400.0
NAMES = {"t1": "mail", "t2": "post"}
AMOUNTS = st.floats(0, 1000).map(lambda value: round(value, 3))


@st.composite
def ledger_rows(draw: st.DrawFn) -> list[dict[str, Any]]:
    rows = []
    for number in range(draw(st.integers(0, 25))):
        kind = draw(st.sampled_from(["request", "request", "request", "audit", "learning", "node"]))
        joules = draw(AMOUNTS)
        usage = Usage(
            seconds=draw(AMOUNTS),
            energy=Energy(joules, joules / 2, joules * 2, draw(st.booleans())),
            co2_g=draw(AMOUNTS),
            cost=draw(AMOUNTS),
        )
        at = DAY * draw(st.integers(20_000, 20_003)) + draw(st.floats(0, DAY - 1))
        task = draw(st.sampled_from([None, "t1", "t2", "unknown"]))
        expert = draw(st.sampled_from([None, "e1"])) if kind == "request" else None
        row = event_row(kind, at=at, task=task, expert=expert, note="", usage=usage, id=f"r{number}")
        model = "" if kind in ("learning", "node") else draw(st.sampled_from(["m", "n"]))
        rows.append(row | {"model": model, "status": draw(st.sampled_from([200, 200, 200, 429, 502]))})
    return rows


def fill(store: Store, rows: list[dict[str, Any]]) -> None:
    with store.begin() as connection:
        for id, name in NAMES.items():
            row = {"id": id, "name": name, "group": id, "model": "m", "created": 0.0, "state": {}}
            connection.execute(insert(tasks), row | {"prefix": "", "suffix": ""})
        if rows:
            connection.execute(insert(ledger), rows)


def name_of(row: dict[str, Any], by: By) -> str:
    day = datetime.datetime.fromtimestamp(row["at"], datetime.UTC).date().isoformat()
    task = NAMES.get(row["task"], "(no task)")
    return {"day": day, "task": task, "model": row["model"] or "(none)", "total": "total"}[by]


def answered(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["kind"] == "request" and row["status"] == 200]


def typical_joules(rows: list[dict[str, Any]], row: dict[str, Any]) -> float:
    """Joules of the big model's answers to the same task, else of all by that model, on average."""
    big = [r for r in rows if r["kind"] in ("request", "audit") and r["status"] == 200 and not r["expert"]]
    same = [r for r in big if (r["task"], r["model"]) == (row["task"], row["model"])]
    chosen = same or [r for r in big if r["model"] == row["model"]]
    return sum(r["joules"] for r in chosen) / len(chosen) if chosen else 0.0


def check(line: Line, rows: list[dict[str, Any]], everything: list[dict[str, Any]]) -> None:
    good = answered(rows)
    assert line.requests == len(good)
    assert line.by_expert == sum(row["expert"] is not None for row in good)
    assert line.failed == sum(row["kind"] == "request" and row["status"] != 200 for row in rows)
    assert line.audits == sum(row["kind"] == "audit" for row in rows)
    for value, column in (
        (line.energy.joules, "joules"),
        (line.energy.low, "joules_low"),
        (line.energy.high, "joules_high"),
    ):
        assert value == pytest.approx(sum(row[column] for row in rows))
    assert line.co2_g == pytest.approx(sum(row["co2_g"] for row in rows))
    assert line.cost == pytest.approx(sum(row["cost"] for row in rows))
    assert line.seconds == pytest.approx(sum(row["seconds"] for row in good))
    alone = sum(typical_joules(everything, row) if row["expert"] else row["joules"] for row in good)
    assert line.big_energy.joules == pytest.approx(alone)
    if any(row["joules_high"] and not row["measured"] for row in rows):
        assert not line.energy.measured


@settings(max_examples=35)
@given(ledger_rows(), st.sampled_from(["day", "task", "model", "total"]), st.none() | st.integers(20_000, 20_003))
def test_every_line_is_the_sum_of_its_rows(rows: list[dict[str, Any]], by: By, since_day: int | None) -> None:
    since = None if since_day is None else since_day * DAY
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(sqlite_url(Path(folder) / "a.db"))
        fill(store, rows)
        bill = draw_up(store, by, currency="EUR", since=since, now=5.0)
        store.close()
    counted = [row for row in rows if since is None or row["at"] >= since]
    by_name: dict[str, list[dict[str, Any]]] = {}
    for row in counted:
        by_name.setdefault(name_of(row, by), []).append(row)
    assert [line.name for line in bill.lines] == sorted(by_name)
    for line in bill.lines:
        check(line, by_name[line.name], counted)
    check(bill.total, counted, counted)
    assert (bill.currency, bill.since, bill.drawn_up) == ("EUR", since, 5.0)
    shown = msgspec.json.decode(msgspec.json.encode(bill.as_dict()))
    assert shown["total"]["requests"] == bill.total.requests
    assert shown["total"]["kwh"] == pytest.approx(bill.total.energy.joules / 3.6e6)
    assert 0.0 <= shown["total"]["share_by_expert"] <= 1.0


def test_an_empty_ledger(store: Store) -> None:
    bill = draw_up(store, "day", currency="USD", now=1.0)
    assert bill.lines == []
    assert bill.total == Line(name="total")
    assert bill.total.share_by_expert == 0.0


def test_the_proven_risk_is_the_greatest_of_a_tasks_experts(store: Store) -> None:
    rows = [
        event_row("request", at=1.0, task=task, expert=expert, note="", id=f"r{number}")
        for number, (task, expert) in enumerate([("t1", "b"), ("t2", "c"), ("t3", None), (None, None)])
    ]
    fill(store, rows)
    usual = {"status": "active", "folder": "", "threshold": 0.5, "coverage": 0.9, "delta": 0.05, "created": 1.0}
    with store.begin() as connection:
        for id, task, risk in (("a", "t1", 0.011), ("b", "t1", 0.017), ("c", "t2", 0.009)):
            connection.execute(insert(experts), usual | {"id": id, "task": task, "risk_bound": risk, "epsilon": 0.02})
        broken = {"id": "d", "task": "t2", "risk_bound": 0.019, "epsilon": 0.02, "status": "demoted"}
        connection.execute(insert(experts), usual | broken)
    lines = {line.name: line for line in draw_up(store, "task", currency="USD", now=1.0).lines}
    assert (lines["mail"].proven_risk, lines["mail"].epsilon) == (0.017, 0.02)
    assert lines["post"].proven_risk == 0.009
    assert lines["(no task)"].proven_risk is None
    assert draw_up(store, "total", currency="USD", now=1.0).total.proven_risk == 0.017
