"""Ids and log lines of real requests: what they say, and what they never say."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import random
import re
import string
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from instrumented import Stage, put_expert_in_place, staged
from sqlalchemy import select
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

import experts as sample
from puhui.core.log_lines import JsonFormatter, TextFormatter, set_up_logging
from puhui.core.request import Request
from puhui.core.request_ids import current_id, request_id
from puhui.gateway.access_log import (
    MOST_LINES_WAITING,
    NO_ROUTE,
    Exchange,
    LineWriter,
    Routes,
    json_line,
    text_line,
)
from puhui.node.observer import Served
from puhui.store.database import Store
from puhui.store.tables import ledger
from serving import BigModel, chunk, serving, wait_until, whole

NOWHERE = "http://127.0.0.1:9/v1"
MARK = "Xylophon7"
SECRET = "sk-abcdefghijklmnop"
ODD_REQUESTS = int(os.environ.get("PUHUI_ODD_REQUESTS", "300"))


def lines(stage: Stage, count: int) -> list[dict[str, Any]]:
    """The first `count` lines, once they are there."""
    wait_until(lambda: len(stage.lines()) >= count)
    return [json.loads(line) for line in stage.lines()]


def test_one_id_for_reply_line_and_ledger(store: Store, big: BigModel, tmp_path: Path) -> None:
    put_expert_in_place(store, tmp_path)
    with staged(store, tmp_path, big.url, log_format="json") as stage:
        texts = sample.questions(5)
        replies = [*(stage.ask(text) for text in texts), stage.ask("whatever", headers={"x-puhui-quality": "1"})]
        found = lines(stage, 6)
    with store.begin() as connection:
        kept = list(connection.execute(select(ledger.c.id).where(ledger.c.kind == "request")).scalars())
    ids = [reply.headers["x-request-id"] for reply in replies]
    assert ids == [line["request_id"] for line in found] == kept
    assert [reply.json()["puhui"]["id"] for reply in replies] == ids
    assert len(set(ids)) == 6
    expert, forwarded = found[0], found[-1]
    assert (expert["by"], forwarded["by"]) == ("expert", "big")
    assert expert["confidence"] > 0.5
    assert expert["task"].startswith("task-")
    assert (forwarded["prompt_tokens"], forwarded["completion_tokens"]) == (11, 3)
    for line in found:
        assert line.items() >= {"method": "POST", "route": "/v1/chat/completions", "status": 200, "model": "m"}.items()
        assert line["ms"] > 0
        assert "cut" not in line


def test_failures_have_their_id_too(store: Store, big: BigModel, tmp_path: Path) -> None:
    with staged(store, tmp_path, NOWHERE, log_format="json") as stage:
        replies = [stage.ask("hello"), stage.http.post("/v1/chat/completions", content=b"{"), stage.http.get("/no/way")]
        found = lines(stage, 3)
    assert [reply.status_code for reply in replies] == [line["status"] for line in found] == [503, 400, 404]
    assert [reply.headers["x-request-id"] for reply in replies] == [line["request_id"] for line in found]
    assert [line["route"] for line in found] == ["/v1/chat/completions", "/v1/chat/completions", NO_ROUTE]
    assert found[0]["by"] == "none"
    with store.begin() as connection:
        kept = connection.execute(select(ledger.c.id).where(ledger.c.kind == "request")).scalars().all()
    assert kept == [found[0]["request_id"]]


def test_streams(store: Store, tmp_path: Path) -> None:
    def say(http: Any) -> Response:
        return Response(chunk({"content": "half"}), media_type="text/event-stream")

    big = BigModel()
    broken = Starlette(routes=[Route("/v1/chat/completions", say, methods=["POST"])])
    ask = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hello"}]}
    with serving(big.app) as good, serving(broken) as bad:
        for url, wanted in ((good, {"by": "big", "status": 200}), (bad, {"by": "none", "answer_status": 502})):
            with staged(store, tmp_path, f"{url}/v1", log_format="json") as stage:
                stage.http.post("/v1/chat/completions", json=ask)
                (line,) = lines(stage, 1)
            assert line.items() >= wanted.items()
            assert 0 < line.get("first_ms", 1) <= line["ms"]


def test_a_client_that_goes_away(store: Store, tmp_path: Path) -> None:
    """The big model goes on for ever; the client does not wait for it."""

    def drip() -> Iterator[bytes]:
        for _ in range(200):
            yield chunk({"content": "x"})
            time.sleep(0.02)

    slow = Starlette(
        routes=[
            Route(
                "/v1/chat/completions",
                lambda _: StreamingResponse(drip(), media_type="text/event-stream"),
                methods=["POST"],
            )
        ]
    )
    ask = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hello"}]}
    with serving(slow) as url, staged(store, tmp_path, f"{url}/v1", log_format="json") as stage:
        with stage.http.stream("POST", "/v1/chat/completions", json=ask) as stream:
            next(stream.iter_bytes())
        (line,) = lines(stage, 1)
    assert line["cut"] is True
    assert line["ms"] < 3000


def test_probes_have_no_line_unless_they_fail(store: Store, big: BigModel, tmp_path: Path) -> None:
    with staged(store, tmp_path, big.url, log_format="json") as stage:
        for path in ("/healthz", "/readyz", "/metrics"):
            assert stage.http.get(path).status_code == 200
            assert stage.http.get(path).headers["x-request-id"].startswith("req_")
        stage.http.post("/healthz")
        (line,) = lines(stage, 1)
    assert (line["route"], line["status"]) == ("/healthz", 405)


def test_text_lines(store: Store, big: BigModel, tmp_path: Path) -> None:
    with staged(store, tmp_path, big.url) as stage:
        stage.ask("hello", model="a b\nc")
        wait_until(stage.lines)
        (line,) = stage.lines()
    shown = line.decode("ascii")
    assert re.match(
        r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00 puhui\.access req_[0-9a-f]{24} POST /v1/chat/completions 200 ", shown
    )
    assert "model=a_b\\nc by=big" in shown


def odd_requests(draw: random.Random, count: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Requests of all kinds that carry `MARK` where prompts, keys or guesses may be: method and httpx's arguments."""
    junk = string.printable + "äß模型\u2028\x85"
    for number in range(count):
        noise = "".join(draw.choices(junk, k=draw.randrange(30)))
        text = f"{noise}{MARK}{noise[::-1]}"
        message: Any = draw.choice(
            [
                {"role": "user", "content": text},
                {"role": "user", "content": [{"type": "text", "text": text}]},
                {"role": text, "content": text},
                {"role": "user", "content": {"a": text}},
                text,
                [text],
            ]
        )
        fields: Any = {"model": "m", "messages": [{"role": "system", "content": text}, message]}
        fields |= draw.choice(
            [
                {},
                {"stream": True},
                {"stream": text},
                {"n": text},
                {"tools": [text]},
                {"metadata": {"x": text}},
                {text: 1},
            ]
        )
        content = json.dumps(fields, ensure_ascii=draw.random() < 0.5).encode()
        if draw.random() < 0.2:
            content = content[: draw.randrange(len(content))]
        headers = {"authorization": f"Bearer {SECRET}", "x-note": MARK, "cookie": MARK}
        if draw.random() < 0.1:
            headers["x-puhui-quality"] = MARK
        path = "/v1/chat/completions" if number % 10 else f"/{MARK}?key={SECRET}&q={MARK}"
        yield draw.choice(["POST"] * 9 + ["GET"]), {"url": path, "content": content, "headers": headers}


def echo() -> Starlette:
    """A big model that answers as it should, with rubbish and with errors, and always with what it was asked."""
    asked = 0

    async def chat(http: HttpRequest) -> Response:
        nonlocal asked
        asked += 1
        told = (await http.body()).decode(errors="replace")
        told = told[told.find(MARK) :]
        match asked % 6:
            case 0:
                return PlainTextResponse(told, media_type="application/json")
            case 1:
                return PlainTextResponse(f"<html>{told}", 500)
            case 2:
                return JSONResponse({"error": {"message": told}}, 400)
            case 3:
                return PlainTextResponse(f"data: {told}")
            case 4:
                return PlainTextResponse(f"data: {{{told}\n\n", media_type="text/event-stream")
        return Response(whole(told), media_type="application/json")

    return Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])])


def test_no_prompt_and_no_key_is_ever_logged(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many odd requests, a big model that echoes them in its errors, and everything logged at any level."""
    monkeypatch.setattr("puhui.upstreams.breaker.FAILURE_SHARE", 2.0)  # it is asked on and on
    put_expert_in_place(store, tmp_path)
    draw = random.Random(7)
    with (
        serving(echo()) as url,
        caplog.at_level(logging.DEBUG),
        staged(store, tmp_path, f"{url}/v1", log_format="json") as stage,
    ):
        for method, asked in odd_requests(draw, ODD_REQUESTS):
            stage.http.request(method, **asked)
        wait_until(lambda: len(stage.lines()) == ODD_REQUESTS)
        written = stage.out.getvalue().decode()
    parsed = [json.loads(line) for line in written.splitlines()]
    assert len({line["request_id"] for line in parsed}) == ODD_REQUESTS
    assert {line["status"] for line in parsed} >= {200, 400, 404, 405, 500, 502}
    ours = [record for record in caplog.records if record.name.startswith("puhui")]
    for secret in (MARK, SECRET):
        assert secret not in written
        assert not [record for record in ours if secret in JsonFormatter().format(record)]
        assert not [record for record in ours if secret in TextFormatter().format(record)]


@given(st.text(), st.text())
def test_a_line_is_one_line_whatever_it_is_about(model: str, key: str) -> None:
    request = Request(id="r", model=model + "\ud800", messages=(), body=b"")
    served = Served(request=request, answer=None, task=None, status=502)
    exchange = Exchange(id="req_1", method="POST", route="/x", started=0.0, at=1.0, status=502, key=key, served=served)
    for line in (json_line(exchange), text_line(exchange)):
        assert line.count(b"\n") == 1
        assert line.endswith(b"\n")
    assert json.loads(json_line(exchange))["status"] == 502
    assert text_line(exchange).isascii()


@given(st.text())
def test_other_records_parse_and_are_one_line(text: str) -> None:
    record = logging.LogRecord("puhui.x", logging.WARNING, "", 0, "said: %s", (text + "\ud800",), None)
    made = JsonFormatter().format(record)
    assert "\n" not in made
    assert json.loads(made)["message"].startswith("said: ")
    assert "\n" not in TextFormatter().format(record)


def test_records_know_the_request_under_way() -> None:
    out = io.StringIO()
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        set_up_logging("json", "INFO", out)
        token = request_id.set("req_7")
        assert current_id() == "req_7"
        try:
            raise ValueError("odd")
        except ValueError:
            logging.getLogger("puhui.test").exception("it failed")
        request_id.reset(token)
        logging.getLogger("puhui.test").debug("not shown")
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    (line,) = out.getvalue().splitlines()
    told = json.loads(line)
    assert told["request_id"] == "req_7"
    assert told["exception"].endswith("ValueError: odd")
    assert current_id() != current_id()


def test_templates_of_routes() -> None:
    def show(_: Any) -> Response:
        return PlainTextResponse("")

    routes = Routes([Route("/a", show), Route("/b/{name}/{file:path}", show), Mount("/m", routes=[Route("/x", show)])])
    paths = ("/a", "/b/one/two/three", "/m/x", "/c", "/b", "/a/")
    found = [routes.find(path) for path in paths]
    assert found[:2] == ["/a", "/b/{name}/{file:path}"]
    assert found[3:] == [NO_ROUTE] * 3
    assert found[2].startswith("/m")


def test_a_reader_that_does_not_read_holds_nothing_up() -> None:
    """A pipe that nobody reads: putting lines never waits, the surplus is dropped, and the end comes all the same."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb", buffering=0) as stream, LineWriter(stream) as writer:
        started = time.perf_counter()
        longest = 0.0
        for _ in range(3 * MOST_LINES_WAITING):
            before = time.perf_counter()
            writer.put(b"x" * 99 + b"\n")
            longest = max(longest, time.perf_counter() - before)
        assert time.perf_counter() - started < 10.0
        drained = threading.Thread(target=lambda: [None for _ in iter(lambda: os.read(reading, 1 << 16), b"")])
        time.sleep(0.1)
        drained.start()
    drained.join(10.0)
    os.close(reading)
    assert not drained.is_alive()


def test_a_fault_is_counted_and_has_its_line(store: Store, big: BigModel, tmp_path: Path) -> None:
    with staged(store, tmp_path, big.url, log_format="json") as stage:
        stage.node.roster.find = None  # type: ignore[assignment,method-assign]
        with contextlib.suppress(httpx.HTTPError):
            stage.ask("hello")
        (line,) = lines(stage, 1)
    assert line["status"] == 500
