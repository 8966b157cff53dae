"""A whole node: a real store, a real expert, a big model over HTTP."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import select, text

import experts as sample
from nodes_made import ALWAYS, DONE, NOWHERE, QUESTIONS, ask, group, node, pieces_of, remembered, rows, until
from puhui.core.errors import StoreError, UpstreamError, UpstreamGarbled, UpstreamRefused, UpstreamUnavailable
from puhui.energy.power import estimate_remote_joules
from puhui.node.by_hand import put_back, take_out
from puhui.store.database import Store
from puhui.store.tables import contexts, experts
from puhui.trust.keys import SigningKey, load_or_create_key
from serving import BigModel, chunk, head_of, raw_server, says


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return load_or_create_key(tmp_path / "node.key")


@pytest.fixture
def big(big: BigModel) -> BigModel:
    big.rule = sample.subject_of
    return big


# --- the ledger -----------------------------------------------------------------------------------------------


async def test_the_row_is_there_before_the_reply(store: Store, big: BigModel, key: SigningKey) -> None:
    async with node(store, big.url, key) as served:
        request = ask(QUESTIONS[0])
        answer = await served(request)
        row = rows(store, "request")[-1]
        assert (row.id, row.by, row.status, row.model) == (request.id, "big:m", 200, "m")
        assert row.joules == answer.usage.energy.joules > 0
        assert (row.prompt_tokens, row.completion_tokens) == (11, 3)
        assert row.path == [["big:m", None, True]]
        found = remembered(store)[-1]
        assert (found.id, found.input, found.answer) == (request.id, QUESTIONS[0], answer.text)
        with store.begin() as connection:
            assert connection.execute(select(contexts.c.text)).scalars().all() == [sample.SYSTEM]


async def test_the_row_is_there_before_the_end_of_a_stream(store: Store, big: BigModel, key: SigningKey) -> None:
    async with node(store, big.url, key) as served:
        request = ask(QUESTIONS[0], stream=True)
        answer = await served(request)
        assert answer.pieces is not None
        async for piece in answer.pieces:
            found = [row for row in rows(store, "request") if row.id == request.id]
            assert len(found) == (piece == DONE)
        assert answer.text == sample.subject_of(QUESTIONS[0])
        assert found[0].status == 200
        assert remembered(store)[-1].answer == answer.text


async def test_many_at_once_are_all_in_the_ledger_once(store: Store, big: BigModel, key: SigningKey) -> None:
    async with node(store, big.url, key) as served:
        asked = [ask(question) for question in QUESTIONS]
        await asyncio.gather(*(served(request) for request in asked))
        assert sorted(row.id for row in rows(store, "request")) == sorted(request.id for request in asked)


async def test_no_reply_without_its_row(store: Store, big: BigModel, key: SigningKey) -> None:
    async with node(store, big.url, key) as served:
        with store.begin() as connection:
            connection.execute(text("ALTER TABLE ledger RENAME TO away"))
        with pytest.raises(StoreError):
            await served(ask(QUESTIONS[0]))
        streamed = await served(ask(QUESTIONS[0], stream=True))
        seen: list[bytes] = []
        assert streamed.pieces is not None
        with pytest.raises(StoreError):  # noqa: PT012 - what came before it counts
            async for piece in streamed.pieces:
                seen.append(piece)
        assert seen
        assert DONE not in seen
        with store.begin() as connection:
            connection.execute(text("ALTER TABLE away RENAME TO ledger"))
        assert (await served(ask(QUESTIONS[0]))).text


@pytest.mark.parametrize("streaming", [False, True])
async def test_failures_are_in_the_ledger(store: Store, big: BigModel, key: SigningKey, streaming: bool) -> None:
    big.refuse = 429
    async with node(store, big.url, key) as served:
        with pytest.raises(UpstreamRefused):
            await served(ask(QUESTIONS[0], stream=streaming))
        row = rows(store, "request")[-1]
        assert row.status == 429
        assert "429" in row.note
    async with node(store, NOWHERE, key) as served:
        with pytest.raises(UpstreamUnavailable):
            await served(ask(QUESTIONS[0], stream=streaming))
        row = rows(store, "request")[-1]
        assert row.status == 503
        assert "cannot be reached" in row.note
    assert remembered(store) == []


async def test_half_a_stream_is_a_failure(store: Store, key: SigningKey) -> None:
    with raw_server(says(chunk({"content": "a"}), head=head_of("text/event-stream"))) as url:
        async with node(store, url, key) as served:
            answer = await served(ask(QUESTIONS[0], stream=True))
            with pytest.raises(UpstreamGarbled):
                await pieces_of(answer)
            (row,) = rows(store, "request")
            assert (row.status, row.completion_tokens) == (502, 1)
            assert row.prompt_tokens > 0, "the big model has read it, and its bill comes all the same"


async def test_a_client_that_leaves_a_stream_is_in_the_ledger_once(
    store: Store, big: BigModel, key: SigningKey
) -> None:
    async with node(store, big.url, key) as served:
        answer = await served(ask(QUESTIONS[0], stream=True))
        assert answer.pieces is not None
        await anext(answer.pieces)
        await answer.pieces.aclose()  # type: ignore[attr-defined]
        await until(lambda: rows(store, "request"))
        assert [row.status for row in rows(store, "request")] == [499]


async def test_a_client_that_leaves_at_the_very_end_got_its_answer(
    store: Store, big: BigModel, key: SigningKey
) -> None:
    async with node(store, big.url, key) as served:
        answer = await served(ask(QUESTIONS[0], stream=True))
        assert answer.pieces is not None
        async for piece in answer.pieces:
            if piece == DONE:
                break
        await answer.pieces.aclose()  # type: ignore[attr-defined]
        await asyncio.sleep(0.1)
    assert [row.status for row in rows(store, "request")] == [200]


async def test_the_nodes_own_work_is_on_the_bill(store: Store, big: BigModel, key: SigningKey) -> None:
    async with node(store, big.url, key) as served:
        await served(ask(QUESTIONS[0]))
    own = rows(store, "node")
    assert own
    assert own[-1].cpu_seconds > 0


# --- experts --------------------------------------------------------------------------------------------------


async def test_an_expert_answers(store: Store, big: BigModel, key: SigningKey, tmp_path: Path) -> None:
    expert, _, task = sample.promote(store, tmp_path, key, group())
    async with node(store, big.url, key) as served:
        for question in QUESTIONS[:10]:
            answer = await served(ask(question))
            assert answer.expert == expert
            assert answer.by == f"expert:{expert[:12]}"
            assert answer.text == sample.subject_of(question)
            assert answer.confidence is not None
            assert 0.5 <= answer.confidence <= 1.0
            assert answer.usage.energy.high > 0
        row = rows(store, "request")[-1]
        assert (row.task, row.expert, row.confidence) == (task.id, expert, answer.confidence)
        assert big.bodies == []
        assert served.roster.experts[0].served == 10


async def test_an_expert_answers_a_stream(store: Store, key: SigningKey, tmp_path: Path) -> None:
    sample.promote(store, tmp_path, key, group())
    async with node(store, NOWHERE, key) as served:
        request = ask(QUESTIONS[0], stream=True)
        answer = await served(request)
        assert answer.text == sample.subject_of(QUESTIONS[0])
        assert [row.id for row in rows(store, "request")] == [request.id]


async def test_quality_one_is_the_big_models(store: Store, big: BigModel, key: SigningKey, tmp_path: Path) -> None:
    sample.promote(store, tmp_path, key, group())
    async with node(store, big.url, key) as served:
        assert (await served(ask(QUESTIONS[0], quality="1"))).by == "big:m"
        assert (await served(ask(QUESTIONS[0], quality="1.0"))).by == "big:m"
        assert (await served(ask(QUESTIONS[0], quality="0.9"))).expert is not None
        assert len(big.bodies) == 2


@pytest.mark.parametrize(("epsilon", "enough", "more"), [(0.05, "0.95", "0.951"), (0.07, "0.93", "0.94")])
async def test_an_expert_answers_where_it_promises_the_quality(
    store: Store, big: BigModel, key: SigningKey, tmp_path: Path, epsilon: float, enough: str, more: str
) -> None:
    sample.promote(store, tmp_path, key, group(), epsilon=epsilon)
    async with node(store, big.url, key, ALWAYS) as served:
        assert (await served(ask(QUESTIONS[0], quality=enough))).expert is not None
        assert (await served(ask(QUESTIONS[1], quality=more))).by == "big:m"
        assert served.roster.experts[0].served == 1
        await until(lambda: not served.audits_due)
    assert [row.coin for row in remembered(store)] == [True, False]


async def test_what_no_expert_to_come_will_answer_is_not_in_the_sample(
    store: Store, big: BigModel, key: SigningKey
) -> None:
    async with node(store, big.url, key, ALWAYS) as served:
        for quality in ("0.98", "0.99", "1"):
            await served(ask(QUESTIONS[0], quality=quality))
    assert [row.coin for row in remembered(store)] == [True, False, False]


async def test_other_traffic_is_the_big_models(store: Store, big: BigModel, key: SigningKey, tmp_path: Path) -> None:
    sample.promote(store, tmp_path, key, group())
    async with node(store, big.url, key) as served:
        for request in (
            ask(QUESTIONS[0], temperature=1.5),
            ask(QUESTIONS[0], tools=[{"type": "function"}]),
            ask(QUESTIONS[0], n=2),
            ask(QUESTIONS[0], metadata={"task": "another"}),
            msgspec.structs.replace(ask(QUESTIONS[0]), model="another"),
        ):
            assert (await served(request)).expert is None


async def test_an_expert_that_is_not_sure_hands_on(
    store: Store, big: BigModel, key: SigningKey, tmp_path: Path
) -> None:
    sample.promote(store, tmp_path, key, group(), threshold=1.0)
    async with node(store, big.url, key) as served:
        answer = await served(ask("entirely different words that nobody taught"))
        assert answer.by == "big:m"
        assert [step.taken for step in answer.path] == [False, True]
        assert answer.path[0].name.startswith("expert:")
        assert rows(store, "request")[-1].expert is None
        await pieces_of(await served(ask("entirely different words that nobody taught", stream=True)))
        for row in rows(store, "request"):  # what both have used
            assert row.joules > estimate_remote_joules(11, 3).joules
            assert (row.prompt_tokens, row.completion_tokens, row.cpu_seconds > 0.0) == (11, 3, True)


async def test_the_expert_answers_while_the_big_model_is_down(store: Store, key: SigningKey, tmp_path: Path) -> None:
    sample.promote(store, tmp_path, key, group())
    async with node(store, NOWHERE, key, ALWAYS) as served:
        assert (await served(ask(QUESTIONS[0]))).text == sample.subject_of(QUESTIONS[0])
        with pytest.raises(UpstreamError):
            await served(ask(QUESTIONS[0], quality="1"))
        assert (await served(ask(QUESTIONS[1]))).expert is not None
        assert served.audits_due == 2


async def test_a_new_expert_is_taken_up_while_serving(
    store: Store, big: BigModel, key: SigningKey, tmp_path: Path
) -> None:
    async with node(store, big.url, key) as served:
        assert (await served(ask(QUESTIONS[0]))).expert is None
        expert, _, _ = sample.promote(store, tmp_path, key, group())
        await until(lambda: served.roster.experts)
        assert (await served(ask(QUESTIONS[0]))).expert == expert


async def test_what_one_node_takes_out_another_puts_back(
    store: Store, big: BigModel, key: SigningKey, tmp_path: Path
) -> None:
    expert, _, _ = sample.promote(store, tmp_path, key, group())
    async with node(store, big.url, key) as one, node(store, big.url, key) as other:
        assert one.roster.take(expert) is not None
        assert take_out(store, expert, "test")
        await until(lambda: not other.roster.experts)
        await one.read_roster()
        assert put_back(store, other.roster, expert, "test") is None
        for served in (one, other):
            await until(lambda served=served: served.roster.experts)
            assert (await served(ask(QUESTIONS[0]))).expert == expert


@pytest.mark.parametrize("name", ["expert.json", "signature.json", "static.json", "weights.safetensors"])
async def test_a_changed_bundle_is_refused_by_name_and_the_node_serves_on(
    store: Store, big: BigModel, key: SigningKey, tmp_path: Path, name: str
) -> None:
    expert, place, task = sample.promote(store, tmp_path, key, group())
    data = bytearray((place / name).read_bytes())
    data[len(data) // 2] ^= 1
    (place / name).write_bytes(data)
    async with node(store, big.url, key) as served:
        assert served.roster.experts == ()
        assert (await served(ask(QUESTIONS[0]))).by == "big:m"
    refusal = rows(store, "refusal")[0]
    assert (refusal.expert, refusal.task) == (expert, task.id)
    assert name in refusal.note or str(place) in refusal.note
    with store.begin() as connection:
        assert connection.execute(select(experts.c.status)).scalar_one() == "refused"


async def test_an_expert_of_another_key_is_refused(
    store: Store, big: BigModel, key: SigningKey, tmp_path: Path
) -> None:
    sample.promote(store, tmp_path, load_or_create_key(tmp_path / "stranger.key"), group())
    async with node(store, big.url, key) as served:
        assert (await served(ask(QUESTIONS[0]))).expert is None
    assert "not trusted" in rows(store, "refusal")[0].note
