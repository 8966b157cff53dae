"""A big model behind any OpenAI-compatible endpoint, as an answerer."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec

from puhui.core.answer import Answer, Step
from puhui.core.errors import (
    InvalidRequest,
    SettingsError,
    UpstreamError,
    UpstreamGarbled,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from puhui.core.request import Request
from puhui.models.wire import DONE, Completion, decode_completion, event_data, split_events, usage_of

MOST_BYTES = 32 * 1024 * 1024
TOP_LOGPROBS = 20
READ_OUT_S = 0.05

_FAILURES = (aiohttp.ClientError, TimeoutError, OSError)

_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_choices = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode


class Endpoint:
    """An OpenAI-compatible endpoint. `url` is its base URL, such as http://127.0.0.1:8001/v1.

    `model` replaces the model that a request names; None lets the request's own pass. `key` is sent as the
    bearer token; without one the caller's own goes on. `timeout_s` bounds connecting (at most 10 s of it) and
    every wait for bytes.
    """

    def __init__(self, url: str, *, model: str | None = None, key: str | None = None, timeout_s: float = 120.0) -> None:
        _check_url(url)
        if key is not None and not (key.isascii() and key.isprintable()):
            raise SettingsError("the upstream's key holds a line break or a character that no header can carry")
        self.url = url.rstrip("/")
        self.model = model
        self._key = key
        self._alternatives = True
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=min(10.0, timeout_s), sock_read=timeout_s)
        self._client: aiohttp.ClientSession | None = None

    def __repr__(self) -> str:
        return f"Endpoint({self.url!r}, model={self.model!r})"

    async def close(self) -> None:
        """Closes its connections."""
        if self._client is not None:
            await self._client.close()
            self._client = None

    def _session(self) -> aiohttp.ClientSession:
        if self._client is None:  # made on first use: a session belongs to the event loop that it is made in
            self._client = aiohttp.ClientSession(
                timeout=self._timeout,
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=4.0),
                cookie_jar=aiohttp.DummyCookieJar(),  # one caller's cookies are not for the next
            )
        return self._client

    async def __call__(self, request: Request) -> Answer:
        """The big model's answer. Raises one of the `UpstreamError`s when there is none."""
        if request.stream:
            return await self._stream(request)
        wanted = request.alternatives and self._alternatives
        try:
            return await self._whole(request, wanted)
        except UpstreamRefused as error:
            if not (wanted and error.status in (400, 422)):
                raise
        # Some models refuse log-probabilities: then they are not asked for again.
        answer = await self._whole(request, alternatives=False)
        self._alternatives = False
        return answer

    async def _whole(self, request: Request, alternatives: bool) -> Answer:
        started = time.perf_counter()
        response = await self._send(request, alternatives)
        body = await self._read(response)
        completion = self._decode(body)
        if not completion.choices:
            raise UpstreamGarbled(f"{self.url} answered without any choice")
        if alternatives:
            body = _without_logprobs(body)
        choice = completion.choices[0]
        name = f"big:{self.model or request.model}"
        return Answer(
            by=name,
            text=choice.message.text,
            path=(Step(name, None, True),),
            usage=usage_of(completion, time.perf_counter() - started),
            alternatives=_first_token(completion) if alternatives else (),
            body=body,
        )

    async def _stream(self, request: Request) -> Answer:
        started = time.perf_counter()
        response = await self._send(request, alternatives=False)
        if "text/event-stream" not in response.headers.get("content-type", ""):
            response.close()
            raise UpstreamGarbled(
                f"{self.url} was asked to stream but sent {response.headers.get('content-type', 'no type')!r}"
            )
        name = f"big:{self.model or request.model}"
        answer = Answer(by=name, path=(Step(name, None, True),))
        answer.pieces = self._events(response, answer, started)
        return answer

    async def _events(self, response: aiohttp.ClientResponse, answer: Answer, started: float) -> AsyncIterator[bytes]:
        """Passes events on as they come; at the end `answer` knows its text and usage."""
        text: list[str] = []
        last, finished, plain = Completion(choices=[]), False, True
        try:
            events = split_events(response.content.iter_any(), MOST_BYTES)
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
                        finished = finished or choice.finish_reason is not None
                    last = Completion([], usage=chunk.usage or last.usage, puhui=chunk.puhui or last.puhui)
                yield event
        except _FAILURES as error:
            raise UpstreamGarbled(f"{self.url} broke off its stream: {error or type(error).__name__}") from error
        except ValueError as error:
            raise UpstreamGarbled(f"{self.url} streamed rubbish: {error}") from error
        finally:
            response.close()  # a response read to its end has given its connection back already
        raise UpstreamGarbled(f"{self.url} ended its stream before the answer was whole")

    async def _send(self, request: Request, alternatives: bool) -> aiohttp.ClientResponse:
        """The response with its headers read, its body not; raises for everything but a success."""
        headers = {"content-type": "application/json", "x-request-id": request.id}
        authorization = f"Bearer {self._key}" if self._key else request.authorization
        if authorization:
            if not authorization.isascii():
                raise InvalidRequest("the authorization header holds characters outside ASCII")
            headers["authorization"] = authorization
        content = self._body(request, alternatives)
        try:
            response = await self._session().post(
                f"{self.url}/chat/completions", data=content, headers=headers, allow_redirects=False
            )
        except _FAILURES as error:
            raise self._explain(error) from error
        if response.status >= 300:
            raise UpstreamRefused(
                f"{self.url} answered with status {response.status}",
                status=response.status,
                body=await self._read(response),
                retry_after=response.headers.get("retry-after"),
            )
        return response

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        pieces, size = [], 0
        try:
            async for piece in response.content.iter_any():
                pieces.append(piece)
                size += len(piece)
                if size > MOST_BYTES:
                    raise UpstreamGarbled(f"{self.url} answered with more than {MOST_BYTES} bytes")
        except _FAILURES as error:
            raise self._explain(error) from error
        finally:
            response.close()
        return b"".join(pieces)

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
            return decode_completion(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            shown = body[:80].decode(errors="replace")
            raise UpstreamGarbled(
                f"{self.url} sent something that is not a chat completion ({error}): {shown!r}"
            ) from error

    def _explain(self, error: Exception) -> UpstreamError:
        detail = str(error) or type(error).__name__
        if isinstance(error, TimeoutError):
            return UpstreamTimeout(f"{self.url} did not answer in time ({detail})")
        if isinstance(error, aiohttp.ClientPayloadError | aiohttp.ClientResponseError):
            return UpstreamGarbled(f"{self.url} sent half an answer: {detail}")
        return UpstreamUnavailable(f"{self.url} cannot be reached: {detail}")


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
    try:
        parsed = urlsplit(url)
        usable = parsed.scheme in ("http", "https") and parsed.hostname and (parsed.port or 1) > 0
    except ValueError as error:
        raise SettingsError(f"upstream URL {url!r} is not a URL: {error}") from error
    if not usable or not url.isprintable() or " " in url:
        raise SettingsError(f"upstream URL {url!r} must be http:// or https://, a host and a port up to 65535")


async def _read_out(events: AsyncIterator[bytes]) -> None:
    """Reads what comes after the last event, if it comes at once: the connection can then be used again."""
    with contextlib.suppress(*_FAILURES, ValueError):
        async with asyncio.timeout(READ_OUT_S):
            async for _ in events:
                pass


def open_reference(reference: str, *, key: str | None = None, timeout_s: float = 120.0) -> Endpoint:
    """The big model that `reference` names: `openai:MODEL@URL`, or a URL alone to let any model pass."""
    if reference.startswith("openai:"):
        model, at, url = reference.removeprefix("openai:").partition("@")
        if model and at and url:
            return Endpoint(url, model=model, key=key, timeout_s=timeout_s)
    elif reference.startswith(("http://", "https://")):
        return Endpoint(reference, key=key, timeout_s=timeout_s)
    raise SettingsError(
        f"{reference!r} names no big model; write openai:MODEL@URL (such as openai:gpt-4o@https://api.openai.com/v1) "
        "or the endpoint's base URL alone"
    )
