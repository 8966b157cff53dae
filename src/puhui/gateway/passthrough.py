"""Routes whose requests are passed on as they are and whose replies come back as they came: no expert answers these.

The model's name, the caller's needs and what may be kept are read as for chat; the rest is the upstream's business.
"""

from __future__ import annotations

import logging
import string
import urllib.parse
from collections.abc import AsyncIterator, Collection
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from puhui.core.errors import PuhuiError, UnknownModel
from puhui.core.request import Request
from puhui.core.request_ids import current_id
from puhui.gateway.bodies import JSON, caller_of, check_model, read_body, read_headers
from puhui.gateway.chat import HEADER_SAFE, error_event, read_fields, request_of
from puhui.gateway.needs import headers_to_pass_on
from puhui.gateway.replies import error_object, json_reply
from puhui.models.endpoint import Forwarded
from puhui.node.forwarding import Forward
from puhui.trust.api_keys import PREFIX

log = logging.getLogger("puhui.gateway")

PATHS = ("/completions", "/embeddings", "/responses")
MODELS = "/models"
_NO_SEGMENTS = frozenset({"", ".", ".."})
"""No part of a model's name: on the way to the upstream they would make another path of it."""


def passthrough_routes(models: Collection[str], forward: Forward, max_body_mb: int) -> list[Route]:
    """POST /v1/completions, /v1/embeddings and /v1/responses."""
    return [_passthrough(path, models, forward, max_body_mb) for path in PATHS]


def model_routes(models: Collection[str], forward: Forward | None) -> list[Route]:
    """GET /v1/models and /v1/models/{id}: the names in `models`, or the upstream's own list where any name passes."""

    async def list_models(http: HttpRequest) -> Response:
        allowed = caller_of(http).models
        if not models and not allowed and forward is not None:
            return await _ask_upstream(http, MODELS, forward)
        names = [name for name in sorted(models or allowed) if not allowed or name in allowed]
        return json_reply({"object": "list", "data": [_model(name) for name in names]})

    async def show_model(http: HttpRequest) -> Response:
        name = http.path_params["id"]
        if not models and forward is not None and _NO_SEGMENTS.isdisjoint(name.split("/")):
            caller_of(http).check_model(name)
            return await _ask_upstream(http, f"{MODELS}/{urllib.parse.quote(name, safe='/:@')}", forward)
        if name not in models:
            raise UnknownModel(f"no model {name[:200]!r} here; GET /v1/models shows what there is")
        caller_of(http).check_model(name)
        return json_reply(_model(name))

    return [Route("/v1/models", list_models), Route("/v1/models/{id:path}", show_model)]


def _passthrough(path: str, models: Collection[str], forward: Forward, max_body_mb: int) -> Route:
    async def pass_on(http: HttpRequest) -> Response:
        headers = read_headers(http)
        body = await read_body(http, headers, max_body_mb)
        fields, caller = read_fields(body, "model"), caller_of(http)
        request = request_of(body, fields, headers, caller, messages=(), plain=False, query=_query(http))
        check_model(request, models)
        return _response(request, await forward(path, request))

    return Route(f"/v1{path}", pass_on, methods=["POST"], name=path.strip("/"))


async def _ask_upstream(http: HttpRequest, path: str, forward: Forward) -> Response:
    headers = read_headers(http)
    request = Request(
        id=current_id(),
        model="",
        messages=(),
        body=b"",
        caller=caller_of(http),
        authorization=headers.get("authorization"),
        headers=headers_to_pass_on(headers),
        query=_query(http),
    )
    return _response(request, await forward(path, request))


def _query(http: HttpRequest) -> str:
    """The query as it came, but for what no URL can hold; none where a key of this node's is in it."""
    query = urllib.parse.quote(http.scope["query_string"], safe=string.punctuation)
    return "" if PREFIX in query else query


def _response(request: Request, reply: Forwarded) -> Response:
    headers = dict(reply.headers)
    headers["x-request-id"] = request.id
    headers["x-puhui-by"] = urllib.parse.quote(reply.by, safe=HEADER_SAFE)
    headers["content-type"] = reply.content_type or JSON
    usable = {name: value for name, value in headers.items() if value.isascii() and value.isprintable()}
    if reply.pieces is not None:
        return StreamingResponse(_safe_pieces(request, reply.pieces), reply.status, usable)
    return Response(reply.body or b"", reply.status, usable)


async def _safe_pieces(request: Request, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The stream's events; a failure half-way becomes an error event, as those of responses are (`type: error`)."""
    try:
        async for piece in pieces:
            yield piece
    except PuhuiError as error:
        log.warning("request %s broke off: %s", request.id, error)
        shown = error_object(error)[1]["error"]
        yield error_event(
            {"type": "error", **{name: shown[name] for name in ("message", "param", "code")}, "error": shown}
        )


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "puhui"}
