"""What clients of a node see of what goes on behind it: real upstreams that are away, refuse and break off."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from bench.stand_in import stand_in
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse

import experts as sample
from puhui.core.settings import AuditRate
from puhui.evolve.traffic import group_key
from puhui.gateway.server import ServeSettings, node_app
from puhui.store.database import open_store, sqlite_url
from puhui.trust.keys import load_or_create_key
from puhui.upstreams.upstream_settings import UpstreamSettings
from real_nodes import rows
from serving import BigModel, head_of, raw_server, says, serving, stream_of, wait_until

GROUP = group_key("puhui", "", "context", sample.SYSTEM)
KNOWN, UNKNOWN = "about my balance and cash or the bank number 7", "zzz"


class BreaksOff(BigModel):
    """Streams two events, and goes away."""

    async def _chat(self, http: HttpRequest) -> Response:
        await http.body()
        return StreamingResponse(self._half(), media_type="text/event-stream")

    async def _half(self) -> AsyncIterator[bytes]:
        for event in list(stream_of("hello"))[:2]:
            yield event
            await asyncio.sleep(0.01)
        raise ConnectionResetError("as it likes to")


def nobody() -> str:
    """The base URL of a server that is not there."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"http://127.0.0.1:{taken.getsockname()[1]}/v1"


@contextlib.contextmanager
def node(
    folder: Path, *upstreams: UpstreamSettings, expert: bool = False, rate: float = 1e-9
) -> Iterator[httpx.Client]:
    """A client of a node in front of these."""
    settings = ServeSettings(
        upstreams=upstreams,
        store=sqlite_url(folder / "puhui.db"),
        folder=folder,
        learn=False,
        access_log=False,
        audit_rate=AuditRate(learning=1e-9, probation=rate, steady=1e-9),
    )
    if expert:
        store = open_store(settings.store)
        sample.promote(store, settings.bundles, load_or_create_key(settings.key), GROUP, threshold=0.9)
        store.close()
    with serving(node_app(settings)) as url, httpx.Client(base_url=url, timeout=30.0, trust_env=False) as http:
        yield http


def ask(http: httpx.Client, text: str = UNKNOWN, *, headers: dict[str, str] | None = None, **more: Any) -> Any:
    messages = [{"role": "system", "content": sample.SYSTEM}, {"role": "user", "content": text}]
    return http.post("/v1/chat/completions", json={"model": "puhui", "messages": messages} | more, headers=headers)


def upstream(url: str, **more: Any) -> UpstreamSettings:
    return UpstreamSettings(ref=f"openai:big@{url}", **({"retries": 0} | more))


def test_while_nobody_answers_the_expert_does_and_the_rest_is_told_when_to_come_back(tmp_path: Path) -> None:
    with node(tmp_path, upstream(nobody()), expert=True) as http:
        statuses = []
        for _ in range(8):
            known, unknown = ask(http, KNOWN), ask(http)
            assert known.status_code == 200
            assert known.json()["puhui"]["by"].startswith("expert:")
            assert known.json()["choices"][0]["message"]["content"] == "money"
            statuses.append(unknown.status_code)
            assert unknown.json()["error"]["code"] == "upstream_unavailable"
            assert 1 <= int(unknown.headers["retry-after"]) <= 10
        assert statuses == [503] * 8
        (state,) = http.get("/puhui/state").json()["upstreams"]
        assert (state["breaker"], state["requests"], state["errors"]) == ("open", 5, 5)
        assert "cannot be reached" in state["last_error"]
        held = ask(http, KNOWN, headers={"x-puhui-quality": "1"})
        assert held.status_code == 503, "who wants the big model and nothing else has to wait"


def test_what_a_request_needs_is_refused_only_where_the_expert_is_not_sure(tmp_path: Path, big: BigModel) -> None:
    far = upstream(big.url, site=False, price_in=1e6, price_out=1e6)
    with node(tmp_path, far, expert=True) as http:
        for need, value in (("privacy", "device"), ("privacy", "site"), ("max_cost", "0.01")):
            headers = {f"x-puhui-{need.replace('_', '-')}": value}
            assert ask(http, KNOWN, headers=headers).json()["puhui"]["by"].startswith("expert:")
            refused = ask(http, headers=headers)
            assert refused.status_code == 422
            assert (refused.json()["error"]["code"], refused.json()["error"]["param"]) == ("needs_unmet", need)
        assert big.bodies == [], "what may not leave has not left"
        assert ask(http).json()["puhui"]["by"] == "big:big"
    found = rows(tmp_path)
    assert [row.status for row in found] == [200, 422] * 3 + [200]
    assert "may not leave this node" in found[1].note


def test_an_answer_that_costs_its_electricity_is_not_free(tmp_path: Path, big: BigModel) -> None:
    with node(tmp_path, upstream(big.url)) as http:
        assert ask(http).json()["puhui"]["cost"] > 0.0
        refused = ask(http, headers={"x-puhui-max-cost": "0"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (422, "max_cost")
        assert ask(http, headers={"x-puhui-max-cost": "0.01"}).status_code == 200
    with node(tmp_path / "far", upstream(big.url, site=False)) as http:
        refused = ask(http, headers={"x-puhui-max-cost": "5"})
        assert (refused.status_code, "no price for" in refused.json()["error"]["message"]) == (422, True)


def test_what_is_passed_on_costs_what_its_upstream_takes(tmp_path: Path) -> None:
    with stand_in([]) as url, node(tmp_path, UpstreamSettings(ref=url, price_in=2e6, price_out=1e6)) as http:
        http.post("/v1/embeddings", json={"model": "text-embedding-3-small", "input": "x"}).raise_for_status()
        http.post("/v1/completions", json={"model": "gpt-4o", "prompt": "x", "stream": True}).raise_for_status()
    assert [row.cost for row in rows(tmp_path)] == [8 * 2.0, 11 * 2.0 + 3 * 1.0]


def test_the_next_one_answers_and_the_callers_key_goes_where_it_should(tmp_path: Path, big: BigModel) -> None:
    second = BigModel(lambda text: f"second: {text}")
    with serving(second.app) as url:
        ranks = (upstream(big.url), upstream(f"{url}/v1", rank=1, pass_key=False))
        with node(tmp_path, *ranks) as http:
            headers = {"authorization": "Bearer sk-caller", "openai-organization": "org-1"}
            assert ask(http, headers=headers).json()["choices"][0]["message"]["content"] == "ZZZ"
            big.refuse = 503
            assert ask(http, headers=headers).json()["choices"][0]["message"]["content"] == "second: zzz"
    assert big.headers[0]["authorization"] == "Bearer sk-caller"
    assert big.headers[0]["openai-organization"] == "org-1"
    assert "authorization" not in second.headers[0]


class Echoes(BigModel):
    """Refuses every request, and repeats its headers."""

    async def _chat(self, http: HttpRequest) -> Response:
        return JSONResponse({"error": {"message": f"what is {http.headers['authorization']}?"}}, self.refuse)


@pytest.mark.parametrize("stream", [False, True])
def test_the_nodes_own_key_does_not_come_back(tmp_path: Path, stream: bool) -> None:
    echoes = Echoes()
    with serving(echoes.app) as url, node(tmp_path, upstream(f"{url}/v1", key="sk-own-0123456789")) as http:
        for status, shown in ((400, 400), (401, 502), (403, 502), (429, 429), (500, 500)):
            echoes.refuse = status
            reply = ask(http, stream=stream, headers={"authorization": "Bearer sk-theirs"})
            assert reply.status_code == shown
            assert "0123456789" not in reply.text
            assert (reply.json()["error"].get("code") == "upstream_auth") == (shown == 502)
        assert "0123456789" not in http.get("/puhui/state").text
    assert [row.status for row in rows(tmp_path)] == [400, 502, 502, 429, 500]


def test_a_callers_own_key_that_is_refused_is_the_callers_matter(tmp_path: Path) -> None:
    echoes = Echoes()
    echoes.refuse = 401
    with serving(echoes.app) as url, node(tmp_path, upstream(f"{url}/v1")) as http:
        reply = ask(http, headers={"authorization": "Bearer sk-theirs"})
    assert (reply.status_code, reply.json()) == (401, {"error": {"message": "what is Bearer sk-theirs?"}})


TOLD = {
    "openai-processing-ms": "12",
    "x-ratelimit-remaining-requests": "59",
    "x-request-id": "req_theirs",
    "cf-ray": "1a2b",
    "openai-version": "caf\u00e9",
    "set-cookie": "a=b",
    "keep-alive": "timeout=5",
    "x-puhui-by": "them",
    "strict-transport-security": "max-age=1",
}


class Tells(BigModel):
    """Has headers of many kinds in its replies."""

    async def _chat(self, http: HttpRequest) -> Response:
        reply = await super()._chat(http)
        reply.headers.update(TOLD)
        return reply


@pytest.mark.parametrize("stream", [False, True])
def test_headers_of_the_big_models_reply_that_clients_read_come_back(tmp_path: Path, stream: bool) -> None:
    with serving(Tells().app) as url, node(tmp_path, upstream(f"{url}/v1")) as http:
        reply = ask(http, stream=stream)
        with openai.OpenAI(base_url=f"{http.base_url}/v1", api_key="sk-1", max_retries=0) as client:
            raw = client.chat.completions.with_raw_response.create(
                model="puhui", messages=[{"role": "user", "content": "hi"}]
            )
    assert reply.status_code == 200
    assert raw.headers["openai-processing-ms"] == reply.headers["openai-processing-ms"] == "12"
    assert reply.headers["x-ratelimit-remaining-requests"] == "59"
    assert reply.headers["x-upstream-request-id"] == "req_theirs"
    assert reply.headers["x-request-id"] not in ("", "req_theirs")
    assert reply.headers["cf-ray"] == "1a2b"
    assert reply.headers["x-puhui-by"] == "big:big"
    assert not {"set-cookie", "keep-alive", "strict-transport-security", "openai-version"} & set(reply.headers)
    assert len(reply.headers.get_list("x-request-id")) == len(reply.headers.get_list("x-puhui-by")) == 1


def test_a_stream_that_an_error_of_the_upstream_ends_has_its_words(tmp_path: Path) -> None:
    said = {"message": "context length exceeded", "type": "invalid_request_error", "code": "context_length_exceeded"}
    events = [*list(stream_of("hi"))[:2], b"data: " + json.dumps({"error": said}).encode() + b"\n\n"]
    with raw_server(says(*events, head=head_of("text/event-stream"))) as url, node(tmp_path, upstream(url)) as http:
        *_, last, _ = ask(http, stream=True).text.split("\n\n")
    assert json.loads(last.removeprefix("data: ")) == {"error": said | {"param": None}}


def test_a_stream_that_breaks_off_ends_with_an_error_event(tmp_path: Path) -> None:
    with serving(BreaksOff().app) as url, node(tmp_path, upstream(f"{url}/v1", retries=3)) as http:
        reply = ask(http, stream=True)
        assert reply.status_code == 200
        *_, last, end = reply.text.split("\n\n")
        assert end == ""
        error = json.loads(last.removeprefix("data: "))["error"]
        assert error["code"] == "upstream_failed"
        assert "broke off" in error["message"]
        assert "[DONE]" not in reply.text
        with (
            openai.OpenAI(base_url=f"{http.base_url}/v1", api_key="sk-1", max_retries=0) as client,
            pytest.raises(openai.APIError, match="broke off"),
        ):
            for _ in client.chat.completions.create(
                model="puhui", messages=[{"role": "user", "content": "hi"}], stream=True
            ):
                pass


def test_a_stream_that_never_begins_is_an_error_with_a_status(tmp_path: Path) -> None:
    with node(tmp_path, upstream(nobody())) as http:
        reply = ask(http, stream=True)
    assert reply.status_code == 503
    assert reply.json()["error"]["code"] == "upstream_unavailable"
    assert "retry-after" in reply.headers


@pytest.mark.parametrize("status", [500, 502, 503, 529, 400, 404, 429])
def test_the_only_upstreams_own_status_comes_with_a_time_to_come_back(tmp_path: Path, status: int) -> None:
    echoes = Echoes()
    echoes.refuse = status
    with serving(echoes.app) as url, node(tmp_path, upstream(f"{url}/v1")) as http:
        reply = ask(http, headers={"authorization": "Bearer theirs"})
    assert reply.status_code == status
    assert reply.json() == {"error": {"message": "what is Bearer theirs?"}}
    assert reply.headers.get("retry-after") == ("5" if status >= 500 else None)


def test_a_hurry_is_kept(tmp_path: Path) -> None:
    slow = BigModel(lambda text: time.sleep(1.0) or text)  # type: ignore[func-returns-value]
    with serving(slow.app) as url, node(tmp_path, upstream(f"{url}/v1")) as http:
        started = time.perf_counter()
        reply = ask(http, headers={"x-puhui-latency-ms": "200"})
        assert time.perf_counter() - started < 0.9
        assert (reply.status_code, reply.headers["retry-after"]) == (504, "5")
        assert "within the 200 ms" in reply.json()["error"]["message"]


def test_audits_go_no_further_than_their_requests(tmp_path: Path, big: BigModel) -> None:
    """Every request would be audited, and every audit ask the big model what the expert was asked."""
    with node(tmp_path, upstream(big.url, site=False), expert=True, rate=1.0) as http:
        for privacy in ("device", "site", "any"):
            reply = ask(http, f"{KNOWN} {privacy}", headers={"x-puhui-privacy": privacy})
            assert reply.json()["puhui"]["by"].startswith("expert:")
        wait_until(lambda: http.get("/puhui/state").json()["audits_due"] == 0 and big.bodies)
        (expert,) = http.get("/puhui/state").json()["experts"]
        assert expert["served"] == 3
    with node(tmp_path, upstream(big.url, site=False)) as http:  # nor after a start
        assert http.get("/puhui/state").json()["audits_due"] == 0
    assert [body["messages"][-1]["content"] for body in big.bodies] == [f"{KNOWN} any"]
    near = tmp_path / "near"
    near.mkdir()
    with node(near, upstream(big.url), expert=True, rate=1.0) as http:
        ask(http, KNOWN, headers={"x-puhui-privacy": "site", "x-puhui-latency-ms": "1"})
        wait_until(lambda: len(big.bodies) == 2)
