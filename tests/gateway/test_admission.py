"""Admission: what is too much is told so at once, and only then."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from puhui.gateway.admission import BACK_IN_S, LEAST_AT_ONCE, TARGET_S, WINDOW_LOOKS, Admission, Gate, Limiter
from serving import serving, wait_until


def looked(limiter: Limiter, behind_s: float, under_way: int, seconds: float, start: float = 0.0) -> float:
    now = start
    while now < start + seconds:
        now += 0.02 + behind_s
        limiter.look(now, behind_s, under_way)
    return now


def test_requests_that_only_wait_are_no_load() -> None:
    limiter = Limiter(500)
    looked(limiter, 0.001, 499, 10.0)
    assert limiter.limit == 500
    assert limiter.admits(499, 0.0)
    assert not limiter.admits(500, 0.0)


def test_the_bound_falls_while_the_loop_is_behind_and_rises_again() -> None:
    limiter = Limiter(1000)
    now = looked(limiter, 10 * TARGET_S, 900, 10.0)
    assert limiter.limit == LEAST_AT_ONCE
    looked(limiter, 0.0, 0, 6.0, now)
    assert limiter.limit == 1000


def test_one_long_step_is_no_queue() -> None:
    limiter = Limiter(1000)
    for number in range(200):
        limiter.look(0.03 * number, 3.0 if number % WINDOW_LOOKS == 0 else 0.0, 800)
    assert limiter.limit == 1000


def test_a_burst_that_the_looks_have_not_seen_yet_is_held_back() -> None:
    limiter = Limiter(1000)
    assert not limiter.admits(100, 1.0)
    assert limiter.admits(LEAST_AT_ONCE - 1, 1.0)


@given(
    most=st.integers(1, 5000),
    looks=st.lists(st.tuples(st.floats(0, 2), st.floats(0, 5), st.integers(0, 5000)), max_size=60),
)
def test_the_bound_stays_in_its_bounds(most: int, looks: list[tuple[float, float, int]]) -> None:
    limiter, now = Limiter(most), 0.0
    for wait, behind, under_way in looks:
        now += wait
        limiter.look(now, behind, under_way)
        assert min(LEAST_AT_ONCE, most) <= limiter.limit <= most
        assert limiter.admits(0, behind)


def test_nothing_at_once_is_no_setting() -> None:
    with pytest.raises(ValueError, match="1 or more"):
        Limiter(0)


class Slow:
    """An application that holds up its loop for as long as each answer takes."""

    def __init__(self, busy_s: float, most_at_once: int = 1000) -> None:
        self.busy_s = busy_s
        self.release = asyncio.Event()
        inner = Starlette(
            routes=[
                Route("/v1/chat/completions", self._work, methods=["POST"]),
                Route("/v1/wait", self._wait),
                Route("/healthz", lambda _: JSONResponse({"status": "ok"})),
            ]
        )
        self.gate = Gate(most_at_once)
        self.app = Admission(inner, gate=self.gate)

    async def _work(self, request: Request) -> Response:
        await request.body()
        for _ in range(2):
            time.sleep(self.busy_s)  # noqa: ASYNC251  (it stands for work)
            await asyncio.sleep(0)
        return JSONResponse({"ok": True})

    async def _wait(self, _: Request) -> Response:
        await self.release.wait()
        return JSONResponse({"ok": True})


async def ask(url: str, path: str = "/v1/chat/completions", method: str = "POST") -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body; by hand, for a real client is slower than the server that it should flood."""
    port = int(url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{{}}".encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    first, *lines = head.decode().split("\r\n")
    return int(first.split()[1]), dict(line.split(": ", 1) for line in lines), body


async def test_a_surge_is_cut_and_passes() -> None:
    slow = Slow(0.03)
    with serving(slow.app) as url:  # type: ignore[arg-type]
        asked = [asyncio.ensure_future(ask(url)) for _ in range(120)]
        await asyncio.sleep(0.1)
        assert (await ask(url, "/healthz", "GET"))[0] == 200
        replies = await asyncio.gather(*asked)
        statuses = Counter(status for status, _, _ in replies)
        assert set(statuses) == {200, 429}
        assert statuses[200] >= LEAST_AT_ONCE // 2
        for status, headers, body in replies:
            if status == 429:
                assert int(headers["retry-after"]) in BACK_IN_S
                error = json.loads(body)["error"]
                assert (error["type"], error["code"], error["param"]) == ("rate_limit_error", "overloaded", None)
        assert slow.gate.refused == statuses[429]
        assert [(await ask(url))[0] for _ in range(5)] == [200] * 5
    assert slow.gate.under_way == 0


async def test_most_at_once_is_kept() -> None:
    slow = Slow(0.0, most_at_once=3)
    with serving(slow.app) as url:  # type: ignore[arg-type]
        async with httpx.AsyncClient(base_url=url, timeout=30.0) as client:
            waiting = [asyncio.ensure_future(client.get("/v1/wait")) for _ in range(3)]
            await asyncio.to_thread(wait_until, lambda: slow.gate.under_way == 3)
            assert (await client.get("/v1/wait")).status_code == 429
            assert (await client.get("/healthz")).status_code == 200
            slow.release.set()
            assert {(await each).status_code for each in waiting} == {200}
            assert (await client.get("/v1/wait")).status_code == 200
