"""HTTP to one OpenAI-compatible endpoint: connections, timeouts, headers, and what goes wrong, by our names."""

from __future__ import annotations

import io
import urllib.parse
from collections.abc import AsyncIterator
from functools import lru_cache

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

    @property
    def has_key(self) -> bool:
        """Whether the upstream has a key of its own, so that the caller's does not go on."""
        return self._authorization is not None

    async def close(self) -> None:
        """Closes its connections."""
        if self._client is not None:
            await self._client.close()
            self._client = None

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
            raise self._refusal(response, await self.read(response))
        return response

    async def read(self, response: aiohttp.ClientResponse) -> bytes:
        """The response's whole body, `MOST_BYTES` at most."""
        pieces, size = [], 0
        try:
            async for piece in response.content.iter_any():
                pieces.append(piece)
                size += len(piece)
                if size > MOST_BYTES:
                    raise UpstreamGarbled(f"{self.url} answered with more than {MOST_BYTES} bytes")
        except FAILURES as error:
            raise self._explain(error) from error
        finally:
            response.close()
        return b"".join(pieces)

    async def read_pieces(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        """The body's bytes as they come."""
        try:
            async for piece in response.content.iter_any():
                yield piece
        except FAILURES as error:
            raise UpstreamGarbled(f"{self.url} broke off its stream: {error or type(error).__name__}") from error
        finally:
            response.close()

    def _session(self) -> aiohttp.ClientSession:
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

    def _refusal(self, response: aiohttp.ClientResponse, body: bytes) -> UpstreamRefused:
        kind, said = UpstreamRefused, f"{self.url} answered with status {response.status}"
        if self.has_key and response.status in (401, 403):
            kind, said = UpstreamDenied, f"{said} to this node's own key; whoever runs the node has to see to that key"
        for secret in self._secrets:
            body = body.replace(secret, b"***")
        return kind(said, status=response.status, body=body, retry_after=response.headers.get("retry-after"))

    def _explain(self, error: Exception) -> UpstreamError:
        detail = str(error) or type(error).__name__
        if isinstance(error, TimeoutError):
            return UpstreamTimeout(f"{self.url} did not answer in time ({detail})")
        if isinstance(error, aiohttp.ClientPayloadError | aiohttp.ClientResponseError):
            return UpstreamGarbled(f"{self.url} sent half an answer: {detail}")
        return UpstreamUnavailable(f"{self.url} cannot be reached: {detail}")


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
