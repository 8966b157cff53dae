"""Audits in a whole node: they follow the answer, keep up, end a false expert, and outlive the node."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import select

import experts as sample
from nodes_made import ALWAYS, NOWHERE, QUESTIONS, ask, group, node, remembered, rows, until
from puhui.core.answer import Answer
from puhui.core.errors import (
    StoreError,
    UpstreamDenied,
    UpstreamError,
    UpstreamGarbled,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from puhui.core.request import Request
from puhui.core.settings import AuditRate
from puhui.node.audit import Audit
from puhui.node.expert import Case
from puhui.node.forwarding import status_of
from puhui.node.node import Node
from puhui.node.roster import Roster
from puhui.store.database import Store
from puhui.store.tables import experts
from puhui.trust.keys import SigningKey, load_or_create_key
from serving import BigModel


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return load_or_create_key(tmp_path / "node.key")


@pytest.fixture
def big(big: BigModel) -> BigModel:
    big.rule = sample.subject_of
    return big


async def test_audits_follow_the_answer(store: Store, big: BigModel, key: SigningKey, tmp_path: Path) -> None:
    expert, _, _ = sample.promote(store, tmp_path, key, group())
    async with node(store, big.url, key, ALWAYS) as served:
        for question in QUESTIONS[:10]:
            assert (await served(ask(question, stream=False))).expert == expert
        await until(lambda: not served.audits_due)
        watch = served.roster.experts[0].watch
        await until(lambda: watch.observations == 10)
        assert watch.losses == 0.0
        found = remembered(store)
        assert [row.answer for row in found] == [sample.subject_of(question) for question in QUESTIONS[:10]]
        assert all(row.coin and row.body is None and row.expert == expert for row in found)
        assert [row.expert_answer for row in found] == [row.answer for row in found]
        audits = rows(store, "audit")
        assert [row.id for row in audits] == [row.id for row in found]
        assert all(row.by == "big:m" and row.joules > 0 for row in audits)


async def test_more_audits_are_asked_at_once_the_more_wait(
    store: Store, big: BigModel, key: SigningKey, tmp_path: Path
) -> None:
    sample.promote(store, tmp_path, key, group())
    asking, most, go_on = 0, 0, asyncio.Event()

    async def slow(request: Request) -> Answer:
        nonlocal asking, most
        asking += 1
        most = max(most, asking)
        await go_on.wait()
        asking -= 1
        return Answer(by="big:m", text=sample.subject_of(request.messages[-1].text or ""))

    async with Node(store, slow, Roster(store, {key.public}), audit_rate=ALWAYS, seed=1) as served:
        for question in QUESTIONS[:30]:
            await served(ask(question))
        await until(lambda: asking == 4)  # one for each eight of those that wait
        go_on.set()
        await until(lambda: not served.audits_due)
        assert served.roster.experts[0].watch.observations == 30
    assert most == 4


async def test_audits_that_cannot_be_asked_do_not_pile_up(
    store: Store, key: SigningKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("puhui.node.audit.MOST_DUE", 5)
    sample.promote(store, tmp_path, key, group())
    async with node(store, NOWHERE, key, ALWAYS) as served:
        answers = [await served(ask(question)) for question in QUESTIONS[:12]]
        assert all(answer.expert for answer in answers)
        assert served.audits_due == 5
    assert [row.coin for row in remembered(store)] == [True] * 5


@pytest.mark.parametrize("failing", ["refused", "unwritten"])
async def test_a_request_that_fails_does_not_hold_up_the_watch(
    store: Store, big: BigModel, key: SigningKey, tmp_path: Path, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample.promote(store, tmp_path, key, group(), threshold=0.9)
    async with node(store, big.url, key, ALWAYS) as served:
        if failing == "refused":
            big.refuse = 400
            with pytest.raises(UpstreamRefused):
                await served(ask("entirely different words that nobody taught"))
            big.refuse = 200
        else:
            with monkeypatch.context() as broken:
                broken.setattr(served._journal, "append", _disk_full)
                with pytest.raises(StoreError):
                    await served(ask("entirely different words that nobody taught"))
        watch = served.roster.experts[0].watch
        await served(ask("other words that nobody taught"))
        assert watch.observations == 1  # the failed one is no observation, and this one did not wait for it


async def _disk_full(_: object) -> None:
    raise StoreError("the disk is full")


async def test_an_audited_stream_is_asked_without_streaming(
    store: Store, big: BigModel, key: SigningKey, tmp_path: Path
) -> None:
    sample.promote(store, tmp_path, key, group())
    async with node(store, big.url, key, ALWAYS) as served:
        await served(ask(QUESTIONS[0], stream=True, stream_options={"include_usage": True}, user="é"))
        await until(lambda: rows(store, "audit"))
    assert "stream" not in big.bodies[-1]
    assert "stream_options" not in big.bodies[-1]
    assert big.bodies[-1]["user"] == "é"


async def test_a_world_that_changes_ends_the_expert(
    store: Store, big: BigModel, key: SigningKey, tmp_path: Path
) -> None:
    expert, _, task = sample.promote(store, tmp_path, key, group())
    async with node(store, big.url, key, ALWAYS) as served:
        await served(ask(QUESTIONS[0]))
        big.rule = lambda text: "something new"
        for question in QUESTIONS[1:40]:
            await served(ask(question))
            await until(lambda: not served.audits_due)
            if not served.roster.experts:
                break
        assert served.roster.experts == ()
        answer = await served(ask(QUESTIONS[50]))
        assert (answer.by, answer.text) == ("big:m", "something new")
        await until(lambda: rows(store, "demotion"))
    demotion = rows(store, "demotion")[0]
    assert (demotion.expert, demotion.task) == (expert, task.id)
    assert "risk above 5.0%" in demotion.note
    with store.begin() as connection:
        row = connection.execute(select(experts)).one()
    assert (row.status, row.reason) == ("demoted", demotion.note)
    async with node(store, big.url, key) as served:
        assert (await served(ask(QUESTIONS[51]))).expert is None


async def test_a_restart_takes_up_what_was_due(store: Store, big: BigModel, key: SigningKey, tmp_path: Path) -> None:
    sample.promote(store, tmp_path, key, group())
    big.refuse = 503
    async with node(store, big.url, key, ALWAYS) as served:
        for question in QUESTIONS[:5]:
            await served(ask(question))
        assert served.audits_due == 5
    assert [row.answer for row in remembered(store)] == [None] * 5
    big.refuse = 200
    async with node(store, big.url, key, ALWAYS) as served:
        await until(lambda: len(rows(store, "audit")) == 5)
        await until(lambda: not served.audits_due)
        watch = served.roster.experts[0].watch
        await until(lambda: watch.observations == 5)
        assert watch.losses == 0.0
    assert all(row.answer and row.body is None for row in remembered(store))
    async with node(store, big.url, key, ALWAYS) as served:
        assert served.audits_due == 0
        assert served.roster.experts[0].watch.observations == 5
    assert len(rows(store, "audit")) == 5


async def test_an_audit_that_the_big_model_refuses_is_given_up(
    store: Store, big: BigModel, key: SigningKey, tmp_path: Path
) -> None:
    sample.promote(store, tmp_path, key, group())
    big.refuse = 400
    async with node(store, big.url, key, ALWAYS) as served:
        await served(ask(QUESTIONS[0]))
        await until(lambda: rows(store, "audit"))
        await until(lambda: not served.audits_due)
        assert served.roster.experts[0].watch.observations == 0
    assert rows(store, "audit")[0].status == 400
    assert remembered(store)[0].body is None


@pytest.mark.parametrize(
    "error",
    [
        UpstreamRefused("no such key", status=401, body=b""),
        UpstreamRefused("an error of its own", status=500, body=b""),
        UpstreamGarbled("rubbish"),
    ],
    ids=["key", "status", "rubbish"],
)
async def test_an_audit_that_never_succeeds_does_not_blind_the_watch(
    store: Store, key: SigningKey, tmp_path: Path, error: UpstreamError, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("puhui.node.audit.RETRY_AFTER_S", 0.001)
    sample.promote(store, tmp_path, key, group())

    async def big(request: Request) -> Answer:
        if request.messages[-1].text == QUESTIONS[0]:
            raise error
        return Answer(by="big:m", text="something new")

    async with Node(store, big, Roster(store, {key.public}), audit_rate=ALWAYS, seed=1) as served:
        for question in QUESTIONS[:60]:
            await served(ask(question))
        await until(lambda: not served.audits_due)
        await until(lambda: not served.roster.experts)  # the others' losses were told
    given_up = [row for row in rows(store, "audit") if row.status != 200]
    assert [row.status for row in given_up] == [status_of(error)]
    assert remembered(store)[0].body is None


@pytest.mark.parametrize("status", [503, 429, 401])
async def test_while_the_big_model_is_away_no_audit_is_given_up(
    store: Store, key: SigningKey, tmp_path: Path, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("puhui.node.audit.RETRY_AFTER_S", 0.001)
    sample.promote(store, tmp_path, key, group())
    asked = 0

    async def big(request: Request) -> Answer:
        nonlocal asked
        asked += 1
        if asked <= 100:
            kind = UpstreamDenied if status == 401 else UpstreamRefused  # the node's own key, to be put right
            raise kind("not now", status=status, body=b"")
        return Answer(by="big:m", text=sample.subject_of(request.messages[-1].text or ""))

    async with Node(store, big, Roster(store, {key.public}), audit_rate=ALWAYS, seed=1) as served:
        for question in QUESTIONS[:10]:
            await served(ask(question))
        await until(lambda: not served.audits_due)
        assert served.roster.experts[0].watch.observations == 10
    assert asked == 110


async def test_no_audit_is_given_up_while_its_own_model_is_away(
    store: Store, key: SigningKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("puhui.node.audit.RETRY_AFTER_S", 0.001)
    asked: Counter[str] = Counter()

    async def big(request: Request) -> Answer:
        asked[request.model] += 1
        if request.model == "away":
            raise UpstreamTimeout("not in time") if asked["away"] % 2 else UpstreamUnavailable("not there")
        return Answer(by="big:m", text=sample.subject_of(request.messages[-1].text or ""))

    async with Node(store, big, Roster(store, {key.public}), audit_rate=ALWAYS, seed=1) as served:
        case = Case()
        away = msgspec.structs.replace(ask(QUESTIONS[0]), model="away")
        served._auditor.add(Audit(away, "t", "e", "x", case))
        for question in QUESTIONS[:40]:
            await asyncio.sleep(0.005)
            served._auditor.add(Audit(ask(question), "t", "e", "x", Case()))
        await until(lambda: asked["m"] == 40 and asked["away"] > 20)
        assert not case.dropped


async def test_the_watch_after_a_restart_is_as_before(
    store: Store, big: BigModel, key: SigningKey, tmp_path: Path
) -> None:
    sample.promote(store, tmp_path, key, group())
    big.rule = lambda text: "odd" if text == QUESTIONS[3] else sample.subject_of(text)
    async with node(store, big.url, key, AuditRate(0.5, 0.5, 0.5)) as served:
        for question in QUESTIONS[:30]:
            await served(ask(question))
        await until(lambda: not served.audits_due)
        before = served.roster.experts[0].watch
        await until(lambda: before.observations == len(remembered(store)))
    assert 5 < before.observations < 25
    async with node(store, big.url, key) as served:
        after = served.roster.experts[0].watch
        assert (after.observations, after.losses) == (before.observations, before.losses)
        assert after.evidence == pytest.approx(before.evidence)
        assert served.roster.experts[0].served == 30
