"""Replies in JSON, and every error as OpenAI words it."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Match, Route

from puhui.core.errors import (
    BudgetSpent,
    InvalidRequest,
    LimitReached,
    NeedsUnmet,
    NotAllowed,
    NotAuthenticated,
    Overloaded,
    PuhuiError,
    StoreError,
    UnknownModel,
    UpstreamDenied,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from puhui.gateway.bodies import JSON, TooLarge, WrongEncoding, WrongType
from puhui.models.wire import NOT_JSON
from puhui.node.forwarding import status_of

log = logging.getLogger("puhui.gateway")

_RAW_JSON = JSON.encode()
RETRY_AFTER_S = 5
"""What a client is told where nobody knows when the big model will be back."""
RESPONSES = "/v1/responses/"
MOST_WORDS = 500
"""Bytes of a refusal that is no error object of OpenAI's, which are told inside of one."""


def error_object(error: PuhuiError) -> tuple[int, dict[str, Any]]:
    """The HTTP status and OpenAI's error object of one of our errors."""
    param: str | None = None
    code: str | None = None
    match error:
        case TooLarge():
            status, kind, code = 413, "invalid_request_error", "request_too_large"
        case WrongType():
            status, kind, code = 415, "invalid_request_error", "unsupported_media_type"
        case InvalidRequest():
            status, kind, code, param = 400, "invalid_request_error", None, error.param
        case UnknownModel():
            status, kind, code, param = 404, "invalid_request_error", "model_not_found", "model"
        case NeedsUnmet():
            status, kind, code, param = 422, "invalid_request_error", "needs_unmet", error.need
        case NotAuthenticated():
            status, kind, code = 401, "authentication_error", "invalid_api_key"
        case NotAllowed():
            status, kind, code = 403, "permission_error", "not_allowed"
        case Overloaded():
            status, kind, code = 429, "rate_limit_error", "overloaded"
        case BudgetSpent():
            status, kind, code = 429, "rate_limit_error", "insufficient_quota"
        case LimitReached():
            status, kind, code = 429, "rate_limit_error", "rate_limit_exceeded"
        case UpstreamError():
            status, kind, code = status_of(error), "upstream_error", _code_of(error)
        case StoreError():
            status, kind, code = 503, "server_error", "store_failed"
        case _:
            status, kind, code = 500, "server_error", None
    shown = {"message": str(error), "type": kind, "param": param, "code": code}
    if isinstance(error, UpstreamRefused) and not isinstance(error, UpstreamDenied) and _is_openai_error(error.body):
        shown |= _decode_refusal(error.body).error  # the big model's own words are the most use to the caller
    return status, {"error": shown}


def _code_of(error: UpstreamError) -> str:
    match error:
        case UpstreamDenied():
            return "upstream_auth"
        case UpstreamRefused():
            return "upstream_refused"
        case UpstreamUnavailable():
            return "upstream_unavailable"
        case UpstreamTimeout():
            return "upstream_timeout"
        case _:
            return "upstream_failed"


async def on_error(_: HttpRequest, error: Exception) -> Response:
    """Any error of ours."""
    assert isinstance(error, PuhuiError)
    return error_response(error)


def error_response(error: PuhuiError) -> Response:
    """One of our errors as a reply in OpenAI's format, with the headers that belong to it."""
    status, shown = error_object(error)
    if isinstance(error, UpstreamRefused) and not isinstance(error, UpstreamDenied):
        headers = _headers_for(error)
        if not 400 <= status < 600:  # a redirect, say: no answer, and not for the caller to follow
            status = 502
        elif _is_openai_error(error.body):  # the big model's own words are the most use to the caller
            return bytes_reply(error.body, status, headers)
        else:
            shown["error"]["message"] = f"{error}: {error.body[:MOST_WORDS].decode(errors='replace')}"
        return bytes_reply(msgspec.json.encode(shown), status, headers)
    if status >= 500:
        log.warning("%s", error)
    return bytes_reply(msgspec.json.encode(shown), status, _headers_for(error))


def _headers_for(error: PuhuiError) -> dict[str, str]:
    match error:
        case NotAuthenticated():
            return {"www-authenticate": "Bearer"}
        case WrongEncoding():
            return {"accept-encoding": "identity"}  # RFC 9110, 12.5.3
        case LimitReached(retry_after_s=seconds) | UpstreamUnavailable(retry_after_s=float() as seconds):
            return {"retry-after": str(max(1, math.ceil(seconds)))}
        case UpstreamRefused(retry_after=str() as said) if said and said.isascii() and said.isprintable():
            return {"retry-after": said}
        case UpstreamUnavailable() | UpstreamTimeout():
            return {"retry-after": str(RETRY_AFTER_S)}
        case UpstreamRefused(status=status) if 500 <= status < 600:
            return {"retry-after": str(RETRY_AFTER_S)}
    return {}


async def on_http_error(http: HttpRequest, error: Exception) -> Response:
    """What the server library refuses: a path or a method that is not there."""
    assert isinstance(error, HTTPException)
    message = (
        f"{error.detail}: {http.method} {http.url.path[:200]}" if error.status_code in (404, 405) else error.detail
    )
    if error.status_code == 404 and http.url.path.startswith(RESPONSES):
        message += "; of responses this node passes on POST /v1/responses alone"
    shown = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    if error.status_code == 405:
        headers["allow"] = ", ".join(_methods_of(http))
    return bytes_reply(msgspec.json.encode(shown), error.status_code, headers)


def _methods_of(http: HttpRequest) -> list[str]:
    """All methods that the path takes: it may have a route for each, and the library tells those of the first."""
    routes = [route for route in http.app.routes if isinstance(route, Route)]
    found = [route.methods or set() for route in routes if route.matches(http.scope)[0] is not Match.NONE]
    return sorted(set().union(*found))


async def on_fault(_: HttpRequest, error: Exception) -> Response:
    """Anything that is not ours: told without its inside."""
    log.error("a fault in Puhui itself", exc_info=error)
    kind = {
        "message": "a fault in Puhui itself; see its log",
        "type": "server_error",
        "param": None,
        "code": None,
    }
    # The server closes the connection after a fault; a client that is not told would use it again.
    return bytes_reply(msgspec.json.encode({"error": kind}), 500, {"connection": "close"})


class _Refusal(msgspec.Struct):
    error: dict[str, Any]


_decode_refusal = msgspec.json.Decoder(_Refusal).decode


def _is_openai_error(body: bytes) -> bool:
    try:
        body.decode()
        _decode_refusal(body)
    except NOT_JSON:
        return False
    return True


def json_reply(content: dict[str, Any], status: int = 200) -> Response:
    """A reply of JSON."""
    return bytes_reply(msgspec.json.encode(content), status)


def bytes_reply(content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A reply of JSON that is encoded already. Names of `headers` are in small letters."""
    return _JsonBytes(content, status, headers)


class _JsonBytes(Response):
    """The library looks through all headers for what it may have to add; of these it is known."""

    def init_headers(self, headers: Mapping[str, str] | None = None) -> None:
        self.raw_headers = [(b"content-type", _RAW_JSON), (b"content-length", b"%d" % len(self.body))]
        if headers:
            self.raw_headers += [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
