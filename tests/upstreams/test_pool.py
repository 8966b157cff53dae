"""Several big models as one: real servers that are down, slow, refuse, flap and break off."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route
from upstreams_made import Moody, ask

from puhui.core.answer import Answer
from puhui.core.errors import (
    NeedsUnmet,
    SettingsError,
    UnknownModel,
    UpstreamGarbled,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from puhui.core.request import Needs
from puhui.core.settings import Tariff
from puhui.energy.power import estimate_remote_joules
from puhui.node.meter import meter
from puhui.upstreams.breaker import LEAST_FAILURES, OPEN_S
from puhui.upstreams.pool import Pool
from puhui.upstreams.recent import SORT_EVERY
from puhui.upstreams.retry import RetryPolicy
from puhui.upstreams.upstream_settings import UpstreamSettings
from serving import BigModel, head_of, raw_server, says, serving

QUICK = RetryPolicy(base_s=0.01, longest_s=2.0)


class Clock:
    """Time of breakers and latencies, which the test moves."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


def nobody() -> str:
    """The URL of a server that is not there."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"http://127.0.0.1:{taken.getsockname()[1]}/v1"


@contextlib.asynccontextmanager
async def pool(
    *models: BigModel | str, more: Any = (), clock: Any = time.monotonic, **all_: Any
) -> AsyncIterator[Pool]:
    """A pool of these big models (or URLs); `more` holds the settings of each, `all_` those of all."""
    with contextlib.ExitStack() as servers:
        urls = [model if isinstance(model, str) else servers.enter_context(serving(model.app)) for model in models]
        settings = [
            UpstreamSettings(
                ref=f"openai:m{number}@{url}" if "/v1" in url else f"openai:m{number}@{url}/v1",
                **(all_ | (more[number] if more else {})),
            )
            for number, url in enumerate(urls)
        ]
        opened = Pool(settings, policy=QUICK, clock=clock)
        try:
            yield opened
        finally:
            await opened.close()


async def read_out(answer: Answer) -> bytes:
    assert answer.pieces is not None
    return b"".join([piece async for piece in answer.pieces])


RANKS = ({"rank": 0}, {"rank": 1}, {"rank": 2})


async def test_one_upstream_is_asked_as_it_is() -> None:
    big = Moody()
    async with pool(big) as opened:
        assert (await opened(ask())).text == "HELLO"
        assert (await opened(ask(model="m0"))).by == "big:m0"
        with pytest.raises(UnknownModel, match="there is: m0, puhui"):
            await opened(ask(model="other"))
        assert opened.models == ("m0", "puhui")
        assert opened.state()[0] | {"url": ""} == {
            "url": "",
            "model": "m0",
            "rank": 0,
            "weight": 1.0,
            "site": True,
            "breaker": "closed",
            "retry_in_s": 0.0,
            "rests": False,
            "requests": 2,
            "errors": 0,
            "last_error": "",
            "p50_ms": None,
            "p95_ms": None,
            "first_event_p50_ms": None,
        }


def test_a_pool_of_nobody() -> None:
    with pytest.raises(SettingsError, match="there is no upstream"):
        Pool([])


async def test_each_answers_as_often_as_its_weight_says() -> None:
    async with pool(Moody(), Moody(), more=({"weight": 9.0}, {"weight": 1.0})) as opened:
        by = Counter([(await opened(ask())).by for _ in range(200)])
    assert by["big:m0"] > 150
    assert by["big:m1"] > 4, "one in ten; none in 200 has a chance of 1e-9"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("failing", ["down", "refuses", "slow", "breaks off"])
async def test_another_answers_where_one_fails(failing: str, stream: bool) -> None:
    models: dict[str, BigModel | str] = {
        "down": nobody(),
        "refuses": Moody(then=503, retry_after="30"),
        "slow": Moody(then=3.0),
        "breaks off": Moody(then="break at once"),
    }
    for more in (RANKS, ()):
        async with pool(models[failing], Moody(), more=more, first_token_s=0.3, retries=0) as opened:
            for _ in range(4):
                answer = await opened(ask(stream=stream))
                assert answer.by == "big:m1"
                assert not stream or b"[DONE]" in await read_out(answer)
            assert opened.state()[0]["errors"] >= (1 if more else 0)
            assert opened.state()[1]["errors"] == 0


async def test_a_moment_of_weakness_is_waited_for() -> None:
    big = Moody(503, 429, retry_after="1")
    async with pool(big, retries=2) as opened:
        started = time.perf_counter()
        assert (await opened(ask())).text == "HELLO"
        assert 2.0 <= time.perf_counter() - started < 4.0
    assert len(big.bodies) == 3


async def test_what_the_request_is_at_fault_for_is_told_at_once() -> None:
    big, other = Moody(then=400), Moody()
    async with pool(big, other, more=RANKS) as opened:
        with pytest.raises(UpstreamRefused) as caught:
            await opened(ask())
    assert caught.value.status == 400
    assert (len(big.bodies), len(other.bodies)) == (1, 0)


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_wrong_key_or_model_at_one_is_no_fault_of_the_request(status: int) -> None:
    big, other = Moody(then=status), Moody()
    async with pool(big, other, more=RANKS) as opened:
        assert (await opened(ask())).by == "big:m1"
        assert opened.state()[0]["breaker"] == "closed"
    assert len(big.bodies) == 1, "and is not asked again"
    async with pool(Moody(then=status)) as opened:
        with pytest.raises(UpstreamRefused, match=str(status)):
            await opened(ask())


async def test_when_nobody_answers_it_is_said_who_was_asked_and_when_to_come_back() -> None:
    first, second = Moody(then=503, retry_after="30"), Moody(then=429, retry_after="12")
    async with pool(first, second, nobody(), more=RANKS) as opened:
        with pytest.raises(UpstreamUnavailable, match=r"none of 3 big models.*503.*429.*cannot be reached") as caught:
            await opened(ask())
    assert caught.value.retry_after_s == 12.0
    async with pool(Moody(then=500)) as opened:
        with pytest.raises(UpstreamRefused) as own:  # the only one's own words are of more use
            await opened(ask())
    assert (own.value.status, own.value.body) == (500, b'{"error":{"message":"mood 500"}}')


async def test_an_upstream_that_fails_is_left_alone_and_tried_again() -> None:
    clock, big = Clock(), Moody(then=500)
    async with pool(big, retries=0, clock=clock) as opened:
        for _ in range(LEAST_FAILURES):
            with pytest.raises(UpstreamRefused):
                await opened(ask())
        with pytest.raises(UpstreamUnavailable, match=r"left alone for now.*status 500") as caught:
            await opened(ask())
        assert 0.0 < (caught.value.retry_after_s or 0.0) <= OPEN_S
        assert opened.state()[0]["breaker"] == "open"
        assert len(big.bodies) == LEAST_FAILURES
        big.then = 0.3
        clock.ahead = OPEN_S
        outcomes = await asyncio.gather(*(opened(ask()) for _ in range(8)), return_exceptions=True)
        assert sum(isinstance(outcome, Answer) for outcome in outcomes) == 1, (
            "one request tries, the others do not wait"
        )
        assert sum(isinstance(outcome, UpstreamUnavailable) for outcome in outcomes) == 7
        big.then = 0.0
        assert all([(await opened(ask())).text == "HELLO" for _ in range(8)])
        assert opened.state()[0]["breaker"] == "closed"


async def test_one_that_is_left_alone_costs_the_others_nothing() -> None:
    big, other = Moody(then=500), Moody()
    async with pool(big, other, more=RANKS, retries=0) as opened:
        for _ in range(3 * LEAST_FAILURES):
            assert (await opened(ask())).by == "big:m1"
    assert len(big.bodies) == LEAST_FAILURES


async def test_refusals_and_hurries_of_callers_break_nothing() -> None:
    async with pool(Moody(then=404), retries=0) as opened:
        for _ in range(3 * LEAST_FAILURES):
            with pytest.raises(UpstreamRefused):
                await opened(ask())
        assert opened.state()[0]["breaker"] == "closed"
    async with pool(Moody(then=0.2), retries=0) as opened:
        for _ in range(3 * LEAST_FAILURES):
            with pytest.raises(UpstreamTimeout):
                await opened(ask(needs=Needs(latency_ms=5.0)))
        assert opened.state()[0]["breaker"] == "closed"


async def test_who_waits_to_ask_again_is_told_when_the_node_stops() -> None:
    async with pool(Moody(then=429, retry_after="1"), retries=2) as opened:
        waiting = asyncio.ensure_future(opened(ask()))
        await asyncio.sleep(0.2)
        await opened.stop()
        async with asyncio.timeout(0.5):
            with pytest.raises(UpstreamUnavailable, match="this node was stopped"):
                await waiting


async def test_audits_that_fail_again_and_again_stop_nobody() -> None:
    async with pool(Moody(then=500), retries=0) as opened:
        for _ in range(3 * LEAST_FAILURES):
            with pytest.raises(UpstreamRefused):
                await opened(msgspec.structs.replace(ask(), awaited=False))
        assert opened.state()[0]["breaker"] == "closed"


async def test_a_client_that_goes_away_while_it_tries_blocks_nobody() -> None:
    clock, big = Clock(), Moody(*[500] * LEAST_FAILURES, 5.0)
    async with pool(big, retries=0, clock=clock) as opened:
        for _ in range(LEAST_FAILURES):
            with pytest.raises(UpstreamRefused):
                await opened(ask())
        clock.ahead = OPEN_S
        trying = asyncio.ensure_future(opened(ask()))
        await asyncio.sleep(0.1)
        trying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await trying
        assert (await opened(ask())).text == "HELLO"


async def test_one_that_has_enough_for_now_is_asked_last() -> None:
    busy, other = Moody(then=429, retry_after="30"), Moody()
    async with pool(busy, other, key="sk-1") as opened:
        for _ in range(30):
            assert (await opened(ask())).by == "big:m1"
        assert opened.state()[0]["rests"]
        assert opened.state()[0]["breaker"] == "closed"
    assert len(busy.bodies) == 1
    async with pool(busy, other) as opened:  # the callers' own keys: what one has used up is not the others' fault
        for _ in range(30):
            await opened(ask())
        assert not opened.state()[0]["rests"]
    assert len(busy.bodies) > 2


async def test_one_models_failures_do_not_stop_others_behind_the_same_url() -> None:
    broken, sound = Moody(then=500), Moody()

    async def either(http: HttpRequest) -> Response:
        asked = msgspec.json.decode(await http.body())["model"]
        return await (broken if asked == "broken" else sound)._chat(http)

    with serving(Starlette(routes=[Route("/v1/chat/completions", either, methods=["POST"])])) as url:
        opened = Pool([UpstreamSettings(ref=f"{url}/v1", retries=0)], policy=QUICK)
        for _ in range(LEAST_FAILURES):
            with pytest.raises(UpstreamRefused):
                await opened(ask(model="broken"))
        with pytest.raises(UpstreamUnavailable, match="left alone"):
            await opened(ask(model="broken"))
        assert (await opened(ask(model="sound"))).text == "HELLO"
        assert opened.state()[0]["breaker"] == "closed"
        await opened.close()
    assert len(broken.bodies) == LEAST_FAILURES


async def test_a_stream_that_breaks_off_is_never_begun_anew() -> None:
    big, other = Moody(then="break"), Moody()
    async with pool(big, other, more=RANKS) as opened:
        answer = await opened(ask(stream=True))
        assert answer.by == "big:m0"
        with pytest.raises(UpstreamGarbled, match="broke off"):
            await read_out(answer)
        assert opened.state()[0]["errors"] == 1
        assert (len(big.bodies), len(other.bodies)) == (1, 0)
        for _ in range(LEAST_FAILURES - 1):  # what always breaks off is a failure, too
            with pytest.raises(UpstreamGarbled):
                await read_out(await opened(ask(stream=True)))
        assert opened.state()[0]["breaker"] == "open"
        assert b"[DONE]" in await read_out(await opened(ask(stream=True)))


@pytest.mark.parametrize("stream", [False, True])
async def test_a_slow_one_is_overtaken_when_there_is_a_hurry(stream: bool) -> None:
    slow, quick = Moody(then=3.0), Moody()
    async with pool(slow, quick, more=RANKS) as opened:
        started = time.perf_counter()
        answer = await opened(ask(stream=stream, needs=Needs(latency_ms=1_000.0)))
        assert answer.by == "big:m1"
        assert not stream or b"[DONE]" in await read_out(answer)
        assert 0.5 <= time.perf_counter() - started < 1.0
        for _ in range(100):
            if slow.given_up:
                break
            await asyncio.sleep(0.02)
        assert slow.given_up == 1
        state = opened.state()[0]
        assert (state["breaker"], state["errors"]) == ("closed", 0)


async def test_hedging_waits_for_as_long_as_an_answer_usually_takes() -> None:
    first, second = Moody(*[0.05] * 2 * SORT_EVERY, then=2.0), Moody()
    async with pool(first, second, more=({"hedge": True}, {"rank": 1})) as opened:
        for _ in range(2 * SORT_EVERY):
            await opened(ask())
        assert len(second.bodies) < SORT_EVERY, "few are slower than what is usual"
        before, started = len(second.bodies), time.perf_counter()
        assert (await opened(ask())).by == "big:m1"
        assert time.perf_counter() - started < 1.5
        assert len(second.bodies) == before + 1


@pytest.mark.parametrize("stream", [False, True])
async def test_the_one_that_is_given_up_wants_its_money_for_the_prompt(stream: bool) -> None:
    more = ({"price_in": 1e6, "price_out": 5e6}, {"rank": 1, "price_in": 2e6, "price_out": 3e6})
    async with pool(Moody(then=2.0), Moody(), more=more) as opened:
        request = ask(stream=stream, needs=Needs(latency_ms=400.0))
        answer = await opened(request)
        if answer.pieces is not None:
            assert [piece async for piece in answer.pieces]
    assert answer.by == "big:m1"
    assert (answer.prices, answer.given_up) == ((2e6, 3e6), ((1e6, 5e6),))
    used = meter(request, answer, Tariff())
    assert (used.prompt_tokens, used.completion_tokens) == (22, 3)
    assert used.cost == pytest.approx(11 * 2 + 3 * 3 + 11 * 1)
    assert used.energy.joules > estimate_remote_joules(11, 3).joules
    assert not used.energy.measured


@pytest.mark.parametrize("stream", [False, True])
async def test_the_seconds_are_those_that_the_caller_waits(stream: bool) -> None:
    slow = {"first_token_s": 0.5, "retries": 0}
    async with pool(Moody(then=3.0), Moody(), more=(slow, {"rank": 1})) as opened:
        answer = await opened(ask(stream=stream))
        if answer.pieces is not None:
            await read_out(answer)
        alone = await opened(ask(model="m1", stream=stream))
        if alone.pieces is not None:
            await read_out(alone)
    assert answer.by == "big:m1"
    assert 0.5 <= answer.usage.seconds < 2.0
    assert answer.usage.completion_tokens == 3
    assert alone.usage.seconds < 0.4


async def test_the_seconds_of_a_hedged_request_are_those_of_both() -> None:
    async with pool(Moody(then=3.0), Moody(), more=RANKS) as opened:
        answer = await opened(ask(needs=Needs(latency_ms=1_000.0)))
    assert answer.by == "big:m1"
    assert 0.5 <= answer.usage.seconds < 1.0


@pytest.mark.parametrize(
    ("error", "by"),
    [
        ({"message": "slow down", "type": "rate_limit_error"}, "big:m1"),
        ({"message": "too long", "type": "invalid_request_error"}, None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_with_status_200_is_a_refusal_like_others(error: Any, by: str | None, stream: bool) -> None:
    said = msgspec.json.encode({"error": error})
    reply = says(head_of(length=len(said)), said)
    if stream:
        reply = says(b"data: " + said + b"\n\n", head=head_of("text/event-stream"))
    with raw_server(reply) as url:
        async with pool(url, Moody(), more=({"retries": 0}, {"rank": 1})) as opened:
            if by is not None:
                answer = await opened(ask(stream=stream))
                assert answer.by == by
                return
            with pytest.raises(UpstreamRefused) as caught:
                await opened(ask(stream=stream))
            assert (caught.value.status, caught.value.body) == (400, said)


async def test_without_a_hurry_nobody_is_asked_twice() -> None:
    first, second = Moody(then=0.05), Moody()
    async with pool(first, second, more=RANKS) as opened:
        for _ in range(10):
            assert (await opened(ask())).by == "big:m0"
    assert second.bodies == []


async def test_what_takes_too_long_ends_in_time() -> None:
    async with pool(Moody(then=2.0), Moody(then=2.0)) as opened:
        for more in ({}, {"stream": True}):
            started = time.perf_counter()
            with pytest.raises(UpstreamTimeout, match="within the 200 ms that the request allows"):
                await opened(ask(needs=Needs(latency_ms=200.0), **more))
            assert time.perf_counter() - started < 1.0
        with pytest.raises(UpstreamTimeout):
            await opened(ask(needs=Needs(latency_ms=0.0)))


async def test_no_retry_lasts_longer_than_there_is_time() -> None:
    big = Moody(then=503, retry_after="1")
    async with pool(big, retries=5) as opened:
        started = time.perf_counter()
        with pytest.raises(UpstreamRefused):
            await opened(ask(needs=Needs(latency_ms=500.0)))
        assert time.perf_counter() - started < 0.5
    assert len(big.bodies) == 1


async def test_needs_choose_among_the_upstreams() -> None:
    far, near = Moody(), Moody()
    more = ({"site": False, "price_in": 10.0, "price_out": 10.0}, {"price_in": 99.0, "price_out": 99.0, "rank": 1})
    async with pool(far, near, more=more) as opened:
        assert (await opened(ask())).by == "big:m0"
        assert (await opened(ask(needs=Needs(privacy="site")))).by == "big:m1"
        with pytest.raises(NeedsUnmet, match="node"):
            await opened(ask(needs=Needs(privacy="device")))
        with pytest.raises(NeedsUnmet, match="cheapest"):
            await opened(ask(needs=Needs(max_cost=0.001)))
        with pytest.raises(NeedsUnmet, match="cheapest"):
            await opened(ask(needs=Needs(max_cost=0.02, privacy="site")))
    assert (len(far.bodies), len(near.bodies)) == (1, 1), "a request that may not leave the site never did"


async def test_an_answer_costs_what_its_upstream_takes() -> None:
    async with pool(Moody(), Moody(), more=({"price_in": 1e6, "price_out": 2e6}, {"rank": 1})) as opened:
        tariff = Tariff(price_in=5e6, price_out=5e6)
        priced, plain = await opened(ask(model="m0")), await opened(ask(model="m1"))
        assert meter(ask(), priced, tariff).cost == pytest.approx(11 + 2 * 3)
        assert meter(ask(), plain, tariff).cost == pytest.approx(5 * 14)


async def test_names_route() -> None:
    first, second, third = Moody(), Moody(), Moody()
    more = ({"serves": ("shared", "mine")}, {"rank": 1, "serves": ("shared",)}, {"rank": 2})
    async with pool(first, second, third, more=more, retries=0) as opened:
        assert opened.models == ("m0", "m1", "m2", "mine", "shared", "puhui")
        assert (await opened(ask(model="m2"))).by == "big:m2"
        assert third.bodies[-1]["model"] == "m2"
        assert (await opened(ask(model="shared"))).by == "big:m0"
        assert first.bodies[-1]["model"] == "m0"
        first.then = second.then = 503
        with pytest.raises(UpstreamUnavailable, match="none of 2"):
            await opened(ask(model="shared"))
        with pytest.raises(UpstreamRefused):
            await opened(ask(model="mine"))
        assert (await opened(ask())).by == "big:m2"


async def test_an_upstream_without_a_model_takes_any_or_those_that_it_serves() -> None:
    first, second = Moody(), Moody()
    with serving(first.app) as any_url, serving(second.app) as some_url:
        some = UpstreamSettings(ref=f"{some_url}/v1", serves=("b", "c"))
        opened = Pool([some])
        assert opened.models == ("b", "c", "puhui")
        assert (await opened(ask(model="c"))).by == "big:c"
        assert second.bodies[-1]["model"] == "c"
        with pytest.raises(UnknownModel):
            await opened(ask(model="d"))
        await opened.close()
        opened = Pool([UpstreamSettings(ref=f"{any_url}/v1"), msgspec.structs.replace(some, rank=-1)])
        assert opened.models == ()
        for model in ("b", "d", "puhui"):
            await opened(ask(model=model))
        await opened.close()
    assert [body["model"] for body in first.bodies] == ["d"]
    assert [body["model"] for body in second.bodies] == ["c", "b", "puhui"]


async def test_other_paths_go_the_same_ways() -> None:
    down, big = nobody(), Moody()
    async with pool(down, big, more=RANKS, retries=0) as opened:
        reply = await opened.forward("/chat/completions", ask())
        assert (reply.status, reply.by) == (200, "big:m1")
        assert msgspec.json.decode(reply.body or b"")["choices"][0]["message"]["content"] == "HELLO"
        streamed = await opened.forward("/chat/completions", ask(stream=True))
        assert streamed.pieces is not None
        assert b"".join([piece async for piece in streamed.pieces]).endswith(b"data: [DONE]\n\n")
        with pytest.raises(NeedsUnmet):
            await opened.forward("/embeddings", ask(needs=Needs(privacy="device")))
        big.then = "break"
        broken = await opened.forward("/chat/completions", ask(stream=True))
        assert broken.pieces is not None
        with pytest.raises(UpstreamGarbled):
            assert [piece async for piece in broken.pieces]


async def test_many_at_once_while_one_flaps() -> None:
    flapping, steady = Moody(*[0.0, 503, "break at once"] * 60), Moody(then=0.01)
    async with pool(flapping, steady, retries=3) as opened:
        answers = await asyncio.gather(*(opened(ask(f"q{n}")) for n in range(300)))
    assert [answer.text for answer in answers] == [f"Q{n}" for n in range(300)]
    assert 0 < sum(answer.by == "big:m0" for answer in answers) < 300
