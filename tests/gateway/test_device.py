"""What a node gives to browsers: the page, the experts in place, and nothing else."""

from __future__ import annotations

import gzip
import hashlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import update

import experts as sample
from puhui.browser import FOLDER
from puhui.bundles.bundle import open_bundle
from puhui.evolve.learner import FIRST_ATTEMPT_ROWS
from puhui.evolve.traffic import group_key
from puhui.gateway.server import ServeSettings, node_app
from puhui.store.database import Store, open_store, sqlite_url
from puhui.store.tables import experts
from puhui.trust.keys import load_or_create_key
from serving import BigModel, serving, wait_until

GROUP = group_key("m", "", "context", sample.SYSTEM)


class Served(NamedTuple):
    """A node with one expert in place: a client, the expert's id and bundle, and the node's store."""

    http: httpx.Client
    expert: str
    place: Path
    store: Store

    @property
    def url(self) -> str:
        """Where the expert's files are."""
        return f"/device/experts/{self.expert}"


def app_settings(folder: Path, upstream: str = "http://127.0.0.1:9/v1") -> ServeSettings:
    return ServeSettings(
        upstream=upstream, store=sqlite_url(folder / "puhui.db"), folder=folder, learn=False, access_log=False
    )


def served(folder: Path) -> Iterator[Served]:
    chosen = app_settings(folder)
    store = open_store(chosen.store)
    expert, place, _ = sample.promote(store, chosen.bundles, load_or_create_key(chosen.key), GROUP)
    with serving(node_app(chosen)) as url, httpx.Client(base_url=url, timeout=20.0, trust_env=False) as http:
        yield Served(http, expert, place, store)
    store.close()


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    yield from served(tmp_path_factory.mktemp("node"))


@pytest.fixture
def own_node(tmp_path: Path) -> Iterator[Served]:
    yield from served(tmp_path)


def test_the_page(node: Served) -> None:
    response = node.http.get("/device")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.strip().split(" ", 1) for part in response.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert response.headers["cross-origin-opener-policy"] == "same-origin"
    assert response.headers["cross-origin-embedder-policy"] == "require-corp"
    assert "<script>" not in response.text
    assert "style=" not in response.text
    assert "http://" not in response.text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in response.text


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.iterdir() if path.suffix in (".js", ".css")))
def test_what_the_page_uses(node: Served, name: str) -> None:
    response = node.http.get(f"/device/{name}")
    assert response.content == (FOLDER / name).read_bytes()
    assert response.headers["content-encoding"] == "gzip"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["content-type"].startswith("text/css" if name.endswith("css") else "text/javascript")
    assert response.headers.get("service-worker-allowed") == ("/device" if name == "device-worker.js" else None)
    again = node.http.get(f"/device/{name}", headers={"if-none-match": response.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_experts_in_place(node: Served) -> None:
    response = node.http.get("/device/experts")
    found = response.json()
    assert response.headers["cache-control"] == "no-cache"
    assert "access-control-allow-origin" not in response.headers
    (shown,) = found["experts"]
    assert (shown["id"], shown["family"], shown["labels"]) == (node.expert, "static", 3)
    assert (shown["coverage"], shown["risk_bound"], shown["delta"]) == (0.9, 0.01, 0.05)
    assert shown["bytes"] == sample.model().size_bytes
    assert shown["task"].startswith("Which subject is this about")
    assert found["learning"] == []


@pytest.mark.parametrize("name", ["expert.json", "signature.json", "static.json", "weights.safetensors"])
def test_files_of_an_expert(node: Served, name: str) -> None:
    there = (node.place / name).read_bytes()
    response = node.http.get(f"{node.url}/{name}")
    assert response.content == there
    assert response.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert response.headers["etag"] == f'W/"{hashlib.sha256(there).hexdigest()[:32]}"'
    assert response.headers["vary"] == "accept-encoding"
    head = node.http.head(f"{node.url}/{name}")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == response.headers["content-length"]


@pytest.mark.parametrize(
    ("accepted", "packed"),
    [("gzip", True), ("br, gzip;q=0.5", True), ("GZIP", True), ("identity", False), ("gzip;q=0", False), ("", False)],
)
def test_packed_for_those_who_take_it(node: Served, accepted: str, packed: bool) -> None:
    there = (node.place / "static.json").read_bytes()
    with node.http.stream("GET", f"{node.url}/static.json", headers={"accept-encoding": accepted}) as response:
        raw = b"".join(response.iter_raw())
        assert response.headers.get("content-encoding") == ("gzip" if packed else None)
        assert int(response.headers["content-length"]) == len(raw)
    assert (gzip.decompress(raw) if packed else raw) == there
    assert (len(raw) < len(there)) is packed


def test_what_is_known_is_not_sent_again(node: Served) -> None:
    etag = node.http.get(f"{node.url}/weights.safetensors").headers["etag"]
    known = node.http.get(f"{node.url}/weights.safetensors", headers={"if-none-match": f'"x", {etag}'})
    assert (known.status_code, known.content, known.headers["etag"]) == (304, b"", etag)
    assert node.http.get(f"{node.url}/weights.safetensors", headers={"if-none-match": '"x"'}).status_code == 200


OUTSIDE = [
    *("../../keys/node.key", "..%2f..%2fkeys%2fnode.key", "%2e%2e/%2e%2e/keys/node.key", "....//node.key"),
    *("/etc/passwd", "%2fetc%2fpasswd", "static.json/", "static.json%00", "./static.json", "STATIC.JSON", "", "x"),
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_path_leads_out(node: Served, name: str) -> None:
    assert raw_status(node, f"{node.url}/{name}") == 404
    assert raw_status(node, f"/device/{name}") in (404, 307)  # 307: to the same without a slash at its end


def raw_status(node: Served, target: str) -> int:
    """The status of a request whose path is sent as it is: clients tidy paths up."""
    with socket.create_connection((node.http.base_url.host, node.http.base_url.port or 80)) as connection:
        connection.sendall(f"GET {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
        reply = b""
        while piece := connection.recv(65536):
            reply += piece
    return int(reply.split(b" ", 2)[1])


@settings(max_examples=60)
@given(st.text(max_size=12), st.text(st.sampled_from("./\\%2fe~ab\x00json"), max_size=14))
def test_no_name_is_a_fault(node: Served, expert: str, name: str) -> None:
    for path in (f"/device/experts/{expert}/{name}", f"{node.url}/{name}", f"/device/{name}"):
        assert raw_status(node, quote(path, safe="/%\\")) in (200, 404, 307)


def test_other_experts_and_methods(node: Served) -> None:
    for expert in ("0" * 64, node.expert[:24], node.expert.upper(), "experts", "*"):
        assert node.http.get(f"/device/experts/{expert}/expert.json").status_code == 404
    assert node.http.get("/device/device.html").status_code == 404  # only where its headers are
    for path in ("/device", "/device/experts", f"{node.url}/expert.json", "/device/puhui.js"):
        assert node.http.post(path).status_code == 405
        assert node.http.head(path).status_code == 200


def test_an_expert_that_steps_down_is_not_given_out_any_more(own_node: Served) -> None:
    http, url = own_node.http, own_node.url
    assert http.get(f"{url}/weights.safetensors").status_code == 200
    with own_node.store.begin() as connection:
        connection.execute(update(experts).values(status="demoted"))
    wait_until(lambda: not http.get("/device/experts").json()["experts"])
    assert http.get(f"{url}/weights.safetensors").status_code == 404
    assert http.get(f"{url}/expert.json").status_code == 404


def test_a_file_that_was_changed_on_the_disk_is_not_given_out(own_node: Served) -> None:
    (own_node.place / "static.json").write_bytes(b"{}")
    response = own_node.http.get(f"{own_node.url}/static.json")
    assert response.status_code == 500
    assert "static.json" in response.json()["error"]["message"]
    assert str(own_node.place) not in response.text
    assert own_node.http.get(f"{own_node.url}/weights.safetensors").status_code == 200


def test_how_far_learning_is(tmp_path: Path, big: BigModel) -> None:
    big.rule = sample.subject_of
    with serving(node_app(app_settings(tmp_path, big.url))) as url, httpx.Client(base_url=url) as http:
        assert http.get("/device/experts").json() == {"experts": [], "learns": False, "learning": []}
        for question in sample.questions(7):
            asked = [{"role": "system", "content": sample.SYSTEM}, {"role": "user", "content": question}]
            assert http.post("/v1/chat/completions", json={"model": "m", "messages": asked}).status_code == 200
        (row,) = http.get("/device/experts").json()["learning"]
        assert row == {"task": sample.SYSTEM[:60], "answers": 7, "needed": FIRST_ATTEMPT_ROWS}


def test_what_is_given_is_a_whole_bundle(node: Served, tmp_path: Path) -> None:
    """Fetched file by file over HTTP, Python opens it as one."""
    card = node.http.get(f"{node.url}/expert.json").content
    for name in ("expert.json", "signature.json", *json.loads(card)["files"]):
        (tmp_path / name).write_bytes(node.http.get(f"{node.url}/{name}").content)
    _, model = open_bundle(tmp_path, expert=node.expert)
    assert model.predict_one("my bank balance")[0] == "money"
