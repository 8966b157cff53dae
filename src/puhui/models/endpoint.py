"""A big model behind any OpenAI-compatible endpoint, as an answerer."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec

from puhui.core.answer import Answer, Prices, Step
from puhui.core.errors import SettingsError, UpstreamGarbled, UpstreamRefused, UpstreamTimeout
from puhui.core.request import Request
from puhui.models.http_link import FAILURES, JSON, MOST_BYTES, Link, Timeouts
from puhui.models.wire import (
    DONE,
    NOT_JSON,
    Completion,
    decode_completion,
    error_in,
    event_data,
    split_events,
    usage_of,
)

TOP_LOGPROBS = 20
READ_OUT_S = 0.05
MOST_NAMES = 256
"""Of models that refuse log-probabilities; where callers choose the names, there may be any number."""
LONGEST_ERROR = 64 * 1024
"""Bytes: longer replies that are passed on are not looked through for an error."""

_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_choices = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode

# Headers of a reply that say something of the connection it came over, or of bytes that are unpacked by now.
_REPLY_HEADERS_KEPT_BACK = frozenset(
    {
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "date",
        "keep-alive",
        "server",
        "set-cookie",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-request-id",
    }
)
# Of a chat reply, which is made anew, those alone that clients read: times, limits, and ids by which to ask about it.
_CHAT_HEADERS = ("openai-", "x-ratelimit-", "request-id", "apim-request-id", "x-ms-request-id", "cf-ray")
_UPSTREAM_ID = "x-upstream-request-id"
"""Where the upstream's own `x-request-id` is told: under that name the caller finds the node's."""


class Forwarded(msgspec.Struct, kw_only=True):
    """What came back for a request that was passed on as it is: `body` where it came whole, `pieces` where it streams.

    `headers` are the upstream's (names in small letters) without those of the connection; `content-type` is its
    own field. `by` names who answered; `prices` and `given_up` are as in `Answer`.
    """

    status: int
    by: str
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None
    pieces: AsyncIterator[bytes] | None = None
    prices: Prices | None = None
    given_up: tuple[Prices | None, ...] = ()


class Endpoint:
    """An OpenAI-compatible endpoint. `url` is its base URL, such as http://127.0.0.1:8001/v1.

    `model` replaces the model that a request names; None lets the request's own pass. `key` is sent as the
    bearer token; without one the caller's own goes on, unless `pass_key` is False. `timeouts` bound every wait; a
    request that needs its answer sooner is given up sooner.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        key: str | None = None,
        pass_key: bool = True,
        timeouts: Timeouts = Timeouts(),
    ) -> None:
        _check_url(url)
        self.model = model
        self._link = Link(url, key=key, pass_key=pass_key, timeouts=timeouts)
        self._tell_none: set[str] = set()

    def __repr__(self) -> str:
        return f"Endpoint({self.url!r}, model={self.model!r})"

    @property
    def url(self) -> str:
        """The base URL."""
        return self._link.url

    @property
    def has_key(self) -> bool:
        """Whether it has a key of its own, so that the caller's does not go on."""
        return self._link.has_key

    async def close(self) -> None:
        """Closes its connections."""
        await self._link.close()

    async def stop(self) -> None:
        """Breaks off what is under way, and asks nothing any more: who waits gets `UpstreamUnavailable`."""
        await self._link.stop()

    async def __call__(self, request: Request) -> Answer:
        """The big model's answer. Raises one of the `UpstreamError`s when there is none.

        A streamed answer is returned when its first event is there, so that what fails before it is an error here.
        """
        if request.stream:
            return await self._stream(request)
        name = self._name(request)
        wanted = request.alternatives and name not in self._tell_none
        try:
            return await self._whole(request, wanted)
        except UpstreamRefused as error:
            if not (wanted and error.status in (400, 422)):
                raise
        # Some models refuse log-probabilities: then they are not asked for them again.
        answer = await self._whole(request, alternatives=False)
        if len(self._tell_none) >= MOST_NAMES:
            self._tell_none.clear()
        self._tell_none.add(name)
        return answer

    async def forward(self, path: str, request: Request) -> Forwarded:
        """The reply to a POST of the request's body to `path` under the base URL (such as "/embeddings"), as it came.

        Nothing but the model's name is changed. Raises one of the `UpstreamError`s for everything but a success.
        """
        content_type = next((value for name, value in request.headers if name == "content-type"), JSON)
        content = self._body(request, alternatives=False) if JSON in content_type else request.body
        whole_path = f"{path}?{request.query}" if request.query else path
        response = await self._link.send(whole_path, request, content, content_type)
        given = response.headers.get("content-type", JSON)
        reply = Forwarded(
            status=response.status,
            by=self._name(request),
            content_type=given,
            headers=tuple(each for each in _headers(response) if each[0] not in _REPLY_HEADERS_KEPT_BACK),
        )
        if "text/event-stream" in given:
            reply.pieces = await self._begun(self._link.read_pieces(response), time.perf_counter())
        else:
            reply.body = await self._link.read(response)
            if len(reply.body) <= LONGEST_ERROR and (error := error_in(reply.body)) is not None:
                raise self._link.refused(error)
        return reply

    def _name(self, request: Request) -> str:
        return f"big:{self.model or request.model}"

    async def _whole(self, request: Request, alternatives: bool) -> Answer:
        started = time.perf_counter()
        response = await self._link.send("/chat/completions", request, self._body(request, alternatives))
        body = await self._link.read(response)
        completion = self._decode(body)
        if not completion.choices:
            raise UpstreamGarbled(f"{self.url} answered without any choice")
        if alternatives:
            body = _without_logprobs(body)
        choice = completion.choices[0]
        name = self._name(request)
        return Answer(
            by=name,
            text=choice.message.text,
            path=(Step(name, None, True),),
            usage=usage_of(completion, time.perf_counter() - started),
            alternatives=_first_token(completion) if alternatives else (),
            body=body,
            finish=choice.finish_reason or "stop",
            headers=_chat_headers(response),
        )

    async def _stream(self, request: Request) -> Answer:
        started = time.perf_counter()
        response = await self._link.send("/chat/completions", request, self._body(request, alternatives=False))
        given = response.headers.get("content-type", "no type")
        if "text/event-stream" not in given:
            error = error_in(await self._link.read(response)) if JSON in given else None
            response.close()
            if error is not None:
                raise self._link.refused(error)
            raise UpstreamGarbled(f"{self.url} was asked to stream but sent {given!r}")
        name = self._name(request)
        answer = Answer(by=name, path=(Step(name, None, True),), headers=_chat_headers(response))
        answer.pieces = await self._begun(self._events(response, answer, started), started)
        return answer

    async def _begun(self, pieces: AsyncIterator[bytes], started: float) -> AsyncIterator[bytes]:
        """The same pieces, the first of which is there."""
        left = self._link.timeouts.first_token_s - (time.perf_counter() - started)
        try:
            async with asyncio.timeout(left):
                first = await anext(pieces)
        except TimeoutError as error:
            raise UpstreamTimeout(f"{self.url} did not answer in time (no event of its stream came)") from error
        except StopAsyncIteration as error:
            raise UpstreamGarbled(f"{self.url} ended its stream before it began") from error
        if b'"error"' in first and (said := error_in(event_data(_first_event(first)))) is not None:
            await _close(pieces)
            raise self._link.refused(said)
        return _from(first, pieces)

    async def _events(self, response: aiohttp.ClientResponse, answer: Answer, started: float) -> AsyncIterator[bytes]:
        """Passes events on as they come; at the end `answer` knows its text and usage."""
        text: list[str] = []
        last, finished, plain = Completion(choices=[]), False, True
        try:
            events = split_events(self._link.pieces_of(response), MOST_BYTES)
            async for event in events:
                data = event_data(event)
                if data == b"[DONE]":
                    answer.text = "".join(text) if plain else None
                    answer.usage = usage_of(last, time.perf_counter() - started)
                    if not finished:
                        break
                    yield DONE
                    await _read_out(events)
                    return
                if data:
                    chunk = self._decode(data)
                    for choice in chunk.choices:
                        plain = plain and choice.delta.plain and choice.index == 0
                        text.append(choice.delta.text or "")
                        if choice.finish_reason is not None:
                            finished, answer.finish = True, choice.finish_reason
                    last = Completion([], usage=chunk.usage or last.usage, puhui=chunk.puhui or last.puhui)
                yield event
        except FAILURES as error:
            raise self._link.broken_off(error) from error
        except ValueError as error:
            raise UpstreamGarbled(f"{self.url} streamed rubbish: {error}") from error
        finally:
            response.close()  # a response read to its end has given its connection back already
        raise self._link.ended_early()

    def _body(self, request: Request, alternatives: bool) -> bytes:
        changes: dict[str, Any] = {}
        if self.model is not None and self.model != request.model:
            changes["model"] = self.model
        if alternatives:
            changes |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        if not changes:
            return request.body
        return msgspec.json.encode(msgspec.json.decode(request.body, type=dict[str, msgspec.Raw]) | changes)

    def _decode(self, body: bytes) -> Completion:
        try:
            completion = decode_completion(body)
        except NOT_JSON as error:
            if (said := error_in(body)) is not None:
                raise self._link.refused(said) from error
            # Not what it says: it may be the caller's own text, and errors are logged.
            raise UpstreamGarbled(
                f"{self.url} sent {len(body)} bytes that are not a chat completion ({error})"
            ) from error
        if completion.error and all(choice.finish_reason == "error" for choice in completion.choices):
            raise self._link.refused(completion.error)
        return completion


def _headers(response: aiohttp.ClientResponse) -> Iterator[tuple[str, str]]:
    """Its headers, names in small letters."""
    for name, value in response.headers.items():
        yield name.lower(), value
    if (given := response.headers.get("x-request-id")) is not None:
        yield _UPSTREAM_ID, given


def _chat_headers(response: aiohttp.ClientResponse) -> tuple[tuple[str, str], ...]:
    named = [each for each in _headers(response) if each[0].startswith(_CHAT_HEADERS) or each[0] == _UPSTREAM_ID]
    return tuple((name, value) for name, value in named if value.isascii() and value.isprintable())


async def _from(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """`first` and then the rest, which is closed when this is."""
    try:
        yield first
        async for piece in rest:
            yield piece
    finally:
        await _close(rest)


async def _close(pieces: AsyncIterator[bytes]) -> None:
    if isinstance(pieces, AsyncGenerator):
        await pieces.aclose()


def _first_event(piece: bytes) -> bytes:
    """The first event of a piece that may hold several."""
    return piece.replace(b"\r\n", b"\n").partition(b"\n\n")[0]


def _first_token(completion: Completion) -> tuple[tuple[str, float], ...]:
    logprobs = completion.choices[0].logprobs
    if logprobs is None or not logprobs.content:
        return ()
    return tuple((top.token, top.logprob) for top in logprobs.content[0].top_logprobs or ())


def _without_logprobs(body: bytes) -> bytes:
    """The reply as it would be had nobody asked for log-probabilities."""
    reply: dict[str, Any] = dict(_decode_fields(body))
    reply["choices"] = _decode_choices(reply["choices"])
    for choice in reply["choices"]:
        choice.pop("logprobs", None)
    return msgspec.json.encode(reply)


def _check_url(url: str) -> None:
    if "@" in url:  # not shown: what comes before it may be a password
        raise SettingsError(
            "an upstream URL holds an @, as one with a user name or a password does; logs and pages would show it: "
            "leave it out and name an environment variable that holds the key, with --key-env or key_env (an @ of the "
            "path is written %40)"
        )
    try:
        parsed = urlsplit(url)
        usable = parsed.scheme in ("http", "https") and parsed.hostname and (parsed.port or 1) > 0
    except ValueError as error:
        raise SettingsError(f"upstream URL {url!r} is not a URL: {error}") from error
    if not usable or not url.isprintable() or " " in url:
        raise SettingsError(f"upstream URL {url!r} must be http:// or https://, a host and a port up to 65535")


async def _read_out(events: AsyncIterator[bytes]) -> None:
    """Reads what comes after the last event, if it comes at once: the connection can then be used again."""
    with contextlib.suppress(*FAILURES, ValueError):
        async with asyncio.timeout(READ_OUT_S):
            async for _ in events:
                pass


def open_reference(
    reference: str, *, key: str | None = None, pass_key: bool = True, timeouts: Timeouts = Timeouts()
) -> Endpoint:
    """The big model that `reference` names: `openai:MODEL@URL`, or a URL alone to let any model pass."""
    if reference.startswith("openai:"):
        model, at, url = reference.removeprefix("openai:").partition("@")
        if model and at and url:
            return Endpoint(url, model=model, key=key, pass_key=pass_key, timeouts=timeouts)
    elif reference.startswith(("http://", "https://")):
        return Endpoint(reference, key=key, pass_key=pass_key, timeouts=timeouts)
    shown = f"…@{reference.rpartition('@')[2]}" if "@" in reference else reference  # as in `_check_url`
    raise SettingsError(
        f"{shown!r} names no big model; write openai:MODEL@URL (such as openai:gpt-4o@https://api.openai.com/v1) "
        "or the endpoint's base URL alone"
    )
