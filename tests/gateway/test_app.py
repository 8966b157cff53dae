"""The gateway over real HTTP: OpenAI's own client, and whatever else people send."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puhui.core.answer import Answer, Step
from puhui.core.errors import (
    PuhuiError,
    StoreError,
    UpstreamGarbled,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from puhui.core.request import Request
from puhui.gateway.app import build_app
from puhui.gateway.bodies import MEBIBYTE, MOST_BODY_MB
from puhui.models.endpoint import Endpoint
from serving import BigModel, chunk, serving, wait_until

ASKED: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


async def shout(request: Request) -> Answer:
    """The simplest answerer: the last message, louder. What it is told to fail with, it raises."""
    text = request.messages[-1].text or ""
    if text in FAILURES:
        raise FAILURES[text]
    by = f"shout:{request.model}"
    return Answer(by=by, text=text.upper(), confidence=0.9, path=(Step(by, 0.9, True),))


FAILURES: dict[str, Exception] = {
    "down": UpstreamUnavailable("it cannot be reached"),
    "slow": UpstreamTimeout("it did not answer in time"),
    "garbled": UpstreamGarbled("it sent rubbish"),
    "store": StoreError("the disk is full"),
    "ours": PuhuiError("odd"),
    "bug": ZeroDivisionError("a fault"),
    "refused": UpstreamRefused("no", status=429, body=b'{"error": {"message": "slow down"}}', retry_after="9"),
    "html": UpstreamRefused("no", status=503, body=b"<html>", retry_after="9"),
    "moved": UpstreamRefused("no", status=302, body=b'{"error": {}}'),
    "strange": UpstreamRefused("no", status=799, body=b'{"error": {}}', retry_after="nie\r\nset-cookie: a=b"),
    "later": UpstreamRefused("no", status=429, body=b"{}", retry_after="später 模"),
    "deep": UpstreamRefused("no", status=500, body=b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}"),
}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(build_app(shout, state=lambda: {"fine": True})) as served:
        yield served


@pytest.fixture(scope="module")
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=20.0, trust_env=False) as client:
        yield client


def chat(http: httpx.Client, content: Any = "hi", **more: Any) -> httpx.Response:
    return http.post("/v1/chat/completions", json=ASKED | {"messages": [{"role": "user", "content": content}]} | more)


def error_of(response: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


def test_an_answer(http: httpx.Client) -> None:
    response = chat(http)
    assert response.status_code == 200
    assert response.json()["choices"][0]["message"]["content"] == "HI"
    assert response.headers["x-puhui-by"] == "shout:m"
    assert response.headers["x-puhui-confidence"] == "0.9000"
    assert response.headers["x-request-id"] == response.json()["puhui"]["id"]


def test_the_other_pages(http: httpx.Client) -> None:
    assert http.get("/healthz").json() == {"status": "ok"}
    assert http.get("/puhui/state").json() == {"fine": True}
    assert http.get("/v1/models").json() == {"object": "list", "data": []}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("POST", "/v1/embeddings", 404),
        ("GET", "/v1/../etc/passwd", 404),
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/chat/completions/", 404),
        ("GET", "/v1/models/m/", 404),
        ("GET", "/healthz/", 404),
        ("DELETE", "/v1/models", 405),
        ("PATCH", "/healthz", 405),
    ],
)
def test_unknown_paths_and_methods(http: httpx.Client, method: str, path: str, status: int) -> None:
    response = http.request(method, path)
    assert response.status_code == status
    assert error_of(response)["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("said", "status", "kind"),
    [
        ("down", 503, "upstream_error"),
        ("slow", 504, "upstream_error"),
        ("garbled", 502, "upstream_error"),
        ("store", 503, "server_error"),
        ("ours", 500, "server_error"),
        ("html", 503, "upstream_error"),
        ("moved", 502, "upstream_error"),
        ("strange", 502, "upstream_error"),
        ("deep", 500, "upstream_error"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_failures_have_their_status(http: httpx.Client, said: str, status: int, kind: str, streaming: bool) -> None:
    response = chat(http, said, stream=streaming)
    assert response.status_code == status
    assert error_of(response)["type"] == kind
    assert "set-cookie" not in response.headers


def test_a_fault_of_ours_is_told_without_its_inside(http: httpx.Client) -> None:
    response = chat(http, "bug")
    assert response.status_code == 500
    assert "see its log" in error_of(response)["message"]
    assert "Traceback" not in response.text
    assert chat(http).status_code == 200


def test_the_big_models_own_words_are_passed_on(http: httpx.Client) -> None:
    response = chat(http, "refused")
    assert (response.status_code, response.json()) == (429, {"error": {"message": "slow down"}})
    assert response.headers["retry-after"] == "9"
    assert "retry-after" not in chat(http, "later").headers


@pytest.mark.parametrize("model", ["模型", "m\r\nset-cookie: a=b", "m\x00", "ü%41"])
@pytest.mark.parametrize("streaming", [False, True])
def test_names_of_models_that_no_header_can_carry(http: httpx.Client, model: str, streaming: bool) -> None:
    response = chat(http, model=model, stream=streaming)
    assert response.status_code == 200
    assert "set-cookie" not in response.headers
    assert response.headers["x-puhui-by"].startswith("shout:")
    if not streaming:
        assert response.json()["puhui"]["by"] == f"shout:{model}"


def test_a_body_that_is_too_large(http: httpx.Client) -> None:
    response = chat(http, "x" * (9 * 1024 * 1024))
    assert response.status_code == 413
    assert error_of(response)["code"] == "request_too_large"
    fits = chat(http, "x" * (MOST_BODY_MB * MEBIBYTE - 200))
    assert fits.status_code == 200


def test_a_body_that_is_too_large_and_does_not_say_so(http: httpx.Client) -> None:
    def pieces() -> Iterator[bytes]:
        yield b'{"model": "m", "messages": [{"role": "user", "content": "'
        for _ in range(9 * 16):
            yield b"x" * 65536
        yield b'"}]}'

    response = http.post("/v1/chat/completions", content=pieces())
    assert response.status_code == 413


def test_a_client_that_goes_away_half_way(url: str, http: httpx.Client) -> None:
    host, port = url.removeprefix("http://").split(":")
    for sent in (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 500\r\n\r\n{",
        b"POST /v1/ch",
        b"\x16\x03\x01",
    ):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(sent)
    assert chat(http).status_code == 200


def test_an_unknown_model_is_refused_with_what_there_is() -> None:
    with serving(build_app(shout, models=("gpt-4o", "puhui"))) as url, httpx.Client(base_url=url) as http:
        response = chat(http, model="gpt-5")
        assert response.status_code == 404
        error = error_of(response)
        assert error["code"] == "model_not_found"
        assert "gpt-4o, puhui" in error["message"]
        assert [model["id"] for model in http.get("/v1/models").json()["data"]] == ["gpt-4o", "puhui"]
        assert chat(http, model="puhui").status_code == 200
        assert chat(http, model="x" * 5000).status_code == 400


# --- whatever people send -------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ["model", "messages", "stream", "n", "tools", "metadata", "logprobs", "temperature", "modalities", "user", "x"]
)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "system", "tool"]) | VALUES}, optional={"content": VALUES}),
    max_size=3,
)


@settings(max_examples=150)
@given(st.dictionaries(FIELDS, VALUES, max_size=5), st.none() | MESSAGES, st.booleans())
def test_no_body_is_a_fault(http: httpx.Client, fields: dict[str, Any], messages: Any, with_model: bool) -> None:
    body = fields | ({} if messages is None else {"messages": messages}) | ({"model": "m"} if with_model else {})
    response = http.post("/v1/chat/completions", content=json.dumps(body).encode())
    assert response.status_code in (200, 400)
    if response.status_code == 400:
        assert error_of(response)["type"] == "invalid_request_error"


@settings(max_examples=100)
@given(st.binary(max_size=200), st.integers(0, 90), st.integers(0, 20))
def test_no_bytes_are_a_fault(http: httpx.Client, rubbish: bytes, at: int, cut: int) -> None:
    good = json.dumps(ASKED | {"user": "é", "temperature": 0.5}).encode()
    response = http.post("/v1/chat/completions", content=good[:at] + rubbish + good[at + cut :])
    assert response.status_code in (200, 400)


def test_a_packed_body_is_refused_by_the_name_of_its_packing(http: httpx.Client) -> None:
    packed = gzip.compress(json.dumps(ASKED).encode())
    refused = http.post("/v1/chat/completions", content=packed, headers={"content-encoding": "gzip"})
    assert refused.status_code == 415
    assert "'gzip'" in error_of(refused)["message"]
    assert refused.headers["accept-encoding"] == "identity"
    plain = http.post("/v1/chat/completions", json=ASKED, headers={"content-encoding": "Identity"})
    assert plain.status_code == 200


@settings(max_examples=60)
@given(
    st.dictionaries(
        st.sampled_from(["x-puhui-quality", "authorization", "content-type", "accept"]), st.binary(max_size=9)
    )
)
def test_no_header_is_a_fault(http: httpx.Client, headers: dict[str, bytes]) -> None:
    safe = {name: bytes(b for b in value if 32 <= b != 127).strip() for name, value in headers.items()}
    response = http.post("/v1/chat/completions", content=json.dumps(ASKED).encode(), headers=list(safe.items()))  # type: ignore[arg-type]
    assert response.status_code in (200, 400, 415)


# --- OpenAI's client ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def through() -> Iterator[tuple[str, BigModel]]:
    """A gateway straight in front of a big model, and that model."""
    model = BigModel()
    with serving(model.app) as behind:
        endpoint = Endpoint(f"{behind}/v1")

        @contextlib.asynccontextmanager
        async def lifespan(_: object) -> AsyncIterator[None]:
            yield
            await endpoint.close()

        with serving(build_app(endpoint, lifespan=lifespan)) as url:
            yield f"{url}/v1", model


def test_openai_client(through: tuple[str, BigModel]) -> None:
    url, model = through
    with openai.OpenAI(base_url=url, api_key="sk-mine", max_retries=0) as client:
        reply = client.chat.completions.create(
            model="gpt-4o",
            messages=[{"role": "user", "content": "héllo"}],
            temperature=0.25,
            extra_body={"nobody_knows": {"this": [1.5, None]}},
        )
        assert reply.choices[0].message.content == "HÉLLO"
        assert reply.system_fingerprint == "fp_unknown_to_puhui"
        assert reply.model_extra is not None
        assert reply.model_extra["puhui"]["by"] == "big:gpt-4o"
        assert model.bodies[-1]["nobody_knows"] == {"this": [1.5, None]}
        assert model.bodies[-1]["temperature"] == 0.25
        assert model.headers[-1]["authorization"] == "Bearer sk-mine"

        raw = client.chat.completions.with_raw_response.create(model="m", messages=[{"role": "user", "content": "a"}])
        assert raw.headers["x-puhui-by"] == "big:m"

        chunks = list(
            client.chat.completions.create(model="m", messages=[{"role": "user", "content": "日本"}], stream=True)
        )
        assert "".join(each.choices[0].delta.content or "" for each in chunks) == "日本"
        assert chunks[-1].model_extra is not None
        assert chunks[-1].model_extra["puhui"]["by"] == "big:m"

        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="m", messages=[])
        assert caught.value.param == "messages"
        model.refuse = 429
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(model="m", messages=[{"role": "user", "content": "a"}])
        model.refuse = 200


async def test_openai_async_client(through: tuple[str, BigModel]) -> None:
    async with openai.AsyncOpenAI(base_url=through[0], api_key="k", max_retries=0) as client:

        async def whole(n: int) -> str | None:
            reply = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": f"q{n}"}])
            return reply.choices[0].message.content

        async def streamed(n: int) -> str:
            stream = await client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": f"q{n}"}], stream=True
            )
            return "".join([each.choices[0].delta.content or "" async for each in stream])

        answers = await asyncio.gather(*(whole(n) for n in range(20)), *(streamed(n) for n in range(20)))
        assert answers == [f"Q{n}" for n in range(20)] * 2


def test_the_body_goes_on_byte_for_byte(through: tuple[str, BigModel]) -> None:
    url, model = through
    body = b'{ "messages":[{"role":"user","content":"hi","name":"\\u00e9"}],"model" : "m", '
    body += b'"big":123456789012345678901234567890, "f": 1.10 }'
    assert httpx.post(f"{url}/chat/completions", content=body).status_code == 200
    assert model.raw[-1] == body


# --- streams that end badly -----------------------------------------------------------------------------------


def test_a_stream_that_breaks_off_ends_with_an_error_and_no_end() -> None:
    async def half(request: Request) -> Answer:
        async def pieces() -> Any:
            yield chunk({"content": "a"})
            raise UpstreamGarbled("it broke off")

        return Answer(by="big", pieces=pieces())

    with serving(build_app(half)) as url:
        response = httpx.post(f"{url}/v1/chat/completions", json=ASKED | {"stream": True})
        assert response.status_code == 200
        events = response.text.strip().split("\n\n")
        assert json.loads(events[-1][6:])["error"]["message"] == "it broke off"
        assert "[DONE]" not in response.text
        with openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as client, pytest.raises(openai.APIError):
            list(client.chat.completions.create(model="m", messages=[{"role": "user", "content": "a"}], stream=True))


def test_a_client_that_leaves_a_stream_ends_it() -> None:
    ended: list[str] = []

    async def endless(request: Request) -> Answer:
        async def pieces() -> Any:
            try:
                while True:
                    yield chunk({"content": "a" * 1000})
                    await asyncio.sleep(0.005)
            finally:
                ended.append("ended")

        return Answer(by="big", pieces=pieces())

    with serving(build_app(endless)) as url:
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=ASKED | {"stream": True}) as response:
            assert next(response.iter_bytes())
        wait_until(lambda: ended, seconds=5.0)
