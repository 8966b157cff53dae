"""The OpenAPI 3.1 document of a server, at /openapi.json: made once, from the routes that it has.

What `openapi_pieces` says of a method and path is taken; a route that it does not know is there all the same, with
its docstring, so that the document leaves nothing out.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from puhui.gateway.openapi_pieces import ERROR, OPERATIONS, SCHEMAS
from puhui.gateway.replies import bytes_reply

PATH = "/openapi.json"

_PARAMETER = re.compile(r"{(\w+)(?::\w+)?}")


def document_route(routes: Sequence[BaseRoute]) -> Route:
    """GET /openapi.json, which tells of `routes` and of itself."""
    made: list[bytes] = []

    async def show(_: HttpRequest) -> Response:
        if not made:
            made.append(msgspec.json.encode(describe([*routes, route])))
        return bytes_reply(made[0])

    route = Route(PATH, show)
    return route


def describe(routes: Sequence[BaseRoute]) -> dict[str, Any]:
    """The document of these routes."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        if isinstance(route, Route):
            path = _PARAMETER.sub(r"{\1}", route.path)
            for method in sorted((route.methods or set()) - {"HEAD"}):
                paths.setdefault(path, {})[method.lower()] = _operation(method, path, route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Puhui",
            "version": version("puhui"),
            "summary": "A small expert in front of every big model",
            "description": (
                "OpenAI's API with a `puhui` object in each reply that says who answered and what it used. Fields and "
                "headers that are not named here are passed on to the big model."
            ),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": copy.deepcopy(SCHEMAS),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "Where the node has keys."}},
        },
        "security": [{}, {"key": []}],
    }


def _operation(method: str, path: str, route: Route) -> dict[str, Any]:
    known = OPERATIONS.get((method, path))
    operation: dict[str, Any] = copy.deepcopy(known) if known is not None else _unknown(route)
    names = _PARAMETER.findall(route.path)
    own = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}} for name in names
    ]
    if own:
        operation["parameters"] = [*own, *operation.get("parameters", [])]
    operation.setdefault("operationId", _id_of(method, path))
    operation["responses"].setdefault("default", ERROR)
    return operation


def _unknown(route: Route) -> dict[str, Any]:
    said = inspect.getdoc(route.endpoint) or route.name
    return {"summary": said.partition("\n")[0], "responses": {"200": {"description": "As it says"}}}


def _id_of(method: str, path: str) -> str:
    return "_".join([method.lower(), *re.findall(r"\w+", path)])
