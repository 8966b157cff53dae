"""What a node keeps: a real store, a real expert, a big model over HTTP, and every byte on the disk."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import insert, select, update

import experts as sample
from puhui.cascade.agreement import NOT_TEXT
from puhui.core.errors import UpstreamError
from puhui.core.request import Caller, Keep, Message, Request
from puhui.core.settings import AuditRate, Privacy
from puhui.evolve.traffic import sort_request
from puhui.gateway.chat import read_request
from puhui.models.endpoint import Endpoint
from puhui.node.node import Node
from puhui.node.roster import Roster
from puhui.store.database import Store
from puhui.store.forgetting import FORGOTTEN, Wanted, forget
from puhui.store.retention import sweep
from puhui.store.tables import contexts, experience, experts, ledger
from puhui.store.write_ahead import empty_log
from puhui.trust.keys import SigningKey, load_or_create_key
from serving import BigModel, wait_until

ALWAYS, NEVER = AuditRate(0.9, 1.0, 0.9), AuditRate(1e-9, 1e-9, 1e-9)
QUESTIONS = sample.questions(40, seed=5)
MAIL = "zhang.wei@example.cn"


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return load_or_create_key(tmp_path / "node.key")


@pytest.fixture
def big(big: BigModel) -> BigModel:
    big.rule = sample.subject_of
    return big


@contextlib.asynccontextmanager
async def node(
    store: Store, big: BigModel, key: SigningKey, keep: Keep, rate: AuditRate = ALWAYS, **more: Any
) -> AsyncIterator[Node]:
    endpoint = Endpoint(more.pop("url", big.url))
    privacy = Privacy(keep, more.pop("keep_days", 30.0))
    roster = Roster(store, {key.public})
    async with Node(store, endpoint, roster, audit_rate=rate, seed=1, privacy=privacy, **more) as opened:
        yield opened
    await endpoint.close()


def ask(question: str, *, system: str = sample.SYSTEM, headers: dict[str, str] | None = None, **fields: Any) -> Request:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    caller = Caller("key-1", keep=fields.pop("keep", None))
    return read_request(msgspec.json.encode({"model": "m", "messages": messages} | fields), headers or {}, caller)


def group() -> str:
    found = sort_request(ask("x"))
    assert found is not None
    return found.group


def remembered(store: Store) -> list[Any]:
    with store.begin() as connection:
        return list(connection.execute(select(experience).order_by(experience.c.number)))


def on_disk(store: Store, folder: Path, *what: str) -> list[str]:
    wait_until(lambda: empty_log(store))  # whoever reads it at this moment is in the way
    data = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    return [each for each in what if each.encode() in data]


async def until(true: Callable[[], Any]) -> None:
    async with asyncio.timeout(10.0):
        while not true():  # noqa: ASYNC110 - what is waited for lies in the store
            await asyncio.sleep(0.01)


def watch_of(store: Store, key: SigningKey, expert: str) -> tuple[float, ...]:
    """Where the watch of a node that starts now would stand."""
    roster = Roster(store, {key.public})
    roster.read()()
    held = roster.get(expert)
    assert held is not None
    return held.watch.observations, held.watch.losses, held.watch.evidence


# --- how much is kept ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("node_keeps", "key_allows", "more", "kept"),
    [
        ("whole", None, {}, "whole"),
        ("redacted", None, {}, "redacted"),
        ("redacted", "whole", {}, "redacted"),
        ("whole", "redacted", {}, "redacted"),
        ("whole", "nothing", {}, "nothing"),
        ("nothing", "whole", {}, "nothing"),
        ("whole", None, {"headers": {"x-puhui-keep": "nothing"}}, "nothing"),
        ("whole", "redacted", {"headers": {"x-puhui-keep": "whole"}}, "redacted"),
        ("whole", None, {"store": False}, "nothing"),
        ("redacted", None, {"store": True}, "redacted"),
    ],
)
async def test_the_least_of_node_key_and_request_is_kept(
    store: Store,
    big: BigModel,
    key: SigningKey,
    tmp_path: Path,
    node_keeps: Keep,
    key_allows: Keep | None,
    more: dict[str, Any],
    kept: str,
) -> None:
    async with node(store, big, key, node_keeps) as served:
        await served(ask(f"pizza for {MAIL} QUESTION", system="PROMPT of boss@example.com", keep=key_allows, **more))
    assert big.bodies[-1]["messages"][-1]["content"] == f"pizza for {MAIL} QUESTION"
    rows = remembered(store)
    if kept == "nothing":
        assert rows == []
        assert on_disk(store, tmp_path, "QUESTION", "PROMPT", MAIL) == []
    else:
        assert rows[0].input == ("pizza for ⟨mail⟩ QUESTION" if kept == "redacted" else f"pizza for {MAIL} QUESTION")
        assert rows[0].answer == "food"
        with store.begin() as connection:
            shown = connection.execute(select(contexts.c.text)).scalar_one()
        assert shown == ("PROMPT of ⟨mail⟩" if kept == "redacted" else "PROMPT of boss@example.com")
        assert on_disk(store, tmp_path, MAIL, "boss@") == ([] if kept == "redacted" else [MAIL, "boss@"])
    with store.begin() as connection:
        assert connection.execute(select(ledger.c.key).where(ledger.c.kind == "request")).scalars().all() == ["key-1"]


async def test_an_answer_with_personal_matter_is_not_learned(store: Store, big: BigModel, key: SigningKey) -> None:
    big.rule = lambda question: f"write to {MAIL}"
    async with node(store, big, key, "redacted") as served:
        answer = await served(ask("who?"))
    assert answer.text == f"write to {MAIL}"
    assert remembered(store)[0].answer == NOT_TEXT


async def test_nothing_is_kept_of_what_is_too_large(store: Store, big: BigModel, key: SigningKey) -> None:
    big.rule = lambda question: "long " * 20_000 if question == "a long answer" else "food"
    async with node(store, big, key, "redacted") as served:
        question = f"{MAIL} " * 200_000
        started = time.thread_time()
        assert (await served(ask(question))).text == "food"
        assert time.thread_time() - started < 0.5
        assert remembered(store) == []
        await served(ask("a long answer"))
    assert remembered(store)[0].answer == NOT_TEXT


async def test_an_expert_reads_what_it_learned_from(
    store: Store, big: BigModel, key: SigningKey, tmp_path: Path
) -> None:
    """A redacted question reaches the expert redacted, and the audit's question the big model as it was asked."""
    sample.promote(store, tmp_path / "experts", key, group())
    read: list[str] = []
    async with node(store, big, key, "redacted") as served:
        (held,) = served.roster.experts

        class Reads:
            labels = held.model.labels

            def predict_one(self, text: str) -> tuple[str, float]:
                read.append(text)
                return ("food", 0.99) if len(read) < 3 else ("mail it to ⟨mail⟩", 0.99)

        held.model = Reads()  # type: ignore[assignment]
        answers = [await served(ask(f"pizza for {MAIL}{end}")) for end in ("", ".")]
        plain = await served(ask(f"dinner for {MAIL}"))
        await until(lambda: served.audits_due == 0)
    assert read == ["pizza for ⟨mail⟩", "pizza for ⟨mail⟩.", "dinner for ⟨mail⟩"]
    assert [answer.text for answer in answers] == ["food", "food"]
    assert plain.by.startswith("big:")  # an answer with a mark in it is for nobody
    assert sorted(body["messages"][-1]["content"] for body in big.bodies) == sorted(
        [f"dinner for {MAIL}", f"pizza for {MAIL}", f"pizza for {MAIL}."]
    )
    assert on_disk(store, tmp_path, MAIL) == []


# --- audits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep", "question", "on_the_disk"),
    [
        ("whole", f"pizza and dinner for {MAIL}", True),
        ("redacted", "pizza and dinner or the bread", True),
        ("redacted", f"pizza and dinner for {MAIL}", False),
        ("nothing", "pizza and dinner or the bread", False),
    ],
)
async def test_an_audit_lies_on_the_disk_only_as_far_as_it_may(
    store: Store, big: BigModel, key: SigningKey, tmp_path: Path, keep: Keep, question: str, on_the_disk: bool
) -> None:
    expert, _, _ = sample.promote(store, tmp_path / "experts", key, group(), threshold=0.0)
    async with node(store, big, key, keep, url="http://127.0.0.1:9/v1") as served:
        answer = await served(ask(question))
        assert answer.expert == expert
        (row,) = remembered(store)
        assert bool(row.body) == on_the_disk
        assert row.body is not None  # due
    assert (on_disk(store, tmp_path, "dinner") == ["dinner"]) == (keep != "nothing")
    async with node(store, big, key, keep) as served:  # it had ended before it was answered
        (held,) = served.roster.experts
        await until(lambda: served.audits_due == 0)
        await served(ask(QUESTIONS[0]))
        await until(lambda: held.watch.observations == (2 if on_the_disk else 1))
        live = (held.watch.observations, held.watch.losses, held.watch.evidence)
    row = remembered(store)[0]
    assert (row.body, row.loss) == (None, 0.0 if on_the_disk else None)
    assert watch_of(store, key, expert) == live


async def test_audits_of_what_is_not_kept_are_watched_all_the_same(
    store: Store, big: BigModel, key: SigningKey, tmp_path: Path
) -> None:
    """The big model now says otherwise: the promise is broken, and no text of it is anywhere."""
    expert, _, _ = sample.promote(store, tmp_path / "experts", key, group())
    big.rule = lambda question: "ANSWER of another kind"
    async with node(store, big, key, "nothing") as served:
        for question in QUESTIONS:
            await served(ask(question))
        await until(lambda: not served.roster.experts)
    with store.begin() as connection:
        assert connection.execute(select(experts.c.status).where(experts.c.id == expert)).scalar_one() == "demoted"
    rows = remembered(store)
    assert {(row.input, row.group, row.answer, row.expert_answer) for row in rows} == {("", "", None, None)}
    assert 1.0 in {row.loss for row in rows}
    assert on_disk(store, tmp_path, "ANSWER of another kind", *QUESTIONS) == []


@pytest.mark.parametrize("keep", ["whole", "redacted", "nothing"])
async def test_a_watch_knows_after_a_restart_what_it_knew(
    store: Store, big: BigModel, key: SigningKey, tmp_path: Path, keep: Keep
) -> None:
    """With the text there, with it swept away, and with it forgotten: the same losses in the same order."""
    expert, _, _ = sample.promote(store, tmp_path / "experts", key, group(), threshold=0.6, epsilon=0.3)
    wrong = set(QUESTIONS[4::9])
    big.rule = lambda question: "travel" if question in wrong else sample.subject_of(question)
    async with node(store, big, key, keep, rate=AuditRate(0.7, 0.7, 0.7)) as served:
        (held,) = served.roster.experts
        for question in QUESTIONS:
            await served(ask(question))
            await served(ask(f"zzz {question[-3:]}", keep="nothing"))
        await until(lambda: served.audits_due == 0)
        live = (held.watch.observations, held.watch.losses, held.watch.evidence)
    assert live[0] > 30
    assert live[1] >= 2
    assert watch_of(store, key, expert) == live
    while sweep(store, 1e12):
        pass
    assert watch_of(store, key, expert) == live
    forget(store, Wanted(key="key-1"), now=1.0)
    assert watch_of(store, key, expert) == live


async def test_losses_of_an_older_store_are_written_down_at_the_first_start(
    store: Store, big: BigModel, key: SigningKey, tmp_path: Path
) -> None:
    expert, _, _ = sample.promote(store, tmp_path / "experts", key, group(), epsilon=0.3)
    usual = {"at": 1.0, "group": group(), "input": "x", "coin": True, "expert": expert}
    with store.begin() as connection:
        for number in range(20):
            given = None if number % 3 == 0 else "food"
            answer = "money" if number == 7 else "food"
            connection.execute(
                insert(experience), usual | {"id": f"r{number}", "expert_answer": given, "answer": answer}
            )
    first = watch_of(store, key, expert)
    assert first[:2] == (20, 1.0)
    assert [row.loss for row in remembered(store)] == [float(number == 7) for number in range(20)]
    while sweep(store, 1e12):
        pass
    assert watch_of(store, key, expert) == first


async def test_what_is_forgotten_while_its_audit_is_under_way_stays_forgotten(
    store: Store, big: BigModel, key: SigningKey, tmp_path: Path
) -> None:
    expert, _, _ = sample.promote(store, tmp_path / "experts", key, group())
    big.rule = lambda question: forget(store, Wanted(key="key-1"), now=1.0) and "ANSWER of the audit"  # type: ignore[return-value]
    async with node(store, big, key, "whole", rate=ALWAYS) as served:
        (held,) = served.roster.experts
        request = ask(QUESTIONS[0])
        assert (await served(request)).expert == expert
        await until(lambda: held.watch.observations == 1)
        assert held.watch.losses == 1.0
    (row,) = remembered(store)
    assert (row.id, row.key, row.input, row.answer, row.loss) == (FORGOTTEN, FORGOTTEN, "", None, 1.0)
    with store.begin() as connection:
        whose = connection.execute(select(ledger.c.id, ledger.c.key).where(ledger.c.kind.in_(("request", "audit"))))
        assert set(map(tuple, whose)) == {(FORGOTTEN, FORGOTTEN)}
    assert on_disk(store, tmp_path, "ANSWER of the audit", QUESTIONS[0], request.id) == []


# --- time ------------------------------------------------------------------------------------------------------------


async def test_a_node_sweeps_while_it_serves(store: Store, big: BigModel, key: SigningKey, tmp_path: Path) -> None:
    async with node(store, big, key, "whole", NEVER) as served:
        await asyncio.gather(*(served(ask(f"OLD {question}")) for question in QUESTIONS))
    with store.begin() as connection:
        connection.execute(update(experience).values(at=experience.c.at - 86_400.0))
    async with node(store, big, key, "whole", NEVER, keep_days=0.5) as served:
        await served(ask("NEW question"))
        await until(lambda: on_disk(store, tmp_path, "OLD about") == [])
    assert on_disk(store, tmp_path, "NEW question") == ["NEW question"]
    assert len(remembered(store)) == len(QUESTIONS) + 1


async def test_no_log_holds_a_prompt_or_an_answer(
    store: Store, big: BigModel, key: SigningKey, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sample.promote(store, tmp_path / "experts", key, group())
    question = "PROMPT pizza dinner bread"
    with caplog.at_level(logging.DEBUG):
        async with node(store, big, key, "whole") as served:
            big.rule = lambda asked: f"ANSWER to {asked}"
            for number in range(40):
                await served(ask(f"{question} {number}"))
            await until(lambda: not served.roster.experts)
            big.refuse = 400
            with pytest.raises(UpstreamError):
                await served(ask(question))
            big.refuse = 200
    text = caplog.text
    assert "steps down" in text
    assert "PROMPT" not in text
    assert "ANSWER" not in text
    assert sample.SYSTEM[:20] not in text
    with store.begin() as connection:
        notes = connection.execute(select(ledger.c.note)).scalars().all()
    assert not any("PROMPT" in (note or "") or "ANSWER" in (note or "") for note in notes)


async def test_a_stale_expert_leaves_the_disk_when_it_is_out(
    store: Store, big: BigModel, key: SigningKey, tmp_path: Path
) -> None:
    """It answers until then, and is sampled as closely as a young one, so that the next can be proven soon."""
    expert, place, _ = sample.promote(store, tmp_path / "experts", key, group())
    rate = AuditRate(1e-9, 0.9, 1e-9, probation_requests=0)
    async with node(store, big, key, "whole", rate) as served:
        (held,) = served.roster.experts
        for _ in range(400):  # until its watch has calmed down
            held.watch.update(0.0)
            if not held.watch.suspicious:
                break
        assert (await served(ask(QUESTIONS[0]))).expert == expert
        assert remembered(store) == []
        with store.begin() as connection:
            connection.execute(update(experts).values(stale="rows were forgotten"))
        await until(lambda: served.roster.experts[0].stale)
        for question in QUESTIONS:
            assert (await served(ask(question))).expert == expert
        assert sum(row.coin for row in remembered(store)) > len(QUESTIONS) / 2
        assert place.is_dir()
        with store.begin() as connection:
            connection.execute(update(experts).values(status="retired"))
        await until(lambda: not served.roster.experts)
    async with node(store, big, key, "whole", keep_days=float("inf")):
        await until(lambda: not place.exists())


def test_messages_of_parts_are_redacted_too() -> None:
    parts = [{"type": "text", "text": "mail "}, {"type": "text", "text": MAIL}]
    request = Request(id="r", model="m", messages=(Message("user", parts),), body=b"{}")
    found = sort_request(request, redacted=True)
    assert found is not None
    assert found.input == "mail ⟨mail⟩"
