"""The HTTP face of any answerer: OpenAI's chat completions and models, and what is passed on as it is."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from puhui.core.answer import Answer, Answerer
from puhui.core.errors import PuhuiError
from puhui.core.request import Request
from puhui.gateway.bodies import MOST_BODY_MB, caller_of, check_model, read_body, read_headers
from puhui.gateway.chat import error_event, headers_of, read_request, text_as_stream, whole_reply, with_report
from puhui.gateway.openapi import document_route
from puhui.gateway.passthrough import model_routes, passthrough_routes
from puhui.gateway.replies import (
    bytes_reply,
    error_object,
    error_response,
    json_reply,
    on_error,
    on_fault,
    on_http_error,
)
from puhui.node.forwarding import Forward

log = logging.getLogger("puhui.gateway")

CHAT_PATH = "/v1/chat/completions"
Lifespan = Callable[[Starlette], AbstractAsyncContextManager[None]]


def build_app(
    answerer: Answerer,
    *,
    models: Collection[str] = (),
    state: Callable[[], dict[str, Any]] = dict,
    lifespan: Lifespan | None = None,
    more_routes: Sequence[BaseRoute] = (),
    forward: Forward | None = None,
    max_body_mb: int = MOST_BODY_MB,
) -> Starlette:
    """An ASGI application that serves `answerer`.

    `models` are the names that a request may give (empty: any name, the upstream decides). `state` is what
    GET /puhui/state shows. `more_routes` come after those of this module. `forward` passes other requests on, such as
    embeddings; without it there are no routes for them. `max_body_mb` are the mebibytes that a request's body may have.
    """

    async def chat(http: HttpRequest) -> Response:
        headers = read_headers(http)
        request = read_request(await read_body(http, headers, max_body_mb), headers, caller_of(http))
        check_model(request, models)
        answer = await answerer(request)
        if request.stream:
            return StreamingResponse(
                _safe_stream(request, answer),
                media_type="text/event-stream",
                headers=headers_of(request, answer),
            )
        return bytes_reply(whole_reply(request, answer), headers=headers_of(request, answer))

    async def health(_: HttpRequest) -> Response:
        return json_reply({"status": "ok"})

    async def show_state(_: HttpRequest) -> Response:
        return json_reply(state())

    routes: list[BaseRoute] = [
        Route(CHAT_PATH, chat, methods=["POST"]),
        *model_routes(models, forward),
        *(passthrough_routes(models, forward, max_body_mb) if forward is not None else ()),
        Route("/healthz", health),
        Route("/puhui/state", show_state),
        *more_routes,
    ]
    app = Starlette(
        routes=[*routes, document_route(routes)],
        exception_handlers={PuhuiError: on_error, HTTPException: on_http_error, Exception: on_fault},
        middleware=[Middleware(ChatLane, chat=chat)],
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # a redirect has no words, and few follow one with a POST
    return app


class ChatLane:
    """Takes chat requests past the router, its exception handlers and wrappers: a tenth of an expert's answer."""

    def __init__(self, app: ASGIApp, *, chat: Callable[[HttpRequest], Awaitable[Response]]) -> None:
        self._app = app
        self._chat = chat

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What `CHAT_PATH`'s route does, for its method."""
        if scope["type"] != "http" or scope["path"] != CHAT_PATH or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        try:
            response = await self._chat(HttpRequest(scope, receive))
        except PuhuiError as error:
            response = error_response(error)
        await response(scope, receive, send)


async def _safe_stream(request: Request, answer: Answer) -> AsyncIterator[bytes]:
    """The answer's events; a failure half-way becomes an error event, and no [DONE] follows it."""
    pieces = answer.pieces if answer.pieces is not None else text_as_stream(request, answer)
    try:
        async for piece in with_report(request, answer, pieces):
            yield piece
    except PuhuiError as error:
        log.warning("request %s broke off: %s", request.id, error)
        yield error_event(error_object(error)[1])
