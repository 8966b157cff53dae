"""Reading OpenAI's JSON and server-sent events, however they are cut into pieces."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puhui.models.wire import decode_completion, error_in, event_data, split_events, status_in, usage_of
from serving import chunk, stream_of

WHOLE = b"".join([*stream_of("日本 and 😀"), b": keep-alive\n\n", b"event: x\ndata: 1\ndata: 2\n\n"])


def split(pieces: Iterable[bytes], limit: int = 1 << 20) -> list[bytes]:
    async def collect() -> list[bytes]:
        async def come() -> AsyncIterator[bytes]:
            for piece in pieces:
                yield piece

        return [event async for event in split_events(come(), limit)]

    return asyncio.run(collect())


EVENTS = split([WHOLE])


def test_events_in_one_piece() -> None:
    assert b"".join(EVENTS) == WHOLE
    assert all(event.endswith(b"\n\n") for event in EVENTS)
    assert len(EVENTS) == len("日本 and 😀") + 5


@pytest.mark.parametrize("data", [WHOLE, WHOLE.replace(b"\n", b"\r\n")], ids=["LF", "CRLF"])
def test_events_split_at_every_byte(data: bytes) -> None:
    for cut in range(len(data) + 1):
        assert split([data[:cut], data[cut:]]) == EVENTS, f"cut at byte {cut}"
    assert split([data[n : n + 1] for n in range(len(data))]) == EVENTS


@given(st.booleans(), st.lists(st.integers(0, len(WHOLE) * 2), max_size=12))
def test_events_split_anywhere(crlf: bool, cuts: list[int]) -> None:
    data = WHOLE.replace(b"\n", b"\r\n") if crlf else WHOLE
    bounds = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    assert split([data[a:b] for a, b in itertools.pairwise(bounds)]) == EVENTS


@given(st.lists(st.binary(max_size=12)))
def test_rubbish_is_split_without_loss(pieces: list[bytes]) -> None:
    events = split(pieces)
    assert all(event.endswith(b"\n\n") and event.strip() for event in events)
    assert b"".join(events).split() == b"".join(split([b"".join(pieces)])).split()


@pytest.mark.parametrize("rest", [b"data: {", b'data: {"a": 1', b"data: [DO", b"data: 12", b": comment", b"", b"\n"])
def test_a_last_event_without_its_end_is_not_given_where_it_may_be_cut(rest: bytes) -> None:
    assert split([chunk({"content": "a"}), rest]) == [chunk({"content": "a"})]


@pytest.mark.parametrize("rest", [b"data: [DONE]", b"data: [DONE]\r\n", b'event: x\ndata: {"a": 1}\n', b"data:{}\r"])
def test_a_last_event_without_its_end_is_given_where_it_is_whole(rest: bytes) -> None:
    *_, last = split([chunk({"content": "a"}), rest])
    assert last == rest.strip() + b"\n\n"


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_a_long_event_takes_time_in_proportion(line_end: bytes) -> None:
    def seconds(pieces: int) -> float:
        started = time.process_time()
        (event,) = split([b"data: ", *[b"x" * 65_536] * pieces, line_end * 2], limit=1 << 30)
        assert len(event) == 65_536 * pieces + 8
        return time.process_time() - started

    seconds(16)
    assert seconds(512) < 40 * max(seconds(64), 0.002)  # looked through again for each piece it would be 64 times
    assert seconds(512) < 1.0


def test_an_event_without_end() -> None:
    with pytest.raises(ValueError, match="more than 100 bytes"):
        split([b"data: " + b"x" * 60, b"x" * 60], limit=100)


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b"data: [DONE]\n\n", b"[DONE]"),
        (b"data:[DONE]\n\n", b"[DONE]"),
        (b"data: [DONE] \n\n", b"[DONE]"),
        (b": a\nid: 3\ndata: 1\ndata: 2\n\n", b"1\n2"),
        (b": only a comment\n\n", b""),
        (b"dataset: 1\n\n", b""),
    ],
)
def test_the_data_of_an_event(event: bytes, data: bytes) -> None:
    assert event_data(event) == data


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ("null", (0, 0)),
        ("{}", (0, 0)),
        ('{"prompt_tokens": 5, "completion_tokens": null}', (5, 0)),
        ('{"prompt_tokens": 5.0, "completion_tokens": 2}', (5, 2)),
        ('{"prompt_tokens": -7, "completion_tokens": 1e300}', (0, 2**53)),
        (f'{{"prompt_tokens": {10**40}}}', (2**53, 0)),
    ],
)
def test_token_counts_of_all_kinds(usage: str, tokens: tuple[int, int]) -> None:
    found = usage_of(decode_completion(f'{{"choices": [], "usage": {usage}}}'.encode()), 1.5)
    assert (found.prompt_tokens, found.completion_tokens) == tokens
    assert found.seconds == 1.5


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b'{"error": {"message": "no"}}', {"message": "no"}),
        (b'{"error": "no", "choices": []}', "no"),
        (b'{"error": {"message": "no"}, "choices": null, "object": "error"}', {"message": "no"}),
        (b'{"error": null}', None),
        (b'{"error": {}}', None),
        (b'{"error": {"code": 0}, "data": []}', None),
        (b'{"error": {"code": "x"}, "output": [], "status": "failed"}', None),
        (b'{"error": {"code": "x"}, "choices": [{}]}', None),
        (b'["error"]', None),
        (b'{"error": "\xff"}', None),
        (b"{}", None),
    ],
)
def test_an_error_in_the_place_of_an_answer(body: bytes, error: Any) -> None:
    assert error_in(body) == error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ("no", 502),
        ({"message": "no"}, 502),
        ({"code": 404}, 404),
        ({"code": 529, "type": "invalid_request_error"}, 529),
        ({"code": 200}, 502),
        ({"code": "429"}, 429),
        ({"code": True}, 502),
        ({"code": "context_length_exceeded", "type": "invalid_request_error"}, 400),
        ({"code": "rate_limit_exceeded", "type": "tokens"}, 429),
        ({"type": "rate_limit_error"}, 429),
        ({"type": "insufficient_quota"}, 429),
        ({"type": ["odd"], "code": {"odd": 1}}, 502),
    ],
)
def test_the_status_that_fits_an_error(error: Any, status: int) -> None:
    assert status_in(error) == status


def test_the_report_of_another_node_is_read() -> None:
    body = (
        b'{"choices": [], "puhui": {"energy": {"joules": 3, "low": 1, "high": 9, "source": "measured"}, "cpu_ms": 20}}'
    )
    usage = usage_of(decode_completion(body), 0.0)
    assert (usage.energy.joules, usage.energy.low, usage.energy.high, usage.energy.measured) == (3, 1, 9, True)
    assert usage.cpu_seconds == 0.02


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ('{"content": "a"}', "a"),
        ('{"content": ""}', ""),
        ('{"content": null}', None),
        ('{"content": "a", "tool_calls": []}', "a"),
        ('{"content": "a", "tool_calls": null}', "a"),
        ('{"content": "a", "tool_calls": [{"id": "1"}]}', None),
        ('{"content": "a", "function_call": {"name": "f"}}', None),
        ('{"content": [{"type": "text", "text": "a"}]}', None),
        ('{"content": "a", "reasoning_content": "because"}', "a"),
    ],
)
def test_what_counts_as_text(message: str, text: str | None) -> None:
    found = decode_completion(f'{{"choices": [{{"message": {message}}}]}}'.encode())
    assert found.choices[0].message.text == text
