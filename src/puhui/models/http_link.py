"""HTTP to one OpenAI-compatible endpoint: connections, timeouts, headers, and what goes wrong, by our names."""

from __future__ import annotations

import asyncio
import io
import re
import urllib.parse
from collections.abc import AsyncIterator
from functools import lru_cache
from typing import Any

import aiohttp
import msgspec
import yarl

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
from puhui.core.request import Request
from puhui.models.wire import status_in

MOST_BYTES = 64 * 1024 * 1024
"""Of a reply: 2,048 embeddings of 3,072 numbers, the most that OpenAI gives at once, are 34 MB in base64."""
LARGE_BYTES = 1024 * 1024
FAILURES = (aiohttp.ClientError, TimeoutError, OSError)
JSON = "application/json"

# Headers of a caller that are not for the next server: they belong to one connection, or say what is not true of
# what is sent on, or are secrets between the caller and this node (RFC 9110, 7.6.1).
NOT_PASSED_ON = frozenset(
    {
        "accept-encoding",
        "authorization",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "cookie",
        "expect",
        "host",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-request-id",
    }
)
# Other ways of showing a key: where the caller's is not to be passed on, none of them is.
_KEYS = frozenset({"api-key", "x-api-key"})
_DOTS = frozenset({".", ".."})
SECRET_LENGTH = 8
"""A shorter key is no secret but a word such as `none`, and words may be said."""
LOOK_EVERY_S = 0.5
_is_code = re.compile(r"[A-Za-z0-9_.-]{1,64}").fullmatch


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """How long an upstream is waited for, in seconds.

    `connect_s` is for a connection (name, TCP and TLS); `first_token_s` for the first byte of the reply or the
    first event of a stream, and for every pause after it; `whole_s` for all of it.
    """

    connect_s: float = 10.0
    first_token_s: float = 120.0
    whole_s: float = 600.0

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if not 0.0 < value < float("inf"):
                raise SettingsError(f"{name} is {value}, but must be seconds greater than 0")


class Link:
    """HTTP to the endpoint at `url`.

    `key` is sent as the bearer token; without one the caller's own goes on, unless `pass_key` is False.
    """

    def __init__(self, url: str, *, key: str | None, pass_key: bool, timeouts: Timeouts) -> None:
        if key is not None and not (key.isascii() and key.isprintable()):
            raise SettingsError("the upstream's key holds a line break or a character that no header can carry")
        self.url = url.rstrip("/")
        try:
            self._base = str(yarl.URL(self.url)).rstrip("/")
        except ValueError as error:
            raise SettingsError(f"upstream URL {url!r} is not a URL: {error}") from error
        self.timeouts = timeouts
        self._authorization = f"Bearer {key}" if key else None
        self._secrets = _spellings(key or "")
        self._pass_key = pass_key and not key
        self._timeout = self._bounded(timeouts.whole_s)
        self._client: aiohttp.ClientSession | None = None
        self._stopped = False
        self._watches: set[_Watch] = set()

    @property
    def has_key(self) -> bool:
        """Whether the upstream has a key of its own, so that the caller's does not go on."""
        return self._authorization is not None

    async def close(self) -> None:
        """Closes its connections."""
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def stop(self) -> None:
        """Breaks off what is under way, and sends nothing any more."""
        self._stopped = True
        await self.close()
        for watch in list(self._watches):
            watch.end("its connection was closed")

    async def send(
        self, path: str, request: Request, content: bytes, content_type: str = JSON
    ) -> aiohttp.ClientResponse:
        """The response with its headers read, its body not; raises for everything but a success."""
        try:
            response = await self._session().request(
                "POST" if content else "GET",
                _address(self._base, path),
                # A large body goes out in pieces, so that others are served meanwhile.
                data=content if len(content) < LARGE_BYTES else io.BytesIO(content),
                headers=self._headers(request, content_type),
                timeout=self._timeout_of(request),
                allow_redirects=False,
            )
        except FAILURES as error:
            raise self._explain(error) from error
        if response.status >= 300:
            body, retry_after = await self.read(response), response.headers.get("retry-after")
            raise self._refusal(f"answered with status {response.status}", response.status, body, retry_after)
        return response

    async def read(self, response: aiohttp.ClientResponse) -> bytes:
        """The response's whole body, `MOST_BYTES` at most."""
        pieces, size = [], 0
        try:
            async for piece in self.pieces_of(response):
                pieces.append(piece)
                size += len(piece)
                if size > MOST_BYTES:
                    raise UpstreamGarbled(f"{self.url} answered with more than {MOST_BYTES} bytes")
        except FAILURES as error:
            raise self._explain(error) from error
        finally:
            response.close()
        return b"".join(pieces)

    async def pieces_of(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        """The body's bytes as they come, to its end or to one of `FAILURES`."""
        watch = _Watch(response)
        self._watches.add(watch)
        try:
            while piece := await response.content.readany():
                yield piece
        except RuntimeError as error:  # of aiohttp, where the connection was gone already before it was read from
            raise aiohttp.ClientPayloadError(str(error)) from error
        finally:
            self._watches.discard(watch)
            watch.stop()

    async def read_pieces(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        """The body's bytes as they come."""
        try:
            async for piece in self.pieces_of(response):
                yield piece
        except FAILURES as error:
            raise self.broken_off(error) from error
        finally:
            response.close()

    def ended_early(self) -> UpstreamError:
        """What a stream is that ended, but not with its last event."""
        said = f"{self.url} ended its stream before the answer was whole"
        return _stopped() if self._stopped else UpstreamGarbled(said)

    def broken_off(self, error: Exception) -> UpstreamError:
        """What ended a stream before its end."""
        if self._stopped:
            return _stopped()
        return UpstreamGarbled(f"{self.url} broke off its stream: {str(error) or type(error).__name__}")

    def refused(self, error: Any) -> UpstreamRefused:
        """The refusal that `error` is, an error that came in an answer's place, with status 200 or as an event.

        Its words are in `body` and not in the message: they may be the caller's own text, and messages are logged.
        """
        body = self._masked(msgspec.json.encode({"error": error}))
        code = str(error.get("code") or error.get("type") or "") if isinstance(error, dict) else ""
        named = f" ({code})" if _is_code(code) and self._masked(code.encode()) == code.encode() else ""
        return self._refusal(f"sent an error in place of an answer{named}", status_in(error), body)

    def _session(self) -> aiohttp.ClientSession:
        if self._stopped:
            raise _stopped()
        if self._client is None:  # made on first use: a session belongs to the event loop that it is made in
            self._client = aiohttp.ClientSession(
                timeout=self._timeout,
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=4.0),
                cookie_jar=aiohttp.DummyCookieJar(),  # one caller's cookies are not for the next
            )
        return self._client

    def _headers(self, request: Request, content_type: str) -> dict[str, str]:
        headers = {name: value for name, value in request.headers if name not in NOT_PASSED_ON}
        authorization = self._authorization
        if self._pass_key:
            authorization = request.authorization
            if authorization and not authorization.isascii():
                raise InvalidRequest("the authorization header holds characters outside ASCII")
        elif not _KEYS.isdisjoint(headers):
            headers = {name: value for name, value in headers.items() if name not in _KEYS}
        if authorization:
            headers["authorization"] = authorization
        headers["content-type"] = content_type
        headers["x-request-id"] = request.id
        return headers

    def _timeout_of(self, request: Request) -> aiohttp.ClientTimeout:
        latency_ms = request.needs.latency_ms
        if latency_ms is None or latency_ms >= self.timeouts.whole_s * 1000.0:
            return self._timeout
        return self._bounded(max(latency_ms / 1000.0, 0.001))  # 0 would mean "for ever"

    def _bounded(self, whole_s: float) -> aiohttp.ClientTimeout:
        times = self.timeouts
        return aiohttp.ClientTimeout(total=whole_s, connect=times.connect_s, sock_read=times.first_token_s)

    def _refusal(self, what: str, status: int, body: bytes, retry_after: str | None = None) -> UpstreamRefused:
        kind, said = UpstreamRefused, f"{self.url} {what}"
        if self.has_key and status in (401, 403):
            kind, said = UpstreamDenied, f"{said} to this node's own key; whoever runs the node has to see to that key"
        return kind(said, status=status, body=self._masked(body), retry_after=retry_after)

    def _masked(self, words: bytes) -> bytes:
        for secret in self._secrets:
            words = words.replace(secret, b"***")
        return words

    def _explain(self, error: Exception) -> UpstreamError:
        if self._stopped:
            return _stopped()
        detail = str(error) or type(error).__name__
        if isinstance(error, TimeoutError):
            return UpstreamTimeout(f"{self.url} did not answer in time ({detail})")
        if isinstance(error, aiohttp.ClientPayloadError | aiohttp.ClientResponseError):
            return UpstreamGarbled(f"{self.url} sent half an answer: {detail}")
        return UpstreamUnavailable(f"{self.url} cannot be reached: {detail}")


def _stopped() -> UpstreamUnavailable:
    said = "this node was stopped before the big model had answered; ask again"
    return UpstreamUnavailable(said, retry_after_s=1.0)  # with a time, so that nobody here asks again


class _Watch:
    """Ends the reading of a body whose connection is gone.

    Where a chunk of a later packet is broken, aiohttp closes the connection and its timer for pauses, and does not tell
    who reads. One timer for a body is cheaper than a timeout around each read.
    """

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self._timer: asyncio.TimerHandle | None = None
        self._closing = False
        if response.connection is not None:  # else all of it is here
            self._wait()

    def stop(self) -> None:
        """Looks no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(LOOK_EVERY_S, self._look)

    def _look(self) -> None:
        connection = self._response.connection
        if connection is None:  # given back: all of it is here
            return
        if connection.protocol is not None and connection.protocol.is_connected():
            self._wait()
        elif self._closing:  # twice: a body that ends with its connection is closing for a moment before its end
            self.end("its connection closed in the middle of the body")
        else:
            self._closing = True
            self._wait()

    def end(self, why: str) -> None:
        """Tells who reads, unless all of it is here."""
        content = self._response.content
        if not content.is_eof() and content.exception() is None:
            content.set_exception(aiohttp.ClientPayloadError(why))


@lru_cache(maxsize=64)  # a new URL is taken apart again for each request
def _address(base: str, path: str) -> yarl.URL:
    """`path` under the base URL, as it is: nothing of it may lead out of there."""
    if not _DOTS.isdisjoint(urllib.parse.unquote(path.partition("?")[0]).split("/")):
        raise InvalidRequest(f"the path {path[:200]!r} holds a segment of dots; name what lies under the base URL")
    return yarl.URL(base + path, encoded=True)


def _spellings(key: str) -> tuple[bytes, ...]:
    """The ways in which an upstream's words may repeat the key: as it is, and as writers of JSON escape it."""
    if len(key) < SECRET_LENGTH:
        return ()
    escaped = msgspec.json.encode(key).decode()[1:-1]
    return tuple(each.encode() for each in dict.fromkeys((escaped.replace("/", "\\/"), escaped, key)))
