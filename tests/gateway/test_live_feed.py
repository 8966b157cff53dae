"""The live feed: bounded for any rate and any reader, and it ends when it is told to."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
import pytest

from puhui.core.answer import Answer, Energy, Usage
from puhui.core.errors import Overloaded
from puhui.core.request import Message, Request
from puhui.gateway import live_feed
from puhui.gateway.live_feed import LATEST, MOST_WATCHERS, SHELF, LiveFeed
from puhui.node.observer import Audited, Changed, Served

SCOPE: dict[str, Any] = {"type": "http"}


def served(number: int, *, expert: bool = True) -> Served:
    request = Request(id=f"req_{number}", model="m", messages=(Message("user", "a secret"),), body=b"{'a secret'}")
    answer = Answer(
        by="expert:e" if expert else "big:m",
        text="a secret answer",
        confidence=0.9 if expert else None,
        usage=Usage(energy=Energy(1.0, 0.5, 2.0)),
        expert="e" if expert else None,
    )
    return Served(request=request, answer=answer, task="t", expert="e", seconds=0.002)


def feed() -> LiveFeed:
    return LiveFeed({"t": "a task"}.get)  # type: ignore[arg-type]


def taken(piece: bytes) -> dict[str, Any]:
    assert piece.startswith(b"event: batch\ndata: ")
    assert piece.endswith(b"\n\n")
    return msgspec.json.decode(piece[19:])  # type: ignore[no-any-return]


def test_what_an_event_says_and_does_not() -> None:
    one = feed()
    watcher = one.add()
    one(served(1))
    one(Audited(request=served(1).request, answer=None, task="t", expert="e" * 64, loss=1.0))
    one(Changed(kind="demotion", task="t", task_name="a task", expert="e" * 64, reason="risk above 2.0% is proven"))
    one(Served(request=served(2).request, answer=None, task=None, status=503, reason="the big model is down"))
    piece = watcher.take()
    asked, audit, change, failed = taken(piece)["events"]
    assert (asked["by"], asked["task"], asked["ms"], asked["joules"]) == ("expert", "a task", 2.0, 1.0)
    assert (audit["kind"], audit["id"], audit["loss"]) == ("audit", "req_1", 1.0)
    assert (change["kind"], change["change"], change["name"]) == ("change", "demotion", "e" * 12)
    assert (failed["by"], failed["status"]) == ("none", 503)
    assert b"secret" not in piece
    assert watcher.take() == b""


def test_a_shelf_is_bounded_and_says_what_fell_off() -> None:
    one = feed()
    watcher = one.add()
    for number in range(10_000):
        one(served(number))
    found = taken(watcher.take())
    assert (len(found["events"]), found["skipped"]) == (SHELF, 10_000 - SHELF)
    assert found["events"][-1]["id"] == "req_9999"
    assert len(taken(one.add().take())["events"]) == LATEST  # who comes later sees the latest few


def test_each_batch_has_the_nodes_time_and_not_that_of_its_latest_event(monkeypatch: pytest.MonkeyPatch) -> None:
    one = feed()
    one(served(1))
    later = time.time() + 70.0
    monkeypatch.setattr(live_feed.time, "time", lambda: later)
    found = taken(one.add().take())
    assert found["now"] == later
    assert found["events"][-1]["at"] < later - 60.0


async def test_a_stream_ends_with_its_reader() -> None:
    one, sent, gone = feed(), [], asyncio.Event()

    async def receive() -> dict[str, Any]:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    stream = asyncio.create_task(one.watch()(SCOPE, receive, send))
    await asyncio.sleep(0.05)
    assert one.watchers == 1
    one(served(1))
    await asyncio.sleep(0.3)
    assert taken(sent[-1]["body"])["events"][0]["id"] == "req_1"
    gone.set()
    await asyncio.wait_for(stream, 2.0)
    assert one.watchers == 0


async def test_a_reader_that_takes_nothing_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_feed, "STALLED_AFTER_S", 0.1)
    one = feed()

    async def never(*_: Any) -> Any:
        await asyncio.sleep(3600)

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            await never()

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(one.watch()(SCOPE, never, send), 5.0)
    assert one.watchers == 0


async def test_all_streams_end_with_the_node() -> None:
    one, sent = feed(), []

    async def never() -> Any:
        await asyncio.sleep(3600)

    async def send(message: Any) -> None:
        sent.append(message)

    streams = [asyncio.create_task(one.watch()(SCOPE, never, send)) for _ in range(3)]
    await asyncio.sleep(0.05)
    one.close()
    await asyncio.wait_for(asyncio.gather(*streams), 2.0)
    assert sum(message.get("more_body") is False for message in sent) == 3


def test_not_more_watch_than_there_is_room_for() -> None:
    one = feed()
    for _ in range(MOST_WATCHERS):
        one.add()
    with pytest.raises(Overloaded, match="watch already"):
        one.watch()
