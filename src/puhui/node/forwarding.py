"""What is passed on as it is (embeddings, responses, legacy completions): metered, and nothing of it kept but its row.

No expert answers such a request and nothing is learned from it. As with any reply, its row is in the ledger before the
reply leaves; of a stream, before its last piece does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import msgspec

from puhui.core.answer import Answer, Step, Usage
from puhui.core.errors import (
    NeedsUnmet,
    UpstreamDenied,
    UpstreamError,
    UpstreamGarbled,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from puhui.core.request import Request
from puhui.models.endpoint import Forwarded
from puhui.models.http_link import MOST_BYTES
from puhui.models.wire import NOT_JSON, event_data, is_end, split_events

CLIENT_WENT_AWAY = 499


Forward = Callable[[str, Request], Awaitable[Forwarded]]
"""The reply to a request's body at a path under the base URL, as it came; without a body it is a GET."""
Record = Callable[[Answer, float | None], Awaitable[None]]
"""Writes the row of what was answered; told the seconds to a stream's first piece."""
Fail = Callable[[int, str, Answer | None, int], Coroutine[Any, Any, None]]
"""Writes the row of what was not: status, reason, what was begun, and how many events of a stream came before."""
Start = Callable[[Coroutine[Any, Any, None]], None]
"""Starts work that goes on when the client is gone."""


class _Tokens(msgspec.Struct):
    prompt_tokens: float | None = None
    completion_tokens: float | None = None
    input_tokens: float | None = None
    output_tokens: float | None = None


class _Reply(msgspec.Struct):
    """Where replies and events say what was used: at their top, or in the response that an event carries."""

    usage: _Tokens | None = None
    response: _Reply | None = None


class _Event(msgspec.Struct):
    type: str = ""


_decode_reply = msgspec.json.Decoder(_Reply).decode
_decode_event = msgspec.json.Decoder(_Event).decode
_LAST_OF_RESPONSES = frozenset({"response.completed", "response.failed", "response.incomplete", "error"})


async def forward(path: str, request: Request, ask: Forward, *, record: Record, fail: Fail, start: Start) -> Forwarded:
    """The upstream's reply to `path`. Raises its `UpstreamError` where there is none; either way a row is written."""
    if not request.body:  # a look at a list: nothing is used
        return await ask(path, request)
    started = time.perf_counter()
    try:
        reply = await ask(path, request)
    except (UpstreamError, NeedsUnmet) as error:
        await fail(status_of(error), str(error), None, 0)
        raise
    if reply.pieces is None:
        usage = usage_in(reply.body or b"", time.perf_counter() - started)
        await record(_answer(reply, usage), None)
    else:
        ends = _ENDS.get(path)
        reply.pieces = _metered(reply, reply.pieces, ends, started, record, fail, start)
    return reply


def status_of(error: UpstreamError | NeedsUnmet) -> int:
    """The status of a request that failed so, in the ledger and, where nothing was sent yet, to the caller."""
    match error:
        case NeedsUnmet():
            return 422
        case UpstreamDenied():
            return 502
        case UpstreamRefused():
            return error.status
        case UpstreamUnavailable():
            return 503
        case UpstreamTimeout():
            return 504
        case _:
            return 502


def usage_in(body: bytes, seconds: float) -> Usage:
    """The tokens that a reply or an event of a stream reports; 0 where it reports none."""
    try:
        reply = _decode_reply(body)
    except NOT_JSON:
        return Usage(seconds=seconds)
    tokens = reply.usage or (reply.response.usage if reply.response is not None else None) or _Tokens()
    return Usage(
        prompt_tokens=_count(tokens.prompt_tokens, tokens.input_tokens),
        completion_tokens=_count(tokens.completion_tokens, tokens.output_tokens),
        seconds=seconds,
    )


def _ends_responses(event: bytes) -> bool:
    try:
        return _decode_event(event_data(event)).type in _LAST_OF_RESPONSES
    except NOT_JSON:
        return False


_ENDS: dict[str, Callable[[bytes], bool]] = {"/completions": is_end, "/responses": _ends_responses}
"""The last event of a stream, by path. One that ends without was cut."""


async def _metered(
    reply: Forwarded,
    pieces: AsyncIterator[bytes],
    ends: Callable[[bytes], bool] | None,
    started: float,
    record: Record,
    fail: Fail,
    start: Start,
) -> AsyncIterator[bytes]:
    """The stream's events; the last one (as `ends` tells), or else the end itself, waits for the row."""
    first_s: float | None = None
    usage, written, sent = Usage(), False, 0

    async def write() -> None:
        nonlocal written
        written = True
        answer = _answer(reply, msgspec.structs.replace(usage, seconds=time.perf_counter() - started))
        await record(answer, first_s)

    try:
        async for event in split_events(pieces, MOST_BYTES):
            sent += 1
            first_s = time.perf_counter() - started if first_s is None else first_s
            if b'"usage"' in event and (told := usage_in(event_data(event), 0.0)) != Usage():
                usage = told
            if not written and ends is not None and ends(event):
                await write()
            yield event
        if not written and ends is not None:
            raise UpstreamGarbled(f"{reply.by} ended its stream before the answer was whole")
        if not written:
            await write()
    except UpstreamError as error:
        if not written:
            await fail(status_of(error), str(error), _answer(reply, usage), max(1, sent))
        raise
    except ValueError as error:
        if not written:
            await fail(502, str(error), _answer(reply, usage), max(1, sent))
        raise UpstreamGarbled(f"{reply.by} streamed rubbish: {error}") from error
    except (asyncio.CancelledError, GeneratorExit):
        if not written:
            begun = _answer(reply, usage)
            start(fail(CLIENT_WENT_AWAY, "the client went away during the stream", begun, max(1, sent)))
        raise


def _answer(reply: Forwarded, usage: Usage) -> Answer:
    path = (Step(reply.by, None, True),)
    return Answer(by=reply.by, path=path, usage=usage, prices=reply.prices, given_up=reply.given_up)


def _count(*reported: float | None) -> int:
    return max(int(min(max(number or 0, 0), 2**53)) for number in reported)
