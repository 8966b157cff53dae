"""The OpenAPI document: every route is in it, it is sound, and schemathesis finds nothing in what it says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from bench.schema import run
from jsonschema import Draft202012Validator
from starlette.applications import Starlette
from starlette.routing import Route

from puhui.dashboard.pages import dashboard_routes
from puhui.gateway.openapi import describe
from puhui.gateway.openapi_pieces import OPERATIONS, SCHEMAS
from puhui.gateway.server import ServeSettings, node_app
from puhui.store.database import sqlite_url
from real_nodes import real_node


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Starlette:
    folder = tmp_path_factory.mktemp("node")
    settings = ServeSettings(
        upstream="http://127.0.0.1:9/v1", store=sqlite_url(folder / "puhui.db"), folder=folder, learn=False
    )
    return node_app(settings, more_routes=dashboard_routes())


def routes_of(app: Starlette) -> Iterator[tuple[str, str]]:
    for route in app.routes:
        assert isinstance(route, Route), f"{route} is of a kind that the document does not tell of"
        for method in (route.methods or set()) - {"HEAD"}:
            yield method, route.path.replace(":path}", "}")


def operations_of(document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for path, item in document["paths"].items():
        for method in item:
            yield method.upper(), path


def test_every_route_is_in_the_document_and_nothing_else(tmp_path: Path, app: Starlette) -> None:
    assert set(operations_of(describe(app.routes))) == set(routes_of(app))
    with real_node(tmp_path, "http://127.0.0.1:9/v1") as url:
        served = httpx.get(f"{url}/openapi.json").json()
    assert served["openapi"] == "3.1.0"
    assert set(operations_of(served)) <= set(routes_of(app))
    assert ("GET", "/openapi.json") in set(operations_of(served))


def test_what_is_described_is_there(app: Starlette) -> None:
    assert OPERATIONS.keys() - set(routes_of(app)) == set()


def test_the_apis_own_routes_are_described_in_full(app: Starlette) -> None:
    data = {(method, path) for method, path in routes_of(app) if path.startswith(("/v1/", "/puhui/"))}
    assert data - OPERATIONS.keys() == set()


def test_schemas_are_schemas_and_references_lead_somewhere(app: Starlette) -> None:
    for schema in SCHEMAS.values():
        Draft202012Validator.check_schema(schema)
    for reference in references(describe(app.routes)):
        assert reference.removeprefix("#/components/schemas/") in SCHEMAS
    assert len({op["operationId"] for item in describe(app.routes)["paths"].values() for op in item.values()}) == len(
        set(routes_of(app))
    )


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from references(inner)


def test_schemathesis_finds_nothing_in_the_openai_routes(tmp_path: Path) -> None:
    """A few examples of two routes; `python -m bench.schema` tries all of them."""
    found = run(tmp_path, examples=2, phases="fuzzing", only="^/v1/(chat|embeddings)")
    assert found["exit"] == 0, found["output"]
    assert found["alive"]
