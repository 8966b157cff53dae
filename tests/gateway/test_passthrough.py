"""Requests that are passed on as they are, through a whole node."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from bench.stand_in import stand_in
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from test_app import shout

from puhui.gateway.app import build_app
from real_nodes import real_node, rows
from serving import head_of, raw_server, says, serving, wait_until

Seen = list[dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("node")


@pytest.fixture(scope="module")
def seen() -> Seen:
    return []


@pytest.fixture(scope="module")
def http(folder: Path, seen: Seen) -> Iterator[httpx.Client]:
    with stand_in(seen) as upstream, real_node(folder, upstream) as url, httpx.Client(base_url=url) as client:
        yield client


def test_embeddings_are_passed_on_and_metered_and_not_kept(http: httpx.Client, folder: Path, seen: Seen) -> None:
    before = len(rows(folder, "experience"))
    response = http.post(
        "/v1/embeddings",
        content=b'{ "model": "text-embedding-3-small","input":["secret-a","b"], "dimensions":4 }',
        headers={"authorization": "Bearer sk-mine", "openai-organization": "org-9"},
    )
    assert response.status_code == 200
    assert [each["embedding"] for each in response.json()["data"]] == [[0.5, -0.5, 0.25, 1.0]] * 2
    assert response.headers["x-puhui-by"] == "big:text-embedding-3-small"
    assert seen[-1]["path"] == "/v1/embeddings"
    assert seen[-1]["headers"]["authorization"] == "Bearer sk-mine"
    assert seen[-1]["headers"]["openai-organization"] == "org-9"
    assert seen[-1]["body"] == {"model": "text-embedding-3-small", "input": ["secret-a", "b"], "dimensions": 4}
    row = rows(folder)[-1]
    assert (row.id, row.model, row.status) == (response.headers["x-request-id"], "text-embedding-3-small", 200)
    assert (row.prompt_tokens, row.completion_tokens) == (8, 0)
    assert row.joules > 0.0
    assert len(rows(folder, "experience")) == before
    assert b"secret-a" not in (folder / "puhui.db").read_bytes()


def test_a_header_that_comes_several_times_goes_on_as_one(http: httpx.Client, seen: Seen) -> None:
    headers = [("x-trace-tag", "a"), ("x-trace-tag", "b"), ("connection", "x-own"), ("connection", "close")]
    http.post("/v1/embeddings", json={"model": "m", "input": "c"}, headers=[*headers, ("x-own", "secret")])
    assert seen[-1]["headers"]["x-trace-tag"] == "a, b"
    assert "x-own" not in seen[-1]["headers"]


@pytest.mark.parametrize(
    ("path", "body", "tokens"),
    [("/v1/responses", {"input": "hi"}, (9, 4)), ("/v1/completions", {"prompt": "hi"}, (11, 3))],
)
@pytest.mark.parametrize("stream", [False, True])
def test_tokens_are_read_from_replies_and_streams(
    http: httpx.Client, folder: Path, path: str, body: dict[str, Any], tokens: tuple[int, int], stream: bool
) -> None:
    response = http.post(path, json={"model": "gpt-4o", "stream": stream} | body)
    assert response.status_code == 200
    assert "HI" in response.text
    if stream:
        assert response.headers["content-type"].startswith("text/event-stream")
    row = next(row for row in rows(folder) if row.id == response.headers["x-request-id"])
    assert (row.prompt_tokens, row.completion_tokens) == tokens


def test_what_is_said_to_puhui_goes_no_further(http: httpx.Client, seen: Seen) -> None:
    body = {"model": "gpt-4o", "input": "x", "puhui": {"needs": {"quality": 1.0}}}
    assert http.post("/v1/responses", json=body, headers={"x-puhui-max-cost": "5"}).status_code == 200
    assert seen[-1]["body"] == {"model": "gpt-4o", "input": "x"}
    assert not [name for name in seen[-1]["headers"] if name.startswith("x-puhui")]


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/completions", "/v1/embeddings"])
@pytest.mark.parametrize(
    ("content", "headers", "status", "param"),
    [
        (b"{", {}, 400, None),
        (b"[]", {}, 400, None),
        (b'{"input": "a"}', {}, 400, "model"),
        (b'{"model": 5}', {}, 400, "model"),
        (b'{"model": "m", "stream": "yes"}', {}, 400, "stream"),
        (b'{"model": "m", "puhui": {"x": 1}}', {}, 400, "puhui"),
        (b'{"model": "m"}', {"content-type": "text/plain"}, 415, None),
        (b'{"model": "m"}', {"x-puhui-privacy": "device"}, 422, "privacy"),
    ],
)
def test_errors(
    http: httpx.Client, path: str, content: bytes, headers: dict[str, str], status: int, param: str | None
) -> None:
    response = http.post(path, content=content, headers=headers)
    assert response.status_code == status
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param


def test_needs_that_cannot_be_met_have_a_row(http: httpx.Client, folder: Path) -> None:
    response = http.post("/v1/embeddings", json={"model": "m", "input": "a"}, headers={"x-puhui-privacy": "device"})
    assert response.status_code == 422
    row = rows(folder)[-1]
    assert (row.id, row.status, row.prompt_tokens) == (response.headers["x-request-id"], 422, 0)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/models", "/v1/models/m"])
def test_the_query_goes_on(tmp_path: Path, path: str) -> None:
    asked: list[str] = []

    async def tell(http: Request) -> Response:
        asked.append(str(http.url).partition("/v1")[2])
        return JSONResponse({"data": []})

    route = Route("/v1/{path:path}", tell, methods=["GET", "POST"])
    with serving(Starlette(routes=[route])) as upstream, real_node(tmp_path, f"{upstream}/v1") as url:
        query = "api-version=2024-10-21&a=b%2Fc&d=../e&f=%E4%B8%AD"
        method, body = ("GET", b"") if "models" in path else ("POST", b'{"model": "m", "input": "a"}')
        reply = httpx.request(method, f"{url}{path}?{query}", content=body)
        httpx.request(method, f"{url}{path}?key=pk-puhui-secret", content=body)
    assert reply.status_code == 200
    assert asked == [f"{path.removeprefix('/v1')}?{query}", path.removeprefix("/v1")]


def test_the_upstreams_list_of_models_where_any_passes(http: httpx.Client, folder: Path) -> None:
    before = len(rows(folder))
    assert [each["id"] for each in http.get("/v1/models").json()["data"]][:2] == ["gpt-4o", "org/small"]
    assert http.get("/v1/models/org/small").json()["id"] == "org/small"
    missing = http.get("/v1/models/nobody")
    assert missing.status_code == 404
    assert missing.json()["error"]["message"] == "no model 'nobody'"
    assert len(rows(folder)) == before  # a look at a list uses nothing


OUT_OF_MODELS = ("/..", "/../files/x/content", "/%2e%2e/files/x", "/a/%2E%2e/%2e%2e/files", "/./m", "/", "//m", "/m/")


def test_no_name_of_a_model_leads_to_another_path_of_the_upstream(tmp_path: Path) -> None:
    asked: list[socket.socket] = []

    def remember(connection: socket.socket) -> None:
        asked.append(connection)
        says(head_of(length=2), b"{}")(connection)

    with raw_server(remember) as upstream, real_node(tmp_path, upstream) as url:
        for path in OUT_OF_MODELS:
            reply = raw_get(url, f"/v1/models{path}")
            assert reply.startswith(b"HTTP/1.1 404 "), path
            assert b'"error"' in reply
        assert asked == []
        assert raw_get(url, "/v1/models/org/small:1.5").startswith(b"HTTP/1.1 200 ")
        assert len(asked) == 1


def raw_get(url: str, path: str) -> bytes:
    """The reply to exactly this path, which a client's library would tidy up."""
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=10.0) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode())
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_the_configured_names_where_not_any_passes(tmp_path: Path) -> None:
    with stand_in() as upstream, real_node(tmp_path, f"openai:gpt-4o@{upstream}") as url:
        names = [each["id"] for each in httpx.get(f"{url}/v1/models").json()["data"]]
        assert sorted(names) == ["gpt-4o", "puhui"]
        assert httpx.get(f"{url}/v1/models/puhui").json()["object"] == "model"
        assert httpx.get(f"{url}/v1/models/other").status_code == 404
        refused = httpx.post(f"{url}/v1/embeddings", json={"model": "other", "input": "a"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")


def test_an_upstream_that_is_down_has_a_row_and_a_time_to_come_back(tmp_path: Path) -> None:
    with real_node(tmp_path, "http://127.0.0.1:9/v1") as url:
        response = httpx.post(f"{url}/v1/embeddings", json={"model": "m", "input": "a"}, timeout=30.0)
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) >= 1
        assert [(row.model, row.status) for row in rows(tmp_path)] == [("m", 503)]


def test_a_client_that_leaves_a_stream_has_a_row_that_says_so(http: httpx.Client, folder: Path) -> None:
    with http.stream("POST", "/v1/responses", json={"model": "gpt-4o", "input": "x" * 3_000_000, "stream": True}) as it:
        id = it.headers["x-request-id"]
        next(it.iter_raw())

    wait_until(lambda: [row.status for row in rows(folder) if row.id == id])
    assert [row.status for row in rows(folder) if row.id == id] in ([499], [200])


TEXT = b'data: {"id": "c", "choices": [{"index": 0, "text": "HI", "finish_reason": null}]}\n\n'
DELTA = b'event: response.output_text.delta\ndata: {"type": "response.output_text.delta", "delta": "HI"}\n\n'
COMPLETED = b'data: {"type": "response.completed", "response": {"usage": {"input_tokens": 9, "output_tokens": 4}}}'
ENDINGS = [
    ("/completions", TEXT, b"", 502),
    ("/completions", TEXT, b'data: {"choices": [{"ind', 502),
    ("/completions", TEXT, b"data: [DONE]", 200),
    ("/completions", TEXT, b"data:[DONE]\n\n", 200),
    ("/responses", DELTA, b"", 502),
    ("/responses", DELTA, b"data: [DONE]\n\n", 502),
    ("/responses", DELTA, COMPLETED, 200),
    ("/responses", DELTA, COMPLETED + b"\n\ndata: [DONE]\n\n", 200),
    ("/responses", DELTA, b'data: {"type": "response.failed", "response": {}}\n\n', 200),
    ("/responses", DELTA, b'data: {"type": "response.incomplete", "response": {}}\n\n', 200),
    ("/responses", DELTA, b'data: {"type": "error", "message": "overloaded"}\n\n', 200),
]


@pytest.mark.parametrize(("path", "begun", "end", "status"), ENDINGS)
def test_a_stream_that_is_cut_ends_with_an_error(
    tmp_path: Path, path: str, begun: bytes, end: bytes, status: int
) -> None:
    streams = says(begun, end, head=head_of("text/event-stream"))
    with raw_server(streams) as upstream, real_node(tmp_path, upstream) as url:
        reply = httpx.post(f"{url}/v1{path}", json={"model": "m", "input": "a", "prompt": "a", "stream": True})
    assert begun in reply.content
    *_, last = [line for line in reply.text.splitlines() if line.startswith("data:")]
    assert ("before the answer was whole" in last) == (status == 502)
    if status == 200:
        assert reply.content == begun + end.strip() + b"\n\n"
    else:
        assert json.loads(last.removeprefix("data:"))["error"]["code"] == "upstream_failed"
    (row,) = rows(tmp_path)
    assert row.status == status
    # What a stream that was cut has used is estimated: a token for each event that came, and the prompt.
    assert row.completion_tokens == (4 if COMPLETED in end else 0 if status == 200 else 1 + end.count(b"\n\n"))
    assert row.prompt_tokens > 0


def test_a_cut_stream_is_an_error_of_the_official_client(tmp_path: Path) -> None:
    streams = says(TEXT, head=head_of("text/event-stream"))
    with (
        raw_server(streams) as upstream,
        real_node(tmp_path, upstream) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="sk-1", max_retries=0) as client,
        pytest.raises(openai.APIError, match="before the answer was whole"),
    ):
        list(client.completions.create(model="m", prompt="hi", stream=True))


def test_without_an_upstream_to_pass_on_to_there_are_no_such_routes() -> None:
    with serving(build_app(shout)) as url:
        assert httpx.post(f"{url}/v1/embeddings", json={"model": "m"}).status_code == 404
        assert httpx.get(f"{url}/v1/models").json() == {"object": "list", "data": []}


@pytest.mark.parametrize("path", ["/v1/responses/resp_1", "/v1/responses/resp_1/input_items"])
def test_of_responses_it_says_what_is_passed_on(http: httpx.Client, path: str) -> None:
    response = http.get(path)
    assert response.status_code == 404
    assert response.json()["error"]["message"].endswith("this node passes on POST /v1/responses alone")


@pytest.mark.parametrize(("most_mb", "statuses"), [(1, [200, 413, 413]), (10, [200, 200, 200])])
def test_how_long_a_body_may_be_is_a_setting(tmp_path: Path, most_mb: int, statuses: list[int]) -> None:
    with (
        stand_in() as upstream,
        real_node(tmp_path, upstream, max_body_mb=most_mb) as url,
        httpx.Client(base_url=url, timeout=30.0) as client,
    ):
        for path, field in (("/v1/chat/completions", "messages"), ("/v1/embeddings", "input")):
            replies = []
            for size in (1000, 1_100_000, 9_000_000):
                given = [{"role": "user", "content": "x" * size}] if field == "messages" else "x" * size
                replies.append(client.post(path, json={"model": "m", field: given}))
            assert [reply.status_code for reply in replies] == statuses
            if most_mb == 1:
                assert "larger than 1 MiB" in replies[-1].json()["error"]["message"]


# --- types and methods ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_a_body_of_another_type_is_refused(http: httpx.Client, kind: str) -> None:
    response = http.post("/v1/chat/completions", content=b"{}", headers={"content-type": kind})
    assert response.status_code == 415
    assert response.json()["error"]["code"] == "unsupported_media_type"


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON", "application/vnd.api+json"])
def test_json_by_other_names(http: httpx.Client, kind: str) -> None:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "a"}]})
    assert http.post("/v1/chat/completions", content=body, headers={"content-type": kind}).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/chat/completions", "POST"),
        ("PUT", "/v1/models", "GET, HEAD"),
        ("DELETE", "/puhui/v1/keys", "GET, HEAD, POST"),
        ("OPTIONS", "/v1/embeddings", "POST"),
    ],
)
def test_what_a_path_takes_is_told(http: httpx.Client, method: str, path: str, allowed: str) -> None:
    response = http.request(method, path)
    assert (response.status_code, response.headers["allow"]) == (405, allowed)
    assert response.json()["error"]["message"]
