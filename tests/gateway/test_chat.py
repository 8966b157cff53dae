"""Chat requests in, replies out: what is read, what is refused and by what name, what a reply carries."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puhui.core.answer import Answer, Energy, Step, Usage
from puhui.core.errors import InvalidRequest
from puhui.core.request import Request
from puhui.gateway.chat import headers_of, read_request, text_as_stream, whole_reply, with_report
from serving import chunk, stream_of, whole

ASKED: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
DONE = b"data: [DONE]\n\n"


def read(headers: dict[str, str] | None = None, **fields: Any) -> Request:
    return read_request(msgspec.json.encode(ASKED | fields), headers or {})


def answer(**more: Any) -> Answer:
    energy = Energy(2.0, 1.0, 4.0)
    usage = Usage(seconds=0.5, cpu_seconds=0.25, energy=energy, co2_g=0.1, cost=0.2, prompt_tokens=5)
    return Answer(
        by="expert:1", text="iot", confidence=0.98765, path=(Step("expert:1", 0.98765, True),), usage=usage, **more
    )


def test_what_is_read() -> None:
    request = read({"authorization": "Bearer x", "x-puhui-quality": "0.5"}, stream=True, metadata={"task": "t"})
    assert (request.model, request.task, request.stream, request.plain) == ("m", "t", True, True)
    assert request.messages[0].text == "hi"
    assert request.needs.quality == 0.5
    assert request.authorization == "Bearer x"
    assert msgspec.json.decode(request.body)["messages"] == ASKED["messages"]
    assert read().id != read().id


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 5}, "model"),
        ({"model": ["m"]}, "model"),
        ({"model": "m" * 201}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": {}}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": ["hi"]}, "messages"),
        ({"messages": [[]]}, "messages"),
        ({"messages": [{}]}, "messages"),
        ({"messages": [{"content": "hi"}]}, "messages"),
        ({"messages": [{"role": 1, "content": "hi"}]}, "messages"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages"),
        ({"messages": [{"role": "user", "content": ["hi"]}]}, "messages"),
        ({"messages": [{"role": "user", "content": {"text": "hi"}}]}, "messages"),
        ({"stream": "yes"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"stream": []}, "stream"),
        ({"metadata": "t"}, "metadata"),
        ({"metadata": []}, "metadata"),
        ({"metadata": {"task": ""}}, "metadata.task"),
        ({"metadata": {"task": 5}}, "metadata.task"),
        ({"metadata": {"task": "t" * 129}}, "metadata.task"),
    ],
)
def test_wrong_types_are_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest, match=param.split(".")[0]) as caught:
        read(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize("name", ["model", "messages"])
def test_what_is_missing_is_named(name: str) -> None:
    with pytest.raises(InvalidRequest, match="is missing") as caught:
        read_request(msgspec.json.encode({key: value for key, value in ASKED.items() if key != name}), {})
    assert caught.value.param == name


DEEP = b"[" * 100_000 + b"]" * 100_000


def with_field(name: bytes, value: bytes) -> bytes:
    return b'{"model": "m", "messages": [{"role": "user", "content": "hi"}], "' + name + b'": ' + value + b"}"


@pytest.mark.parametrize("field", [b"user", b"metadata", b"tools", b"temperature", b"n", b"nobody_knows", b"stream"])
@pytest.mark.parametrize(
    "value",
    [DEEP, b'"\xff"', b'"\\ud800"', b'"\\udc00 and more text"', b"{", b"1" * 6000],
    ids=lambda v: v[:12].decode("latin-1"),
)
def test_values_that_are_no_json_are_refused_in_any_field(field: bytes, value: bytes) -> None:
    body = with_field(field, value)
    try:
        request = read_request(body, {})
    except InvalidRequest:
        return
    # Fields that Puhui does not read may hold anything that the next one can take apart again.
    assert request.body == body
    assert field in (b"user", b"metadata")
    msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    body.decode()


@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"5", b"[]", b'"x"', b"{", b"\xff\xfe", b"\xef\xbb\xbf{}", b"{'a': 1}", b"{} {}", b"NaN", DEEP],
)
def test_bodies_that_are_no_object(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match=r"not a JSON object|is missing"):
        read_request(body, {})


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        read_request(body, {})


@pytest.mark.parametrize(("given_", "quality"), [("0", 0.0), ("1", 1.0), ("1.0", 1.0), (" 0.25 ", 0.25)])
def test_quality(given_: str, quality: float) -> None:
    assert read({"x-puhui-quality": given_}).needs.quality == quality


@pytest.mark.parametrize("given_", ["", "high", "-0.1", "1.1", "nan", "inf", "１.２"])
def test_quality_that_cannot_be(given_: str) -> None:
    with pytest.raises(InvalidRequest, match="x-puhui-quality"):
        read({"x-puhui-quality": given_})


@pytest.mark.parametrize(
    ("fields", "plain"),
    [
        ({}, True),
        ({"tools": []}, True),
        ({"tools": None, "n": None}, True),
        ({"tools": [{"type": "function"}]}, False),
        ({"functions": [{}]}, False),
        ({"tool_choice": "none"}, True),
        ({"tool_choice": "auto"}, False),
        ({"n": 1}, True),
        ({"n": 2}, False),
        ({"logprobs": False}, True),
        ({"logprobs": True}, False),
        ({"modalities": ["text"]}, True),
        ({"modalities": ["text", "audio"]}, False),
        ({"temperature": 0.3}, True),
    ],
)
def test_when_one_text_is_the_whole_answer(fields: dict[str, Any], plain: bool) -> None:
    assert read(**fields).plain is plain


def test_settings_are_what_may_change_an_answer() -> None:
    base = read().settings
    for neutral in ({"user": "u"}, {"stream": True}, {"seed": 4}, {"metadata": {"a": 1}}, {"model": "other"}):
        assert read(**neutral).settings == base
    for telling in (
        {"temperature": 0},
        {"max_tokens": 5},
        {"stop": ["\n"]},
        {"response_format": {"type": "json_object"}},
    ):
        assert read(**telling).settings != base
    assert read(response_format={"a": 1, "b": 2}).settings == read(response_format={"b": 2, "a": 1}).settings


def test_a_reply_made_from_text() -> None:
    reply = msgspec.json.decode(whole_reply(read(), answer()))
    assert reply["choices"][0]["message"] == {"role": "assistant", "content": "iot", "refusal": None}
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert reply["puhui"]["by"] == "expert:1"
    assert reply["puhui"]["energy"] == {"joules": 2.0, "low": 1.0, "high": 4.0, "source": "estimated"}
    assert reply["puhui"]["path"] == [{"name": "expert:1", "confidence": 0.98765, "taken": True}]
    assert (reply["puhui"]["cpu_ms"], reply["puhui"]["ms"]) == (250.0, 500.0)


def test_a_reply_of_the_big_model_is_its_own_but_for_one_field() -> None:
    sent = whole("HI")[:-1] + b',"precise":0.10000000000000000001,"odd":"\xff"}'
    reply = whole_reply(read(), answer(body=sent))
    assert reply.startswith(sent[:-1])
    assert b'"precise":0.10000000000000000001' in reply


@pytest.mark.parametrize("by", ["big:模型", "big:a\r\nset-cookie: x=1", "big:a\x00b", "big:\x7f é 100%"])
def test_headers_carry_any_name(by: str) -> None:
    named = answer()
    named.by = by
    headers = headers_of(read(), named)
    for value in headers.values():
        assert value.isascii()
        assert value.isprintable()
    plain = answer()
    plain.by = "big:org/gpt-4o:free"
    assert headers_of(read(), plain)["x-puhui-by"] == "big:org/gpt-4o:free"
    assert headers_of(read(), plain)["x-puhui-confidence"] == "0.9877"


def collect(pieces: AsyncIterator[bytes]) -> list[bytes]:
    async def run() -> list[bytes]:
        return [piece async for piece in pieces]

    return asyncio.run(run())


async def each(pieces: list[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def reported(pieces: list[bytes]) -> list[bytes]:
    return collect(with_report(read(), answer(), each(pieces)))


def test_text_as_a_stream() -> None:
    events = collect(text_as_stream(read(), answer()))
    assert events[-1] == DONE
    assert b'"content":"iot"' in events[0]


def without_report(piece: bytes) -> str:
    if not piece.startswith(b"data: {"):
        return piece.decode()
    fields = msgspec.json.decode(piece[5:])
    fields.pop("puhui", None)
    return json.dumps(fields, sort_keys=True)


STREAMS = {
    "usual": list(stream_of("hello")),
    "usage last": [*list(stream_of("hi"))[:-1], b'data: {"choices":[],"usage":{"prompt_tokens":1}}\n\n', DONE],
    "a comment before the end": [*list(stream_of("hi"))[:-1], b": ping\n\n", DONE],
    "comments between": [chunk({"content": "a"}), b": ping\n\n", chunk({}, "stop"), DONE],
    "no finish reasons": [b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'] * 3 + [DONE],
}


@pytest.mark.parametrize("name", STREAMS)
def test_the_last_event_of_a_stream_carries_the_report(name: str) -> None:
    given_ = STREAMS[name]
    out = reported(given_)
    assert out[-1] == DONE
    assert len(out) == len(given_)
    with_it = [piece for piece in out if b'"puhui"' in piece]
    assert len(with_it) == 1
    last = next(piece for piece in reversed(out[:-1]) if not piece.startswith(b":"))
    assert last in with_it
    assert msgspec.json.decode(last[5:])["puhui"]["by"] == "expert:1"
    assert sorted(map(without_report, out)) == sorted(map(without_report, given_))


def test_text_is_not_held_back() -> None:
    async def run() -> int:
        sent = 0

        async def slow() -> AsyncIterator[bytes]:
            nonlocal sent
            for piece in stream_of("hello"):
                sent += 1
                yield piece

        pieces = with_report(read(), answer(), slow())
        await anext(pieces)
        await anext(pieces)
        return sent

    assert asyncio.run(run()) == 2


def test_a_stream_that_breaks_off_has_no_report() -> None:
    assert reported(STREAMS["usual"][:-1]) == STREAMS["usual"][:-1]
