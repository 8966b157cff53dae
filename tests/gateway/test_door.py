"""The door over real HTTP: who comes in with a key, and who without."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from bench.stand_in import stand_in
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from keyed import Keyed, bearer, keyed, keyed_and_big
from puhui.core.errors import SettingsError
from puhui.gateway.door import OPEN_PATHS, is_loopback, scope_of
from puhui.gateway.server import ServeSettings, node_app
from puhui.store.database import sqlite_url
from puhui.store.key_table import KeyTable
from puhui.store.tables import ledger
from serving import BigModel, serving, wait_until, whole


@pytest.fixture
def node(tmp_path: Path, big: BigModel) -> Iterator[Keyed]:
    with keyed(tmp_path, big.url) as running:
        yield running


@pytest.fixture
def locked(tmp_path: Path, big: BigModel) -> Iterator[Keyed]:
    with keyed(tmp_path, big.url, keys_required=True) as running:
        yield running


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Keyed, BigModel]]:
    """A node without keys, for tests that change nothing of it."""
    with keyed_and_big(tmp_path_factory.mktemp("node")) as both:
        yield both


@pytest.fixture(scope="module")
def shut(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Keyed, BigModel]]:
    """A node that asks for keys and has none."""
    with keyed_and_big(tmp_path_factory.mktemp("node"), keys_required=True) as both:
        yield both


def error_of(response: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def seen(node: Keyed, key: str) -> None:
    wait_until(lambda: node.http.get("/puhui/state", headers=bearer(key)).status_code != 401, seconds=1.5)


def test_without_keys_the_owner_is_not_asked_for_one(node: Keyed, big: BigModel) -> None:
    assert node.chat().status_code == 200
    assert node.chat("sk-the-big-models-own").status_code == 200
    assert big.headers[-1]["authorization"] == "Bearer sk-the-big-models-own"


def test_a_key_that_another_process_makes_or_revokes_is_seen_within_a_second(node: Keyed) -> None:
    assert node.chat().status_code == 200
    key, id = node.key()
    began = time.monotonic()
    wait_until(lambda: node.chat().status_code == 401)
    assert time.monotonic() - began < 1.5
    assert node.chat(key).status_code == 200
    KeyTable(node.store).revoke(id, time.time())
    began = time.monotonic()
    wait_until(lambda: node.chat(key).status_code == 401)
    assert time.monotonic() - began < 1.5
    assert node.chat().status_code == 401  # a node never falls back to being open


def test_the_official_client(locked: Keyed, big: BigModel) -> None:
    key, id = locked.key(requests_per_minute=100)
    seen(locked, key)
    with openai.OpenAI(base_url=f"{locked.url}/v1", api_key=key, max_retries=0) as client:
        reply = client.chat.completions.with_raw_response.create(
            model="m", messages=[{"role": "user", "content": "hello"}]
        )
        assert reply.parse().choices[0].message.content == "HELLO"
        assert reply.headers["x-ratelimit-limit-requests"] == "100"
        assert reply.headers["x-ratelimit-remaining-requests"] == "99"
        chunks = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hello"}], stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "HELLO"
    with openai.OpenAI(base_url=f"{locked.url}/v1", api_key="pk-puhui-wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as raised:
            client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hello"}])
        assert raised.value.response.headers["www-authenticate"] == "Bearer"
        assert raised.value.code == "invalid_api_key"
    with locked.store.begin() as connection:
        found = {row.key for row in connection.execute(ledger.select().where(ledger.c.kind == "request"))}
    assert found == {id}
    assert all("authorization" not in headers and "x-api-key" not in headers for headers in big.headers)


async def test_the_official_client_at_once(locked: Keyed) -> None:
    key, _ = locked.key(requests_per_minute=5)
    await asyncio.to_thread(seen, locked, key)

    async with openai.AsyncOpenAI(base_url=f"{locked.url}/v1", api_key=key, max_retries=0) as client:

        async def ask() -> openai.RateLimitError | None:
            try:
                await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hello"}])
            except openai.RateLimitError as error:
                return error
            return None

        refused = [error for error in await asyncio.gather(*(ask() for _ in range(12))) if error is not None]
    assert len(refused) == 7
    for error in refused:
        assert error.code == "rate_limit_exceeded"
        assert 1 <= int(error.response.headers["retry-after"]) <= 12
        assert error.response.headers["x-ratelimit-remaining-requests"] == "0"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": "Bearer pk-puhui-"},
        {"authorization": "Basic cGs6cGs="},
        {"authorization": b"Bearer \xff\xfe"},
        {"x-api-key": "nothing"},
        {"authorization": "Bearer " + "x" * 5000},
    ],
)
def test_no_key_or_a_wrong_one(shut: tuple[Keyed, BigModel], headers: dict[str, Any]) -> None:
    locked, big = shut
    response = locked.http.post("/v1/chat/completions", json={}, headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert error_of(response)["code"] == "invalid_api_key"
    assert big.raw == []


def test_both_ways_to_show_a_key(locked: Keyed) -> None:
    key, _ = locked.key()
    seen(locked, key)
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    for headers in ({"x-api-key": key}, {"authorization": f"bearer  {key}"}, bearer(key) | {"x-api-key": "other"}):
        assert locked.http.post("/v1/chat/completions", json=body, headers=headers).status_code == 200
    assert locked.http.get(f"/v1/models?api_key={key}").status_code == 401


def test_nothing_but_the_whole_key_opens(locked: Keyed) -> None:
    key, _ = locked.key()
    seen(locked, key)
    changed = st.one_of(
        st.integers(1, len(key) - 1).map(lambda end: key[:end]),
        st.integers(0, len(key) - 1).map(lambda at: key[:at] + ("A" if key[at] != "A" else "B") + key[at + 1 :]),
        st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=9).map(key.__add__),
    )

    @settings(max_examples=40)
    @given(changed)
    def try_it(other: str) -> None:
        assert locked.http.get("/v1/models", headers=bearer(other)).status_code == 401

    try_it()
    assert locked.chat(key).status_code == 200


def test_a_key_that_expires(locked: Keyed) -> None:
    key, id = locked.key(expires=time.time() + 2.0)
    seen(locked, key)
    wait_until(lambda: locked.chat(key).status_code == 401, seconds=3.0)
    assert error_of(locked.chat(key))["message"].startswith(f"the key {id} is expired")


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("POST", "/v1/chat/completions", "chat"),
        ("POST", "/v1/completions", "chat"),
        ("POST", "/v1/responses", "chat"),
        ("POST", "/v1/embeddings", "embeddings"),
        ("GET", "/v1/models", None),
        ("DELETE", "/v1/models/m", "chat"),
        ("GET", "/metrics", "read"),
        ("GET", "/puhui/state", "read"),
        ("GET", "/puhui/v1/bill", "read"),
        ("GET", "/device/experts", "read"),
        ("POST", "/puhui/v1/experts/x/demote", "admin"),
        ("GET", "/puhui/v1/keys", "admin"),
        ("GET", "/puhui/v1/keys/x", "admin"),
        ("GET", "/puhui/v1/traces", "admin"),
        ("DELETE", "/puhui/v1/traces", "admin"),
        ("HEAD", "/puhui/v1/keys", "admin"),
        ("POST", "/unknown", "admin"),
        ("GET", "/unknown", "read"),
    ],
)
def test_scopes(method: str, path: str, scope: str | None) -> None:
    assert scope_of(method, path) == scope


def test_a_key_does_what_its_scopes_say_and_no_more(locked: Keyed) -> None:
    chat, _ = locked.key(scopes=["chat"])
    read, _ = locked.key(scopes=["read"])
    admin, _ = locked.key(scopes=["admin"])
    seen(locked, admin)
    assert locked.http.get("/puhui/state", headers=bearer(chat)).status_code == 403
    assert locked.http.get("/puhui/state", headers=bearer(read)).status_code == 200
    assert locked.chat(read).status_code == 403
    assert error_of(locked.chat(read))["code"] == "not_allowed"
    assert locked.chat(admin).status_code == 200
    for key in (chat, read):
        assert locked.http.get("/puhui/v1/keys", headers=bearer(key)).status_code == 403
        assert locked.http.get("/puhui/v1/traces?request=x", headers=bearer(key)).status_code == 403
    assert locked.http.get("/puhui/v1/traces?request=x", headers=bearer(admin)).status_code == 200
    assert locked.http.get("/puhui/v1/keys", headers=bearer(admin)).status_code == 200
    for path in ("/healthz", "/device", "/device/puhui.js"):
        assert path in OPEN_PATHS
        assert locked.http.get(path).status_code == 200
    assert locked.http.post("/healthz").status_code == 401


def test_models_that_a_key_may_ask_for(locked: Keyed, big: BigModel) -> None:
    key, _ = locked.key(models=["m", "n"])
    seen(locked, key)
    assert [locked.chat(key, model=model).status_code for model in ("m", "n", "o", "M")] == [200, 200, 403, 403]
    assert "only for m, n" in error_of(locked.chat(key, model="o"))["message"]
    assert {body["model"] for body in big.bodies} == {"m", "n"}


def test_models_are_shown_to_who_may_ask_for_them(tmp_path: Path) -> None:
    with stand_in() as upstream, keyed(tmp_path, upstream, keys_required=True) as node:
        few, _ = node.key(models=["m", "gpt-4o"], requests_per_minute=4)
        embeds, _ = node.key(scopes=["embeddings"])
        read, _ = node.key(scopes=["read"])
        seen(node, read)

        def shown(key: str, path: str = "") -> httpx.Response:
            return node.http.get(f"/v1/models{path}", headers=bearer(key))

        assert [shown(read, path).status_code for path in ("", "/gpt-4o")] == [403, 403]
        assert "chat or embeddings" in error_of(shown(read))["message"]
        assert [each["id"] for each in shown(embeds).json()["data"]][:2] == ["gpt-4o", "org/small"]
        assert [each["id"] for each in shown(few).json()["data"]] == ["gpt-4o", "m"]
        assert shown(few, "/gpt-4o").json()["owned_by"] == "somebody"
        assert error_of(shown(few, "/org/small"))["code"] == "not_allowed"
        assert shown(few).headers["x-ratelimit-remaining-requests"] == "0"
        assert shown(few).status_code == 429


def test_a_keys_own_limits_take_the_place_of_the_upstreams(tmp_path: Path) -> None:
    async def chat(_: Request) -> Response:
        theirs = {"x-ratelimit-limit-requests": "9000", "x-ratelimit-limit-tokens": "7"}
        return Response(whole("hi"), headers=theirs, media_type="application/json")

    app = Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])])
    with serving(app) as upstream, keyed(tmp_path, f"{upstream}/v1", keys_required=True) as node:
        limited, _ = node.key(requests_per_minute=9)
        free, _ = node.key()
        seen(node, free)
        told = [
            {
                name: value
                for name, value in node.chat(key).headers.multi_items()
                if name.startswith("x-ratelimit-limit")
            }
            for key in (limited, free)
        ]
    assert told == [
        {"x-ratelimit-limit-requests": "9"},
        {"x-ratelimit-limit-requests": "9000", "x-ratelimit-limit-tokens": "7"},
    ]


def test_a_budget_is_spent_to_its_end_and_a_node_that_starts_again_remembers(tmp_path: Path, big: BigModel) -> None:
    with keyed(tmp_path, big.url, keys_required=True) as node:
        key, _ = node.key(money_per_day=0.05)  # an answer costs 0.014
        other, _ = node.key()
        seen(node, other)
        assert [node.chat(key).status_code for _ in range(6)] == [200] * 4 + [429] * 2
        assert node.chat(other).status_code == 200
    with keyed(tmp_path, big.url, keys_required=True) as node:
        refused = node.chat(key)
        assert refused.status_code == 429
        assert error_of(refused)["code"] == "insufficient_quota"
        assert 1 <= int(refused.headers["retry-after"]) <= 86_400
        assert node.chat(other).status_code == 200
        assert list(node.chat(key, stream=True).json()) == ["error"]
    assert len(big.raw) == 6


def test_streams_are_counted_too(locked: Keyed) -> None:
    key, _ = locked.key(tokens_per_minute=14)
    seen(locked, key)
    with locked.http.stream(
        "POST",
        "/v1/chat/completions",
        json={"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True},
        headers=bearer(key),
    ) as response:
        assert response.status_code == 200
        assert b"[DONE]" in b"".join(response.iter_bytes())
    refused = locked.chat(key)
    assert refused.status_code == 429
    assert refused.headers["x-ratelimit-remaining-tokens"] == "0"
    assert "14 tokens a minute" in error_of(refused)["message"]


def test_a_stream_that_is_broken_off_is_charged_for_what_came(locked: Keyed, big: BigModel) -> None:
    """Else whoever hangs up before the end would pay nothing, and the big model's bill comes all the same."""
    big.rule = lambda text: text * 200_000
    key, id = locked.key(tokens_per_minute=10)
    seen(locked, key)
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "stream": True}
    with locked.http.stream("POST", "/v1/chat/completions", json=body, headers=bearer(key)) as response:
        assert next(response.iter_bytes())

    def rows() -> list[Any]:
        with locked.store.begin() as connection:
            return list(connection.execute(ledger.select().where(ledger.c.key == id)))

    wait_until(rows)
    (row,) = rows()
    assert row.status == 499
    assert row.prompt_tokens > 0
    assert row.completion_tokens > 0
    assert row.cost == pytest.approx((row.prompt_tokens + row.completion_tokens) * 1e-3)
    assert KeyTable(locked.store).spent_since(0.0)[0].money == pytest.approx(row.cost)
    assert locked.chat(key).status_code == 429


HOSTS = ["localhost", "localhost:8000", "127.0.0.1:1", "127.9.9.9", "[::1]:8000", "LOCALHOST", "app.localhost:80"]
FOREIGN = ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "192.168.1.5", ""]


@pytest.mark.parametrize("host", HOSTS)
def test_this_machines_names(shared: tuple[Keyed, BigModel], host: str) -> None:
    assert shared[0].http.get("/puhui/state", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", FOREIGN)
def test_a_page_that_comes_by_dns_rebinding_gets_nothing(shared: tuple[Keyed, BigModel], host: str) -> None:
    """Its requests reach 127.0.0.1, and name its own site as the host."""
    node, big = shared
    before = len(big.raw)
    for method, path in (("GET", "/puhui/state"), ("POST", "/v1/chat/completions"), ("POST", "/puhui/v1/keys")):
        response = node.http.request(method, path, headers={"host": host}, json={})
        assert response.status_code == 403
        assert "make a key" in error_of(response)["message"]
    assert len(big.raw) == before


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:9", "http://127.0.0.1", ""])
def test_a_page_of_another_origin_changes_nothing(shared: tuple[Keyed, BigModel], origin: str) -> None:
    node, big = shared
    before = len(big.raw)
    body = b'{"model": "m", "messages": [{"role": "user", "content": "hi"}]}'
    headers = {"origin": origin, "content-type": "text/plain"}  # for which browsers ask nobody first
    response = node.http.post("/v1/chat/completions", content=body, headers=headers)
    assert response.status_code == 403
    assert "--allow-origin" in error_of(response)["message"]
    assert len(big.raw) == before
    own = {"origin": node.url}
    assert node.http.post("/v1/chat/completions", content=body, headers=own).status_code == 200


@pytest.mark.parametrize("name", ["x-forwarded-for", "forwarded", "via", "x-real-ip"])
def test_what_comes_through_a_proxy_is_not_the_owners(shared: tuple[Keyed, BigModel], name: str) -> None:
    response = shared[0].http.get("/puhui/state", headers={name: "203.0.113.9"})
    assert response.status_code == 403
    assert "proxy" in error_of(response)["message"]


def test_an_origin_that_is_allowed(tmp_path: Path, big: BigModel) -> None:
    page = "https://chat.example"
    with keyed(tmp_path, big.url, allow_origins=(f"{page}/",)) as node:
        asked = {"origin": page, "access-control-request-method": "POST", "access-control-request-headers": "x-b"}
        preflight = node.http.options("/v1/chat/completions", headers=asked)
        assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, page)
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        response = node.http.post("/v1/chat/completions", json=body, headers={"origin": page})
        assert (response.status_code, response.headers["access-control-allow-origin"]) == (200, page)
        assert response.headers["access-control-expose-headers"] == "*"
        other = node.http.post("/v1/chat/completions", json=body, headers={"origin": "https://evil.example"})
        assert other.status_code == 403
        assert "access-control-allow-origin" not in other.headers


def test_open_to_all_but_for_its_keys(tmp_path: Path, big: BigModel) -> None:
    with keyed(tmp_path, big.url, allow_open=True) as node:
        elsewhere = {"host": "box.lan:8000", "x-forwarded-for": "10.0.0.3"}
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        assert node.http.post("/v1/chat/completions", json=body, headers=elsewhere).status_code == 200
        evil = {"host": "box.lan:8000", "origin": "https://evil.example"}
        assert node.http.post("/v1/chat/completions", json=body, headers=evil).status_code == 403
        for headers in (elsewhere, {"host": "box.lan:8000"}, {"x-forwarded-for": "10.0.0.3"}):
            made = node.http.post("/puhui/v1/keys", json={"name": "x", "rules": {"scopes": ["admin"]}}, headers=headers)
            assert made.status_code == 403


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "example.org"])
def test_an_address_that_others_reach_needs_keys(tmp_path: Path, host: str) -> None:
    at = ServeSettings(
        upstream="http://127.0.0.1:9/v1", store=sqlite_url(tmp_path / "a.db"), folder=tmp_path, host=host
    )
    with pytest.raises(SettingsError, match="puhui keys new"):
        node_app(at)


def test_loopback_names() -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.1.2.3", "::1", "a.localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "localhost.a", "notlocalhost", "")))


def test_websockets_are_not_spoken(locked: Keyed) -> None:
    asked = {
        "connection": "upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": "eA==",
    }
    assert locked.http.get("/puhui/v1/live", headers=asked).status_code in (400, 401, 403)


def test_a_key_with_rules_of_a_later_version_opens_nothing(locked: Keyed) -> None:
    key, id = locked.key()
    seen(locked, key)
    KeyTable(locked.store).change(id, rules={"scopes": ["chat"], "only_on_sundays": True})
    wait_until(lambda: locked.chat(key).status_code == 401)


def test_keys_stay_as_they_are_while_the_store_cannot_be_read(locked: Keyed, tmp_path: Path) -> None:
    key, _ = locked.key()
    seen(locked, key)
    with sqlite3.connect(tmp_path / "puhui.db") as connection:
        connection.execute("ALTER TABLE about RENAME TO elsewhere")
        connection.commit()
    time.sleep(1.2)
    assert locked.chat(key).status_code == 200
    assert locked.chat().status_code == 401
