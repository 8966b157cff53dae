"""GET /metrics, read with Prometheus' own parser."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from instrumented import ALWAYS, Stage, put_expert_in_place, staged
from prometheus_client import parser
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import parser as openmetrics
from sqlalchemy import insert

import experts as sample
from puhui.gateway.metrics import BUCKETS_S, MOST_MODELS, OTHER, LedgerTail, Metrics, Spread, upstream_families
from puhui.store.database import Store
from puhui.store.records import event_row
from puhui.store.tables import ledger
from serving import BigModel, wait_until

NOWHERE = "http://127.0.0.1:9/v1"
DASHBOARD = Path(__file__).parents[2] / "examples" / "gateway" / "grafana.json"


def scraped(stage: Stage) -> dict[str, Metric]:
    reply = stage.http.get("/metrics")
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("text/plain; version=")
    return {family.name: family for family in parser.text_string_to_metric_families(reply.text)}


def value(families: dict[str, Metric], name: str, **labels: str) -> float:
    found = [
        sample.value
        for family in families.values()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    return sum(found)


def test_answers_are_counted_as_the_ledger_has_them(store: Store, big: BigModel, tmp_path: Path) -> None:
    put_expert_in_place(store, tmp_path)
    with staged(store, tmp_path, big.url) as stage:
        replies = [stage.ask(text).json() for text in sample.questions(20)]
        assert stage.http.post("/v1/chat/completions", json={}).status_code == 400
        stage.ask("by all means", headers={"x-puhui-quality": "1"})
        with stage.http.stream(
            "POST",
            "/v1/chat/completions",
            json={"model": "m", "stream": True, "messages": [{"role": "user", "content": "hello"}]},
        ) as stream:
            stream.read()
        now = scraped(stage)
    by_expert = sum(reply["puhui"]["by"].startswith("expert:") for reply in replies)
    assert by_expert >= 15
    assert value(now, "puhui_requests_total", model="m", by="expert", status="200") == by_expert
    assert value(now, "puhui_requests_total", by="big") == 22 - by_expert
    assert value(now, "puhui_http_replies_total", route="/v1/chat/completions", status="200") == 22
    assert value(now, "puhui_http_replies_total", route="/v1/chat/completions", status="400") == 1
    assert value(now, "puhui_request_duration_seconds_count", by="expert") == by_expert
    assert value(now, "puhui_time_to_first_token_seconds_count", by="big") == 1
    assert value(now, "puhui_tokens_total", by="big", type="input") == 11 * (22 - by_expert)
    with store.begin() as connection:
        rows = connection.execute(ledger.select().where(ledger.c.kind == "request")).all()
    for part, wanted in (("expert", True), ("big", False)):
        mine = [row for row in rows if (row.expert is not None) is wanted]
        for bound, column in (("low", "joules_low"), ("typical", "joules"), ("high", "joules_high")):
            total = sum(getattr(row, column) for row in mine)
            assert value(now, "puhui_energy_joules_total", part=part, bound=bound) == pytest.approx(total)
        assert value(now, "puhui_co2_grams_total", part=part) == pytest.approx(sum(row.co2_g for row in mine))
        assert value(now, "puhui_cost_total", part=part) == pytest.approx(sum(row.cost for row in mine))


def test_an_expert_its_audits_and_its_end(store: Store, big: BigModel, tmp_path: Path) -> None:
    expert = put_expert_in_place(store, tmp_path)
    big.rule = sample.subject_of
    with staged(store, tmp_path, big.url, audit_rate=ALWAYS) as stage:
        for text in sample.questions(10, seed=5):
            stage.ask(text)
        wait_until(lambda: not stage.node.audits_due)
        now = scraped(stage)
        labels = {"expert": expert[:12]}
        assert value(now, "puhui_experts") == 1
        assert value(now, "puhui_expert_risk_bound_ratio", **labels) == 0.01
        assert value(now, "puhui_expert_risk_promised_ratio", **labels) == 0.05
        assert value(now, "puhui_expert_coverage_ratio", **labels) == 0.9
        assert value(now, "puhui_expert_seen_requests", **labels) == 10
        assert value(now, "puhui_expert_watched_requests", **labels) == 10
        assert value(now, "puhui_expert_watched_losses", **labels) == 0
        assert value(now, "puhui_expert_evidence_limit", **labels) == 20
        audited = value(now, "puhui_requests_total", by="expert")
        assert value(now, "puhui_audits_total", result="agree") == audited > 0
        assert value(now, "puhui_energy_joules_total", part="audit", bound="typical") > 0
        big.rule = lambda _: "something else"
        for text in sample.questions(40, seed=6):
            stage.ask(text)
        wait_until(lambda: not stage.node.audits_due and not stage.node.roster.experts)
        wait_until(lambda: value(scraped(stage), "puhui_expert_changes_total", kind="demotion") == 1)
        now = scraped(stage)
        assert value(now, "puhui_audits_total", result="disagree") >= 3
        assert value(now, "puhui_experts") == 0
        assert not now["puhui_expert_evidence"].samples


def test_upstreams_that_fail(store: Store, big: BigModel, tmp_path: Path) -> None:
    with staged(store, tmp_path, f"openai:big@{NOWHERE}") as stage:
        for _ in range(6):
            assert stage.ask("hello", model="big").status_code == 503
        now = scraped(stage)
    assert value(now, "puhui_upstream_errors_total", upstream="big@127.0.0.1:9") >= 5
    assert value(now, "puhui_upstream_breaker_open", upstream="big@127.0.0.1:9") == 1
    assert value(now, "puhui_requests_total", by="none", model="big") == 6


def test_no_secret_of_an_upstreams_url_is_shown() -> None:
    state = {"url": "http://me:secret@host:81/v1?key=secret", "model": "b", "breaker": "half-open", "requests": 3}
    families = list(upstream_families([state]))
    assert [(s.labels, s.value) for s in families[0].samples] == [({"upstream": "b@host:81"}, 0.5)]
    assert "secret" not in str(families)


def test_what_the_learning_process_did_is_read_from_the_ledger(store: Store) -> None:
    def note(kind: str) -> None:
        with store.begin() as connection:
            row = event_row(kind, at=1.0, task="t", expert=None, note="")
            connection.execute(insert(ledger), row | {"joules": 2.0, "joules_low": 1.0, "joules_high": 3.0})

    note("learning")
    tail = LedgerTail(store)
    tail.read()
    assert not tail.events
    for kind in ("learning", "learning", "promotion", "node"):
        note(kind)
    tail.read()
    tail.read()
    assert tail.events == {"learning": 2, "promotion": 1, "node": 1}
    assert (tail.spent["learning"].joules_low, tail.spent["node"].joules) == (2.0, 2.0)


def test_a_store_that_cannot_be_read_is_a_metric_and_no_failure(
    store: Store, big: BigModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with staged(store, tmp_path, big.url) as stage:
        with store.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE experts RENAME TO lost")
        assert value(scraped(stage), "puhui_store_readable") == 0
        with store.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE lost RENAME TO experts")
        assert value(scraped(stage), "puhui_store_readable") == 1


def test_openmetrics_for_who_asks_and_any_accept_header(store: Store, big: BigModel, tmp_path: Path) -> None:
    with staged(store, tmp_path, big.url) as stage:
        stage.ask("hello")
        reply = stage.http.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
        assert reply.headers["content-type"].startswith("application/openmetrics-text")
        assert {family.name for family in openmetrics.text_string_to_metric_families(reply.text)} > {"puhui_requests"}
        for odd in ("text/plain; version=x.y", "*/*", "a;b;c=;;", "application/openmetrics-text; version=", "\xff"):
            assert stage.http.get("/metrics", headers=[(b"accept", odd.encode("latin-1"))]).status_code == 200


def test_models_that_callers_make_up_do_not_become_series_without_end(
    store: Store, big: BigModel, tmp_path: Path
) -> None:
    with staged(store, tmp_path, big.url) as stage:
        for number in range(MOST_MODELS + 5):
            stage.ask("hello", model=f'made "up\n\\{number}')
        now = scraped(stage)
    models = {found.labels["model"] for found in now["puhui_requests"].samples}
    assert len(models) == MOST_MODELS + 1
    assert value(now, "puhui_requests_total", model=OTHER) == 5
    assert 'made "up\n\\7' in models


def test_no_label_holds_a_prompt(store: Store, big: BigModel, tmp_path: Path) -> None:
    put_expert_in_place(store, tmp_path)
    with staged(store, tmp_path, big.url) as stage:
        stage.ask("a xylophone in the prompt")
        text = stage.http.get("/metrics").text
    assert "xylophone" not in text
    assert sample.SYSTEM[:20] not in text


@given(st.lists(st.floats(min_value=0.0, max_value=1e4), max_size=200))
@settings(max_examples=50)
def test_a_spread_counts_as_its_definition_says(durations: list[float]) -> None:
    spread = Spread()
    for seconds in durations:
        spread.add(seconds)
    buckets = dict(spread.buckets())
    assert buckets["+Inf"] == len(durations)
    for bound in BUCKETS_S:
        assert buckets[str(bound)] == sum(seconds <= bound for seconds in durations)


def test_the_example_dashboard_uses_only_metrics_that_there_are(store: Store, big: BigModel, tmp_path: Path) -> None:
    put_expert_in_place(store, tmp_path)
    with staged(store, tmp_path, big.url) as stage:
        stage.ask("hello")
        now = scraped(stage)
    there = {found.name for family in now.values() for found in family.samples}
    declared = there | {f"{family.name}_total" for family in now.values() if family.type == "counter"}
    declared |= {family.name for family in now.values()}
    declared |= {
        f"{f.name}_{part}" for f in now.values() if f.type == "histogram" for part in ("bucket", "sum", "count")
    }
    used = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", ()):
            used |= names_in(target["expr"])
    assert len(used) > 15
    assert used <= declared


def names_in(expression: str) -> set[str]:
    """The metrics of a PromQL expression: all of ours begin with `puhui_`, the process's with `process_`."""
    return set(re.findall(r"\b(?:puhui|process)_[a-z0-9_]+", expression))


def test_it_is_cheap_to_be_told(store: Store) -> None:
    """Counts the calls of Python functions, which a noisy machine does not change."""
    metrics = Metrics(store)
    from puhui.core.answer import Answer, Energy, Usage
    from puhui.core.request import Message, Request
    from puhui.node.observer import Served

    request = Request(id="r", model="m", messages=(Message("user", "x"),), body=b"{}")
    answer = Answer(by="big:m", text="y", usage=Usage(prompt_tokens=3, energy=Energy(1.0, 0.5, 2.0)))
    event = Served(request=request, answer=answer, task=None, seconds=0.2)
    metrics(event)
    calls = 0

    def count(_: object, kind: str, __: object) -> None:
        nonlocal calls
        calls += kind == "call"

    sys.setprofile(count)
    try:
        metrics(event)
    finally:
        sys.setprofile(None)
    assert calls <= 10
