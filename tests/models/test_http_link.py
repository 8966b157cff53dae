"""The link to a big model: connections, times, headers, keys, addresses."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from asked import answer, ask, endpoint, stream
from puhui.core.errors import (
    InvalidRequest,
    SettingsError,
    UpstreamDenied,
    UpstreamError,
    UpstreamGarbled,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from puhui.core.request import Needs
from puhui.models.endpoint import Endpoint, open_reference
from puhui.models.http_link import Timeouts
from serving import BigModel, chunk, head_of, raw_server, says, serving, stream_of, whole

DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize("streaming", [False, True])
async def test_nobody_there(streaming: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(UpstreamUnavailable, match="cannot be reached"):
        await answer(f"http://127.0.0.1:{port}/v1", ask(stream=streaming))


@pytest.mark.parametrize("streaming", [False, True])
async def test_too_slow(streaming: bool) -> None:
    with raw_server(says(head_of(length=4) if not streaming else b"", pause_s=1.0)) as url:
        started = time.perf_counter()
        with pytest.raises(UpstreamTimeout, match="did not answer in time"):
            await answer(url, ask(stream=streaming), timeouts=Timeouts(first_token_s=0.2))
        assert time.perf_counter() - started < 0.9


async def test_a_stream_that_stalls() -> None:
    begun = head_of("text/event-stream") + chunk({"content": "a"})
    with raw_server(says(head=begun, pause_s=0.6)) as url, pytest.raises(UpstreamGarbled, match="broke off"):
        await stream(url, timeouts=Timeouts(first_token_s=0.3))


@pytest.mark.parametrize("streaming", [False, True])
async def test_bytes_that_come_for_ever_are_too_late_in_the_end(streaming: bool) -> None:
    """Each wait is short, and so is the first one; it is the whole that takes too long."""
    head = head_of("text/event-stream") if streaming else head_of(length=40)
    dripping = says(*[chunk({"content": "a"}) if streaming else b" "] * 40, head=head, pause_s=0.05)
    times = Timeouts(first_token_s=1.0, whole_s=0.3)
    with raw_server(dripping) as url:
        started = time.perf_counter()
        with pytest.raises(UpstreamError, match="broke off" if streaming else "did not answer in time"):
            await (stream(url, timeouts=times) if streaming else answer(url, timeouts=times))
        assert 0.25 < time.perf_counter() - started < 1.2
        started = time.perf_counter()
        hurried = ask(stream=streaming, needs=Needs(latency_ms=150.0))
        with pytest.raises(UpstreamError):  # a request may be in more of a hurry than the settings
            await (stream(url, hurried) if streaming else answer(url, hurried))
        assert 0.1 < time.perf_counter() - started < 1.0


def breaks_a_chunk(first: bytes, *, content_type: str, wait_s: float = 0.1) -> Callable[[socket.socket], None]:
    head = head_of(content_type).replace(b"\r\n\r\n", b"\r\ntransfer-encoding: chunked\r\n\r\n")
    return says(b"%x\r\n%s\r\n" % (len(first), first), b"XYZ\r\n", head=head, pause_s=wait_s)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("forwarded", [False, True])
async def test_a_chunk_that_is_broken_is_an_error_soon(streaming: bool, forwarded: bool) -> None:
    begun, kind = (chunk({"content": "a"}), "text/event-stream") if streaming else (b'{"choices":', "application/json")
    started = time.perf_counter()
    with raw_server(breaks_a_chunk(begun, content_type=kind)) as url:
        async with endpoint(url, timeouts=Timeouts(first_token_s=5.0, whole_s=5.0)) as big:
            with pytest.raises(UpstreamGarbled, match="closed in the middle"):  # noqa: PT012 - or while it is read
                request = ask(stream=streaming)
                reply = await (big.forward("/responses", request) if forwarded else big(request))
                assert reply.pieces is not None
                assert [piece async for piece in reply.pieces]
    assert time.perf_counter() - started < 3.0


async def test_a_chunk_that_breaks_while_nobody_reads_is_an_error_too() -> None:
    broken = breaks_a_chunk(chunk({"content": "a"}), content_type="text/event-stream", wait_s=0.05)
    with raw_server(broken) as url:
        async with endpoint(url) as big:
            found = await big(ask(stream=True))
            await asyncio.sleep(0.3)
            assert found.pieces is not None
            with pytest.raises(UpstreamGarbled, match="broke off its stream: Connection closed"):
                assert [piece async for piece in found.pieces]


async def test_what_broke_a_stream_off_is_always_named() -> None:
    dripping = says(*[chunk({"content": "a"})] * 20, head=head_of("text/event-stream"), pause_s=0.05)
    with raw_server(dripping) as url, pytest.raises(UpstreamGarbled, match="broke off its stream: TimeoutError"):
        await stream(url, timeouts=Timeouts(whole_s=0.3))


async def test_headers_without_a_first_event_are_no_answer() -> None:
    with raw_server(says(head=head_of("text/event-stream"), pause_s=1.0)) as url:
        started = time.perf_counter()
        with pytest.raises(UpstreamTimeout, match="no event of its stream"):
            await stream(url, timeouts=Timeouts(first_token_s=0.2))
        assert time.perf_counter() - started < 0.9


async def test_a_connection_that_is_not_made_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as deaf, contextlib.ExitStack() as kept:
        for _ in range(3):  # its queue is full: further connections are not answered
            waiting = kept.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(deaf.getsockname())
        with pytest.raises(UpstreamTimeout):
            await answer(
                f"http://127.0.0.1:{deaf.getsockname()[1]}/v1", timeouts=Timeouts(connect_s=0.2, first_token_s=30.0)
            )


@pytest.mark.parametrize("name", ["connect_s", "first_token_s", "whole_s"])
def test_timeouts_that_cannot_be(name: str) -> None:
    for value in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(SettingsError, match=name):
            Timeouts(**{name: value})


async def test_the_callers_headers_go_on_but_not_those_of_its_connection(big: BigModel) -> None:
    given = (
        ("openai-organization", "org-1"),
        ("x-trace", "世".encode().decode("latin-1")),
        ("api-key", "mine"),
        ("connection", "upgrade"),
        ("host", "elsewhere.example"),
        ("content-length", "3"),
        ("cookie", "a=b"),
        ("accept-encoding", "odd"),
        ("x-request-id", "theirs"),
    )
    await answer(big.url, ask(headers=given))
    await answer(big.url, ask(headers=given, authorization="Bearer mine"), key="sk-1")
    passed, with_own_key = big.headers
    assert passed["openai-organization"] == "org-1"
    assert passed["api-key"] == "mine"
    assert passed["x-request-id"] == "req_1"
    assert passed["host"].startswith("127.0.0.1:")
    assert "cookie" not in passed
    assert passed["accept-encoding"] != "odd"
    assert "api-key" not in with_own_key
    assert with_own_key["authorization"] == "Bearer sk-1"


async def test_a_connection_that_is_reset() -> None:
    def reset(connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")

    with raw_server(reset) as url, pytest.raises(UpstreamUnavailable):
        await answer(url)


async def test_a_packed_answer_is_unpacked() -> None:
    packed = gzip.compress(whole("hi"))
    head = head_of(length=len(packed)).replace(b"\r\n\r\n", b"\r\ncontent-encoding: gzip\r\n\r\n")
    with raw_server(says(head, packed)) as url:
        assert (await answer(url)).text == "hi"


async def test_as_many_embeddings_as_openai_gives_at_once_fit() -> None:
    one = b'{"object": "embedding", "index": 2047, "embedding": "%s"},' % (b"A" * (3072 * 4 * 4 // 3))
    body = one * 2048
    with raw_server(says(head_of(length=len(body)), body)) as url:
        async with endpoint(url) as big:
            reply = await big.forward("/embeddings", ask())
    assert reply.body == body


async def test_streams_share_a_connection() -> None:
    ports: list[int] = []
    model = BigModel()

    async def watched(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            ports.append(scope["client"][1])
        await model.app(scope, receive, send)

    with serving(watched) as url:  # type: ignore[arg-type]
        async with endpoint(f"{url}/v1") as big:
            for _ in range(4):
                found = await big(ask(stream=True))
                assert found.pieces is not None
                assert [piece async for piece in found.pieces][-1] == DONE
    assert len(set(ports)) == 1


async def test_a_stream_that_stays_open_after_its_end_delays_nobody() -> None:
    with raw_server(says(*stream_of("hi"), b"", head=head_of("text/event-stream"), pause_s=0.0)) as url:
        pieces, _ = await stream(url)
    assert pieces[-1] == DONE

    def linger(connection: socket.socket) -> None:
        connection.sendall(head_of("text/event-stream") + b"".join(stream_of("hi")))
        time.sleep(2.0)

    with raw_server(linger) as url:
        started = time.perf_counter()
        pieces, _ = await stream(url)
        assert time.perf_counter() - started < 1.0
    assert pieces[-1] == DONE


async def test_cookies_of_one_caller_are_not_sent_for_the_next() -> None:
    seen: list[str | None] = []

    async def chat(http: HttpRequest) -> Response:
        seen.append(http.headers.get("cookie"))
        return Response(whole("hi"), headers={"set-cookie": "session=1; Path=/"}, media_type="application/json")

    with serving(Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])])) as url:
        async with endpoint(f"{url}/v1") as big:
            await big(ask())
            await big(ask())
    assert seen == [None, None]


async def test_a_callers_key_that_cannot_be_passed_on(big: BigModel) -> None:
    with pytest.raises(InvalidRequest, match="authorization"):
        await answer(big.url, ask(authorization="Bearer clé"))


async def test_many_at_once(big: BigModel) -> None:
    async with endpoint(big.url) as asked:
        found = await asyncio.gather(*(asked(ask(f"q{n}")) for n in range(100)))
    assert [each.text for each in found] == [f"Q{n}" for n in range(100)]


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8000",
        "ftp://x/v1",
        "http://",
        "http:///v1",
        "http://h:99999/v1",
        "http://h:x/v1",
        "http://[::1",
        "http://\u200b/",
    ],
)
def test_urls_that_cannot_be(url: str) -> None:
    with pytest.raises(SettingsError, match="upstream URL"):
        Endpoint(url)


@pytest.mark.parametrize("path", ["/models/../files/x", "/models/%2e%2e/files", "/models/.%2E/x", "/./models", "/.."])
async def test_no_path_leads_out_of_the_base_url(big: BigModel, path: str) -> None:
    async with endpoint(big.url) as asked:
        with pytest.raises(InvalidRequest, match="segment of dots"):
            await asked.forward(path, ask())
    assert big.raw == []


@pytest.mark.parametrize(
    "reference",
    [
        "http://user:hunter2@127.0.0.1:1/v1",
        "openai:gpt-4o@https://hunter2@h/v1",
        "http://user:hunter2/x@h:y/v1",
        "http://user:hunter2@[::1/v1",
        "ftp://user:hunter2@h/v1",
        "user:hunter2@h",
    ],
)
def test_a_password_in_a_url_is_refused_and_not_shown(reference: str) -> None:
    with pytest.raises(SettingsError) as caught:
        open_reference(reference)
    assert "hunter2" not in str(caught.value)
    assert "--key-env" in str(caught.value) or "names no big model" in str(caught.value)
    assert caught.value.__cause__ is None


KEY = 'sk-own/key"0123456789'


@pytest.mark.parametrize(
    "words", [f"wrong key: {KEY}", json.dumps({"error": {"message": KEY}}), '{"error": "sk-own\\/key\\"0123456789"}']
)
@pytest.mark.parametrize("streaming", [False, True])
async def test_an_upstreams_words_do_not_hold_the_nodes_own_key(words: str, streaming: bool) -> None:
    head = head_of(length=len(words), status="400 Bad Request")
    with raw_server(says(head, words.encode())) as url, pytest.raises(UpstreamRefused) as caught:
        await answer(url, ask(stream=streaming), key=KEY)
    assert b"***" in caught.value.body
    assert b"0123456789" not in caught.value.body


@pytest.mark.parametrize("events", [0, 2], ids=["at once", "later"])
async def test_an_error_event_does_not_hold_the_nodes_own_key(events: int) -> None:
    for code in ("no_such_key", KEY, "sk-plain0123456789"):
        said = b"data: " + json.dumps({"error": {"message": f"wrong: {KEY}", "code": code}}).encode() + b"\n\n"
        with (
            raw_server(says(*list(stream_of("hi"))[:events], said, head=head_of("text/event-stream"))) as url,
            pytest.raises(UpstreamRefused) as caught,
        ):
            await stream(url, key=KEY if code == KEY else "sk-plain0123456789")
        assert (b"***" in caught.value.body) == (code != "no_such_key")
        assert code == "no_such_key" or "0123456789" not in str(caught.value)
        assert code != KEY or b"0123456789" not in caught.value.body


@pytest.mark.parametrize("status", ["401 Unauthorized", "403 Forbidden"])
async def test_a_refusal_of_the_nodes_own_key_is_not_the_callers(status: str) -> None:
    with raw_server(says(head_of(length=2, status=status), b"{}")) as url:
        with pytest.raises(UpstreamDenied, match="this node's own key"):
            await answer(url, key=KEY)
        with pytest.raises(UpstreamRefused) as caught:
            await answer(url, ask(authorization="Bearer theirs"))
    assert not isinstance(caught.value, UpstreamDenied)


def test_a_key_that_no_header_can_carry_is_refused_and_not_shown() -> None:
    for key in ("sk-secret\n", "sk-secret-é"):
        with pytest.raises(SettingsError) as caught:
            Endpoint("http://h/v1", key=key)
        assert "secret" not in str(caught.value)
    assert "sk-1" not in repr(Endpoint("http://h/v1", key="sk-1"))
