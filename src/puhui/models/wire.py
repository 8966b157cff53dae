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


_decode_object = msgspec.json.Decoder(dict[str, Any]).decode
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
    waiting = held = b""
    async for piece in pieces:
        piece = held + piece
        held = b"\r" if piece.endswith(b"\r") else b""  # its line feed may still be on the way
        waiting += piece.removesuffix(held).replace(b"\r\n", b"\n")
        *whole, waiting = waiting.split(b"\n\n")
        for event in whole:
            if event.strip():
                yield event + b"\n\n"
        if len(waiting) > limit:
            raise ValueError(f"an event of more than {limit} bytes")
    if is_end(waiting) or _is_object(event_data(waiting)):
        yield waiting.strip(b"\n") + b"\n\n"


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
