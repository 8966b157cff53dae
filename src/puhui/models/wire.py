"""The parts of OpenAI's chat-completion JSON that Puhui reads, and server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec

from puhui.core.answer import Energy, Usage

DONE = b"data: [DONE]\n\n"
NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding raises for bytes that are no JSON of the wanted shape, those that are nested too deeply included."""


class TopToken(msgspec.Struct):
    token: str
    logprob: float


class TokenLogprob(msgspec.Struct):
    token: str
    top_logprobs: list[TopToken] | None = None


class Logprobs(msgspec.Struct):
    content: list[TokenLogprob] | None = None


class Reply(msgspec.Struct):
    content: str | list[Any] | None = None
    tool_calls: Any = None
    function_call: Any = None

    @property
    def text(self) -> str | None:
        """The content where it is all that was said: no parts, no calls (some servers send an empty list)."""
        return self.content if isinstance(self.content, str) and not (self.tool_calls or self.function_call) else None

    @property
    def plain(self) -> bool:
        """Whether a piece of a stream holds nothing but text, or nothing at all."""
        return not (self.tool_calls or self.function_call or isinstance(self.content, list))


class Choice(msgspec.Struct):
    message: Reply = msgspec.field(default_factory=Reply)
    delta: Reply = msgspec.field(default_factory=Reply)
    finish_reason: str | None = None
    logprobs: Logprobs | None = None
    index: int = 0


class Tokens(msgspec.Struct):
    prompt_tokens: float | None = 0
    completion_tokens: float | None = 0


class ReportedEnergy(msgspec.Struct):
    joules: float = 0.0
    low: float = 0.0
    high: float = 0.0
    source: str = "estimated"


class Report(msgspec.Struct):
    """The `puhui` object of a reply by another Puhui node: its usage adds to ours."""

    energy: ReportedEnergy = msgspec.field(default_factory=ReportedEnergy)
    cpu_ms: float = 0.0


class Completion(msgspec.Struct):
    """A chat completion, or one chunk of a streamed one."""

    choices: list[Choice]
    model: str = ""
    usage: Tokens | None = None
    puhui: Report | None = None
    error: Any = None


class _NoAnswer(msgspec.Struct):
    """What stands in an answer's place where there is none, and the fields that answers of all kinds have."""

    error: Any = None
    choices: msgspec.Raw = msgspec.Raw()
    data: msgspec.Raw = msgspec.Raw()
    output: msgspec.Raw = msgspec.Raw()


_decode_object = msgspec.json.Decoder(dict[str, Any]).decode
_NO_CHOICES = (b"", b"null", b"[]")
_decode_no_answer = msgspec.json.Decoder(_NoAnswer).decode
decode_completion = msgspec.json.Decoder(Completion).decode


def usage_of(completion: Completion, seconds: float) -> Usage:
    """The usage that a completion reports; its energy is empty unless another node reported it."""
    tokens = completion.usage or Tokens()
    report = completion.puhui or Report()
    energy = report.energy
    return Usage(
        prompt_tokens=_whole_number(tokens.prompt_tokens),
        completion_tokens=_whole_number(tokens.completion_tokens),
        seconds=seconds,
        cpu_seconds=report.cpu_ms / 1000.0,
        energy=Energy(energy.joules, energy.low, energy.high, measured=energy.source == "measured"),
    )


def _whole_number(reported: float | None) -> int:
    """What an upstream counted, in bounds that a database can hold."""
    return int(min(max(reported or 0, 0), 2**53))


async def split_events(pieces: AsyncIterator[bytes], limit: int) -> AsyncIterator[bytes]:
    """Whole server-sent events, each with its closing blank line, out of bytes as they arrive.

    A last event without its blank line is yielded where its data is whole: an object, or `[DONE]`. Raises `ValueError`
    for an event over `limit` bytes.
    """
    waiting = bytearray()  # what is in it was looked through and is not looked through again
    held = line_end = b""
    async for piece in pieces:
        piece = held + piece
        held = b"\r" if piece.endswith(b"\r") else b""  # its line feed may still be on the way
        fresh, *more = (line_end + piece.removesuffix(held).replace(b"\r\n", b"\n")).split(b"\n\n")
        for rest in more:
            event = bytes(waiting + fresh) if waiting else fresh
            waiting.clear()
            if event.strip():
                yield event + b"\n\n"
            fresh = rest
        line_end = b"\n" if fresh.endswith(b"\n") else b""  # may be the first half of a blank line
        waiting += fresh.removesuffix(line_end)
        if len(waiting) > limit:
            raise ValueError(f"an event of more than {limit} bytes")
    last = bytes(waiting)
    if is_end(last) or _is_object(event_data(last)):
        yield last.strip(b"\n") + b"\n\n"


def error_in(body: bytes) -> Any:
    """The error that a reply, or an event's data, holds in the place of an answer; None where it holds none."""
    if b'"error"' not in body:
        return None
    try:
        found = _decode_no_answer(body)
    except NOT_JSON:
        return None
    answers = bytes(found.choices) not in _NO_CHOICES or bytes(found.data) or bytes(found.output)
    return None if answers else found.error or None


def status_in(error: Any) -> int:
    """The HTTP status that fits an error which came without one."""
    code, kind = (error.get("code"), error.get("type")) if isinstance(error, dict) else (None, None)
    if isinstance(code, str) and code.isascii() and code.isdigit() and len(code) == 3:
        code = int(code)
    if type(code) is int and 400 <= code < 600:
        return code
    if any(str(each).startswith("rate_limit") or each == "insufficient_quota" for each in (code, kind)):
        return 429
    return 400 if kind == "invalid_request_error" else 502


def is_end(event: bytes) -> bool:
    """Whether the event is the mark after the last one."""
    return event_data(event) == b"[DONE]"


def _is_object(data: bytes) -> bool:
    try:
        _decode_object(data)
    except NOT_JSON:
        return False
    return True


def event_data(event: bytes) -> bytes:
    """The data of a server-sent event (its `data:` lines joined); empty for a comment."""
    lines = (line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:"))
    return b"\n".join(lines)
