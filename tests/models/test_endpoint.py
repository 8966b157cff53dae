"""A big model behind HTTP: what it says, and every way in which it can fail to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from asked import answer, ask, endpoint, stream
from puhui.core.errors import (
    SettingsError,
    UpstreamError,
    UpstreamGarbled,
    UpstreamRefused,
    UpstreamUnavailable,
)
from puhui.models.endpoint import open_reference
from serving import BigModel, chunk, head_of, raw_server, says, serving, stream_of, whole

DONE = b"data: [DONE]\n\n"


async def test_a_whole_answer(big: BigModel) -> None:
    found = await answer(big.url, ask(authorization="Bearer mine"))
    assert found.text == "HELLO"
    assert found.body == whole("HELLO")
    assert found.by == "big:m"
    assert [(step.name, step.taken) for step in found.path] == [("big:m", True)]
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (11, 3)
    assert found.usage.seconds > 0
    assert big.raw == [ask().body]
    assert big.headers[0]["authorization"] == "Bearer mine"
    assert big.headers[0]["x-request-id"] == "req_1"


async def test_its_own_model_and_key_replace_the_callers(big: BigModel) -> None:
    found = await answer(big.url, ask(authorization="Bearer mine"), model="other", key="sk-1")
    assert found.by == "big:other"
    assert big.bodies[0] == msgspec.json.decode(ask().body) | {"model": "other"}
    assert big.headers[0]["authorization"] == "Bearer sk-1"


async def test_a_streamed_answer(big: BigModel) -> None:
    pieces, found = await stream(big.url, ask("héllo 世界", stream=True))
    assert b"".join(pieces) == b"".join(stream_of("HÉLLO 世界"))
    assert found.text == "HÉLLO 世界"
    assert found.usage.completion_tokens == 3


async def test_likelihoods_are_asked_for_and_taken_out_again() -> None:
    model = BigModel(logprobs=True)
    with serving(model.app) as url:
        found = await answer(f"{url}/v1", ask(alternatives=True))
        plain = await answer(f"{url}/v1", ask())
    assert model.bodies[0]["top_logprobs"] == 20
    assert model.bodies[0]["unknown"] == {"to": ["puhui"]}
    assert found.alternatives == (("HELL", -0.1), ("other", -2.5))
    assert msgspec.json.decode(found.body or b"") == msgspec.json.decode(plain.body or b"")
    assert "logprobs" not in model.bodies[1]
    assert plain.alternatives == ()


async def test_a_model_that_refuses_likelihoods_is_asked_for_them_once() -> None:
    model = BigModel(logprobs=None)
    with serving(model.app) as url:
        async with endpoint(f"{url}/v1") as big:
            assert [(await big(ask(alternatives=True))).text for _ in range(3)] == ["HELLO"] * 3
    assert ["logprobs" in body for body in model.bodies] == [True, False, False, False]


async def test_whether_likelihoods_are_told_is_the_models_own_where_any_name_passes() -> None:
    model = BigModel(logprobs=None)
    with serving(model.app) as url:
        async with endpoint(f"{url}/v1") as big:
            await big(ask(alternatives=True))
            model.logprobs = True
            other = msgspec.structs.replace(ask(alternatives=True), model="another")
            assert (await big(other)).alternatives
            assert not (await big(ask(alternatives=True))).alternatives


async def test_a_request_that_is_refused_for_another_reason_costs_no_likelihoods() -> None:
    model = BigModel(logprobs=True)
    with serving(model.app) as url:
        async with endpoint(f"{url}/v1") as big:
            model.refuse = 400
            with pytest.raises(UpstreamRefused):
                await big(ask(alternatives=True))
            model.refuse = 200
            assert (await big(ask(alternatives=True))).alternatives
    assert ["logprobs" in body for body in model.bodies] == [True, False, True]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503])
async def test_a_refusal_is_passed_on(big: BigModel, status: int, streaming: bool) -> None:
    big.refuse = status
    with pytest.raises(UpstreamRefused) as caught:
        await answer(big.url, ask(stream=streaming))
    assert caught.value.status == status
    assert caught.value.body == b'{"error":{"message":"not now"}}'
    assert caught.value.retry_after == "7"
    assert len(big.bodies) == 1


async def test_a_redirect_is_not_followed() -> None:
    head = b"HTTP/1.1 307 Temporary Redirect\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n"
    with raw_server(says(head)) as url, pytest.raises(UpstreamRefused) as caught:
        await answer(url)
    assert caught.value.status == 307


async def test_other_paths_are_forwarded_as_they_are() -> None:
    seen: list[tuple[str, bytes, str]] = []

    async def other(http: HttpRequest) -> Response:
        seen.append((http.url.path, await http.body(), http.headers["content-type"]))
        if seen[-1][1].startswith(b"{") and msgspec.json.decode(seen[-1][1]).get("stream"):
            return Response(b"event: a\ndata: 1\n\nevent: b\ndata: 2\n\n", media_type="text/event-stream")
        kept = {"openai-version": "2020", "set-cookie": "a=b", "x-request-id": "theirs"}
        return Response(b'{"object":"list", "odd":1.50}', 201, kept, media_type="application/json")

    with serving(Starlette(routes=[Route("/v1/{path:path}", other, methods=["POST"])])) as url:
        async with endpoint(f"{url}/v1", model="other") as big:
            reply = await big.forward("/embeddings", ask())
            assert (reply.status, reply.body, reply.by) == (201, b'{"object":"list", "odd":1.50}', "big:other")
            assert reply.content_type == "application/json"
            assert reply.headers == (("openai-version", "2020"), ("x-upstream-request-id", "theirs"))
            streamed = await big.forward("/responses", ask(stream=True))
            assert streamed.body is None
            assert streamed.pieces is not None
            said = b"".join([piece async for piece in streamed.pieces])
            assert said == b"event: a\ndata: 1\n\nevent: b\ndata: 2\n\n"
            form = msgspec.structs.replace(ask(), body=b"--x--", headers=(("content-type", "multipart/x; boundary=x"),))
            await big.forward("/audio/transcriptions", form)
    assert [path for path, _, _ in seen] == ["/v1/embeddings", "/v1/responses", "/v1/audio/transcriptions"]
    assert msgspec.json.decode(seen[0][1]) == msgspec.json.decode(ask().body) | {"model": "other"}
    assert seen[2][1:] == (b"--x--", "multipart/x; boundary=x")


async def test_what_cannot_be_forwarded() -> None:
    model = BigModel()
    model.refuse = 429
    with serving(model.app) as url:
        async with endpoint(f"{url}/v1") as big:
            with pytest.raises(UpstreamRefused) as caught:
                await big.forward("/chat/completions", ask())
            assert (caught.value.status, caught.value.retry_after) == (429, "7")
    with raw_server(says(head=head_of("text/event-stream"))) as url, pytest.raises(UpstreamGarbled):
        async with endpoint(url) as big:
            await big.forward("/responses", ask(stream=True))
    with raw_server(says(b"event: a\n", head=head_of("text/event-stream", length=100))) as url:
        async with endpoint(url) as big:
            reply = await big.forward("/responses", ask(stream=True))
            assert reply.pieces is not None
            with pytest.raises(UpstreamGarbled, match="broke off"):
                assert [piece async for piece in reply.pieces]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>busy</html>",
        b"[]",
        b"null",
        b"{}",
        b'{"choices": []}',
        b'{"choices": null}',
        b'{"choices": [{"message": {"content": 5}}]}',
        b'{"error": null}',
        b'{"choices": [{"message": {"content": "\xff"}}]}',
        b'{"choices": [{"message": {"content": "a"}}], "x": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        whole("hello")[:-20],
    ],
    ids=lambda body: body[:30].decode(errors="replace"),
)
async def test_what_is_no_completion(body: bytes) -> None:
    for alternatives in (False, True):
        with raw_server(says(head_of(length=len(body)), body)) as url, pytest.raises(UpstreamGarbled):
            await answer(url, ask(alternatives=alternatives))


async def test_what_is_not_read_passes_as_it_is() -> None:
    odd = whole("hi")[:-1] + b',"big":123456789012345678901234567890,"bytes":"\xff","deep":[[[1.50]]]}'
    with raw_server(says(head_of(length=len(odd)), odd)) as url:
        assert (await answer(url)).body == odd
        assert (await answer(url, ask(alternatives=True))).body == odd


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (says(b""), UpstreamUnavailable),
        (says(b"SSH-2.0-OpenSSH_9\r\n"), UpstreamGarbled),
        (says(b"HTTP/1.1 200 OK\r\ncontent-le"), UpstreamUnavailable),
        (says(head_of(length=500), whole("hi")), UpstreamGarbled),
        (says(head_of() + b"transfer-encoding: chunked\r\n"), UpstreamError),
        (says(head_of().replace(b"\r\n\r\n", b"\r\ncontent-encoding: gzip\r\n\r\n"), b"not gzip"), UpstreamGarbled),
    ],
    ids=["nothing", "another protocol", "half a head", "half a body", "half a head again", "bad gzip"],
)
@pytest.mark.parametrize("streaming", [False, True])
async def test_half_of_everything(reply: Any, error: type[Exception], streaming: bool) -> None:
    with raw_server(reply) as url, pytest.raises(error):
        await (stream(url) if streaming else answer(url))


def half_streams() -> Iterator[tuple[str, list[bytes]]]:
    events = list(stream_of("hi"))
    yield "nothing", []
    yield "no end", events[:-1]
    yield "half an event", [*events[:2], events[2][:20]]
    yield "no finish", [events[1], DONE]
    yield "rubbish", [events[1], b"data: {oops\n\n", DONE]


@pytest.mark.parametrize(("name", "events"), list(half_streams()), ids=lambda v: v if isinstance(v, str) else "")
async def test_half_a_stream(name: str, events: list[bytes]) -> None:
    seen: list[bytes] = []
    with raw_server(says(*events, head=head_of("text/event-stream"))) as url:
        async with endpoint(url) as big:
            with pytest.raises(UpstreamGarbled):  # noqa: PT012 - what came before it counts
                found = await big(ask(stream=True))
                assert found.pieces is not None
                async for piece in found.pieces:
                    seen.append(piece)
    assert DONE not in seen
    assert bool(seen) == (name != "nothing")


TOO_LONG = {"message": "context length exceeded: hunter2", "type": "invalid_request_error", "code": "too_long"}
ERRORS: list[tuple[Any, int]] = [(TOO_LONG, 400), ({"message": "slow down", "code": 429}, 429), ("overloaded", 502)]


def an_error(error: Any, **more: Any) -> bytes:
    return msgspec.json.encode({"error": error} | more)


@pytest.mark.parametrize(("error", "status"), ERRORS)
@pytest.mark.parametrize("more", [{}, {"object": "error", "choices": []}], ids=["alone", "with choices"])
@pytest.mark.parametrize("asked", ["chat", "stream", "stream gets JSON", "embeddings", "responses"])
async def test_an_error_in_place_of_an_answer_is_a_refusal(
    error: Any, status: int, more: dict[str, Any], asked: str
) -> None:
    body = an_error(error, **more)
    reply = says(head_of(length=len(body)), body)
    if asked in ("stream", "responses"):
        reply = says(b"event: error\r\ndata: " + body + b"\r\n\r\n", DONE, head=head_of("text/event-stream"))
    with raw_server(reply) as url:
        async with endpoint(url) as big:
            request = ask(stream="stream" in asked or asked == "responses")
            with pytest.raises(UpstreamRefused) as caught:
                await (big.forward(f"/{asked}", request) if asked in ("embeddings", "responses") else big(request))
    assert caught.value.status == status
    assert msgspec.json.decode(caught.value.body) == {"error": error}
    assert "hunter2" not in str(caught.value), "messages are logged"


@pytest.mark.parametrize(("error", "status"), ERRORS)
@pytest.mark.parametrize("more", [{}, {"choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}]}])
async def test_a_stream_that_an_error_ends(error: Any, status: int, more: dict[str, Any]) -> None:
    events = [*list(stream_of("hi"))[:2], b"data: " + an_error(error, **more) + b"\n\n", DONE]
    seen: list[bytes] = []
    with raw_server(says(*events, head=head_of("text/event-stream"))) as url:
        async with endpoint(url) as big:
            found = await big(ask(stream=True))
            assert found.pieces is not None
            with pytest.raises(UpstreamRefused) as caught:  # noqa: PT012 - what came before it counts
                async for piece in found.pieces:
                    seen.append(piece)
    assert seen == events[:2]
    assert (caught.value.status, msgspec.json.decode(caught.value.body)) == (status, {"error": error})
    assert "hunter2" not in str(caught.value)


async def test_a_failed_response_is_passed_on_as_it_is() -> None:
    body = b'{"object":"response","status":"failed","error":{"code":"server_error","message":"no"},"output":[]}'
    with raw_server(says(head_of(length=len(body)), body)) as url:
        async with endpoint(url) as big:
            assert (await big.forward("/responses", ask())).body == body


async def test_a_stream_whose_end_has_no_blank_line() -> None:
    events = list(stream_of("hi"))
    with raw_server(says(*events[:-1], DONE.strip(), head=head_of("text/event-stream"))) as url:
        pieces, found = await stream(url)
    assert pieces == events
    assert found.text == "hi"


async def test_a_stream_in_odd_clothes() -> None:
    events = [
        b": hello\r\n\r\n",
        chunk({"role": "assistant", "content": ""}).replace(b"\n", b"\r\n"),
        chunk({"content": "世"}).replace(b"\n", b"\r\n"),
        chunk({"content": "界", "tool_calls": []}),
        b": keep-alive\n\n",
        chunk({}, "stop"),
        b"data:[DONE]\r\n\r\n",
    ]
    data = b"".join(events)
    cut = data.index("世".encode()) + 1
    with raw_server(says(data[:cut], data[cut:-3], data[-3:], head=head_of("text/event-stream"), pause_s=0.02)) as url:
        pieces, found = await stream(url)
    assert found.text == "世界"
    assert pieces[-1] == DONE, "others know the end by exactly these bytes"
    assert pieces.count(DONE) == 1


@pytest.mark.parametrize(
    "delta", [{"tool_calls": [{"index": 0, "id": "1"}]}, {"function_call": {"name": "f"}}, {"content": [{"a": 1}]}]
)
async def test_a_stream_of_calls_is_no_text(delta: dict[str, Any]) -> None:
    events = [chunk({"role": "assistant", "content": "x"}), chunk(delta), chunk({}, "tool_calls"), DONE]
    with raw_server(says(*events, head=head_of("text/event-stream"))) as url:
        pieces, found = await stream(url)
    assert pieces == events
    assert found.text is None


async def test_asked_to_stream_it_does_not() -> None:
    reply, told = says(head_of(length=len(whole("hi"))), whole("hi")), "asked to stream but sent 'application/json'"
    with raw_server(reply) as url, pytest.raises(UpstreamGarbled, match=told):
        await answer(url, ask(stream=True))


@pytest.mark.parametrize(
    ("reference", "url", "model"),
    [
        ("openai:gpt-4o@https://api.openai.com/v1", "https://api.openai.com/v1", "gpt-4o"),
        ("openai:a/b:c@http://h:1/v1/", "http://h:1/v1", "a/b:c"),
        ("http://h:1/v1", "http://h:1/v1", None),
    ],
)
def test_references(reference: str, url: str, model: str | None) -> None:
    opened = open_reference(reference)
    assert (opened.url, opened.model) == (url, model)


@pytest.mark.parametrize("reference", ["", "gpt-4o", "openai:", "openai:m", "openai:@http://h", "openai:m@", "hf:x"])
def test_references_that_name_nothing(reference: str) -> None:
    with pytest.raises(SettingsError, match="names no big model"):
        open_reference(reference)
