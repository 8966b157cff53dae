"""Keys over HTTP: made, changed, revoked; shown once; and never anywhere else."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyed import Keyed, bearer, keyed, keyed_and_big
from puhui.store.key_table import KeyTable
from puhui.trust.api_keys import digest_of
from serving import BigModel, wait_until

PATH = "/puhui/v1/keys"


@pytest.fixture
def node(tmp_path: Path, big: BigModel) -> Iterator[Keyed]:
    with keyed(tmp_path, big.url) as running:
        yield running


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    """A node in which no key is made."""
    with keyed_and_big(tmp_path_factory.mktemp("node")) as (running, _):
        yield running


def make(node: Keyed, by: str | None = None, name: str = "a key", **body: Any) -> httpx.Response:
    return node.http.post(PATH, json={"name": name} | body, headers=bearer(by))


def first(node: Keyed) -> str:
    shown: str = make(node, name="owner", rules={"scopes": ["admin"]}).json()["key"]
    return shown


def test_from_no_key_to_several(node: Keyed) -> None:
    assert node.http.get(PATH).json() == {"object": "list", "data": []}
    refused = make(node)
    assert refused.status_code == 400  # it would lock everybody out
    assert "'admin'" in refused.json()["error"]["message"]
    made = make(node, name="owner", rules={"scopes": ["admin"]})
    assert made.status_code == 201
    assert made.headers["cache-control"] == "no-store"
    owner = made.json()["key"]
    assert node.chat().status_code == 401  # at once
    assert make(node).status_code == 401
    team = make(node, owner, name="团队", expires=time.time() + 60, rules={"requests_per_minute": 2, "share": True})
    assert team.status_code == 201
    key, id = team.json()["key"], team.json()["id"]
    assert team.json()["rules"] == {"scopes": ["chat", "embeddings"], "requests_per_minute": 2, "share": True}
    assert node.chat(key).status_code == 200
    assert make(node, key).status_code == 403
    shown = node.http.get(PATH, headers=bearer(owner)).json()["data"]
    assert [row["name"] for row in shown] == ["owner", "团队"]
    spent = shown[1]["spent"]["day"]
    assert (spent["requests"], spent["money"]) == (1, pytest.approx(0.014))
    assert spent["kwh"] > 0.0
    text = node.http.get(PATH, headers=bearer(owner)).text
    assert all(secret not in text for secret in (key, owner, digest_of(key.encode()), "digest"))
    gone = node.http.delete(f"{PATH}/{id}", headers=bearer(owner))
    assert (gone.status_code, gone.json()["state"]) == (200, "revoked")
    assert node.chat(key).status_code == 401


def test_rules_change_one_by_one(node: Keyed) -> None:
    owner = first(node)
    made = make(node, owner, rules={"requests_per_minute": 1, "money_per_day": 0.02}).json()
    url, key = f"{PATH}/{made['id']}", made["key"]
    assert [node.chat(key).status_code for _ in range(2)] == [200, 429]

    def change(**body: Any) -> httpx.Response:
        return node.http.patch(url, json=body, headers=bearer(owner))

    changed = change(name="another", rules={"requests_per_minute": None, "models": ["m"]}).json()
    assert (changed["name"], changed["rules"]) == (
        "another",
        {"scopes": ["chat", "embeddings"], "money_per_day": 0.02, "models": ["m"]},
    )
    assert [node.chat(key).status_code for _ in range(2)] == [200, 429]  # what was spent before is spent
    assert change(rules={"money_per_day": 0.05}).status_code == 200
    assert node.chat(key).status_code == 200
    assert change(expires=1.0).json()["state"] == "expired"
    assert node.chat(key).status_code == 401
    assert change(expires=None).json()["state"] == "active"
    assert change().status_code == 200
    assert node.http.patch(f"{PATH}/key_none", json={}, headers=bearer(owner)).status_code == 404
    assert node.http.delete(f"{PATH}/key_none", headers=bearer(owner)).status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"name": ""}',
        b'{"name": 7}',
        b'{"name": "x", "key": "pk-puhui-mine"}',
        b'{"name": "x", "expires": "tomorrow"}',
        b'{"name": "x", "expires": 5}',
        b'{"name": "x", "expires": 1e999}',
        b'{"name": "x", "rules": {"scopes": ["root"]}}',
        b'{"name": "x", "rules": {"scopes": ["admin"], "requests_per_minute": 0}}',
        b'{"name": "x", "rules": []}',
        b'{"name": "x", "rules": {"scopes": ["admin"], "models": []}}',
        b'{"name": "\xff"}',
        b'{"name": "x", "rules": {"models": ["' + b"m" * 70_000 + b'"]}}',
    ],
)
def test_what_is_not_usable_is_said(empty: Keyed, body: bytes) -> None:
    response = empty.http.post(PATH, content=body)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert empty.http.get(PATH).json()["data"] == []


def test_a_key_of_no_models_in_the_store_goes_on_with_any(node: Keyed) -> None:
    """Such keys were made before an empty list was refused."""
    owner, id = node.key(scopes=["admin"])
    KeyTable(node.store).change(id, rules={"scopes": ["admin", "chat"], "models": []})
    headers = bearer(owner)
    wait_until(lambda: '"chat"' in node.http.get(PATH, headers=headers).text)
    assert node.chat(owner).status_code == 200
    changed = node.http.patch(f"{PATH}/{id}", json={"rules": {"models": []}}, headers=headers)
    assert (changed.status_code, "no models" in changed.text) == (400, True)
    assert node.http.patch(f"{PATH}/{id}", json={"rules": {"models": None}}, headers=headers).is_success


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(["scopes", "requests_per_minute", "money_per_day", "models", "share", "keep"])


def test_no_body_is_a_fault(node: Keyed) -> None:
    owner = first(node)
    id = make(node, owner).json()["id"]

    @settings(max_examples=30)
    @given(st.fixed_dictionaries({}, optional={"name": JSON, "expires": JSON, "rules": st.dictionaries(NAMES, JSON)}))
    def try_it(body: dict[str, Any]) -> None:
        assert node.http.post(PATH, json=body, headers=bearer(owner)).status_code in (201, 400)
        assert node.http.patch(f"{PATH}/{id}", json=body, headers=bearer(owner)).status_code in (200, 400)

    try_it()
    assert node.http.get(PATH, headers=bearer(owner)).status_code == 200


def test_a_key_is_nowhere_but_with_its_owner(
    tmp_path: Path, big: BigModel, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Many requests and errors with everything logged: no key in logs, store, replies, or at the big model."""
    caplog.set_level(logging.DEBUG)
    replies: list[str] = []
    with keyed(tmp_path, big.url, log_level="DEBUG", access_log=True) as node:
        owner = first(node)
        made = make(node, owner, rules={"requests_per_minute": 30, "models": ["m"]}).json()
        secrets = [owner, made["key"], "pk-puhui-" + "wrong" * 8]
        for secret in secrets:
            for headers in (bearer(secret), {"x-api-key": secret}, bearer(secret) | {"x-api-key": secret}):
                replies += [
                    _told(node.http.request(method, path, headers=headers, **more))
                    for method, path, more in (
                        ("POST", "/v1/chat/completions", {"json": _asked("hi")}),
                        ("POST", "/v1/chat/completions", {"json": _asked("hi") | {"stream": True}}),
                        ("POST", "/v1/chat/completions", {"json": _asked("hi") | {"model": "n"}}),
                        ("POST", "/v1/chat/completions", {"content": b"{"}),
                        ("POST", "/v1/nothing", {"json": {}}),
                        ("GET", "/v1/models", {}),
                        ("GET", "/puhui/state", {}),
                        ("GET", "/puhui/v1/bill", {}),
                        ("GET", "/unknown", {}),
                        ("POST", PATH, {"json": {"name": "x", "rules": {"scopes": ["none"]}}}),
                        ("GET", PATH, {}),
                    )
                ]
            big.refuse = 400
            replies.append(_told(node.chat(secret)))
            big.refuse = 200
        replies += [_told(node.chat(made["key"])) for _ in range(40)]
        replies.append(_told(node.http.delete(f"{PATH}/{made['id']}", headers=bearer(owner))))
        replies.append(_told(node.chat(made["key"])))
    assert len(big.raw) > 20
    captured = capfd.readouterr()
    stored = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert made["id"].encode() in stored
    for secret in secrets:
        for told in (caplog.text, captured.out, captured.err, *replies):
            assert secret not in told
        assert secret.encode() not in stored
        assert secret.encode() not in b"".join(big.raw)
        assert secret not in str(big.headers)


def _asked(text: str) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}]}


def _told(response: httpx.Response) -> str:
    return f"{response.status_code} {response.headers!r} {response.text}"
