"""The HTTP face of any answerer: OpenAI's chat completions, its models, its errors."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from puhui.core.answer import Answer, Answerer
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
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from puhui.core.request import Request
from puhui.gateway.chat import (
    error_event,
    headers_of,
    read_request,
    text_as_stream,
    whole_reply,
    with_report,
)

log = logging.getLogger("puhui.gateway")

MOST_BODY_BYTES = 8 * 1024 * 1024
RETRY_AFTER_S = 5
"""What a client is told where nobody knows when the big model will be back."""

Lifespan = Callable[[Starlette], AbstractAsyncContextManager[None]]


class TooLarge(InvalidRequest):
    """The body is larger than this server takes."""


def build_app(
    answerer: Answerer,
    *,
    models: Collection[str] = (),
    state: Callable[[], dict[str, Any]] = dict,
    lifespan: Lifespan | None = None,
    more_routes: Sequence[BaseRoute] = (),
) -> Starlette:
    """An ASGI application that serves `answerer`.

    `models` are the names that a request may give (empty: any name, the upstream decides). `state` is what
    GET /puhui/state shows. `more_routes` come after those of this module.
    """

    async def chat(http: HttpRequest) -> Response:
        request = read_request(await _body(http), http.headers)
        if models and request.model not in models:
            raise UnknownModel(f"no model {request.model!r} here; there is: {', '.join(sorted(models))}")
        answer = await answerer(request)
        if request.stream:
            return StreamingResponse(
                _safe_stream(request, answer),
                media_type="text/event-stream",
                headers=headers_of(request, answer),
            )
        return _json(whole_reply(request, answer), headers=headers_of(request, answer))

    async def list_models(_: HttpRequest) -> Response:
        return _json_object({"object": "list", "data": [_model(name) for name in sorted(models)]})

    async def health(_: HttpRequest) -> Response:
        return _json_object({"status": "ok"})

    async def show_state(_: HttpRequest) -> Response:
        return _json_object(state())

    return Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/models", list_models),
            Route("/healthz", health),
            Route("/puhui/state", show_state),
            *more_routes,
        ],
        exception_handlers={PuhuiError: _on_error, HTTPException: _on_http_error, Exception: _on_fault},
        lifespan=lifespan,
    )


async def _body(http: HttpRequest) -> bytes:
    """The body, read no further than is allowed."""
    pieces: list[bytes] = []
    size = 0
    try:
        async for piece in http.stream():
            size += len(piece)
            if size > MOST_BODY_BYTES:
                raise TooLarge(f"the body is larger than {MOST_BODY_BYTES} bytes, which is the most taken here")
            pieces.append(piece)
    except ClientDisconnect as error:
        raise InvalidRequest("the client went away before its request was whole") from error
    return b"".join(pieces)


async def _safe_stream(request: Request, answer: Answer) -> AsyncIterator[bytes]:
    """The answer's events; a failure half-way becomes an error event, and no [DONE] follows it."""
    pieces = answer.pieces if answer.pieces is not None else text_as_stream(request, answer)
    try:
        async for piece in with_report(request, answer, pieces):
            yield piece
    except PuhuiError as error:
        log.warning("request %s broke off: %s", request.id, error)
        yield error_event(_error_object(error)[1])


def _error_object(error: PuhuiError) -> tuple[int, dict[str, Any]]:
    """The HTTP status and OpenAI's error object of one of our errors."""
    param: str | None = None
    code: str | None = None
    match error:
        case TooLarge():
            status, kind, code = 413, "invalid_request_error", "request_too_large"
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
        case UpstreamRefused():
            status, kind, code = error.status, "upstream_error", "upstream_refused"
        case UpstreamUnavailable():
            status, kind, code = 503, "upstream_error", "upstream_unavailable"
        case UpstreamTimeout():
            status, kind, code = 504, "upstream_error", "upstream_timeout"
        case UpstreamError():
            status, kind, code = 502, "upstream_error", "upstream_failed"
        case StoreError():
            status, kind, code = 503, "server_error", "store_failed"
        case _:
            status, kind, code = 500, "server_error", None
    return status, {"error": {"message": str(error), "type": kind, "param": param, "code": code}}


async def _on_error(_: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, PuhuiError)
    status, shown = _error_object(error)
    if isinstance(error, UpstreamRefused):
        after = error.retry_after or ""
        headers = {"retry-after": after} if after and after.isascii() and after.isprintable() else {}
        if not 400 <= status < 600:  # a redirect, say: no answer, and not for the caller to follow
            status = 502
        elif _is_json_object(error.body):  # the big model's own words are the most use to the caller
            return _json(error.body, status, headers)
        return _json(msgspec.json.encode(shown), status, headers)
    if status >= 500:
        log.warning("%s", error)
    return _json(msgspec.json.encode(shown), status, _when_to_come_back(error))


def _when_to_come_back(error: PuhuiError) -> dict[str, str]:
    match error:
        case LimitReached(retry_after_s=seconds) | UpstreamUnavailable(retry_after_s=float() as seconds):
            return {"retry-after": str(max(1, math.ceil(seconds)))}
        case UpstreamUnavailable():
            return {"retry-after": str(RETRY_AFTER_S)}
    return {}


async def _on_http_error(_: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = {"message": error.detail, "type": "invalid_request_error", "param": None, "code": None}
    return _json_object({"error": kind}, error.status_code)


async def _on_fault(_: HttpRequest, error: Exception) -> Response:
    log.error("a fault in Puhui itself", exc_info=error)
    kind = {
        "message": "a fault in Puhui itself; see its log",
        "type": "server_error",
        "param": None,
        "code": None,
    }
    # The server closes the connection after a fault; a client that is not told would use it again.
    return _json(msgspec.json.encode({"error": kind}), 500, {"connection": "close"})


def _is_json_object(body: bytes) -> bool:
    try:
        msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "puhui"}


def _json_object(content: dict[str, Any], status: int = 200) -> Response:
    return _json(msgspec.json.encode(content), status)


def _json(content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(content, status, headers, media_type="application/json")
