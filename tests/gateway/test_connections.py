"""Connections that are held open on purpose: cut off in time, told why, and nobody else suffers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from puhui.gateway import connections
from puhui.gateway.admission import Gate, add_gate
from puhui.gateway.bodies import MEBIBYTE, MOST_BODY_MB
from puhui.gateway.connections import MOST_HEAD_BYTES, BoundedProtocol, BoundedServer, allow_many_files
from serving import wait_until


@contextlib.contextmanager
def bounded(app: Starlette, *, loop: Literal["uvloop", "asyncio"] = "uvloop") -> Iterator[int]:
    """The port of `app`, served as a node is."""
    config = uvicorn.Config(app, loop=loop, http=BoundedProtocol, log_level="critical", timeout_graceful_shutdown=1)
    listening = socket.create_server(("127.0.0.1", 0), backlog=512)
    server = BoundedServer(config)
    app.state.server = server
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    yield listening.getsockname()[1]
    server.should_exit = True
    thread.join(10.0)
    listening.close()
    assert not thread.is_alive()


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A server that gives a request half a second and takes five connections."""
    monkeypatch.setattr(connections, "REQUEST_WITHIN_S", 0.5)
    monkeypatch.setattr(connections, "SWEEP_EVERY_TICKS", 1)
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 5)
    app = Starlette(routes=[Route("/", lambda _: PlainTextResponse("here"), methods=["GET", "POST"])])
    with bounded(app) as port:
        yield port


def opened(port: int, sent: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=10.0)
    connection.sendall(sent)
    return connection


def all_of(connection: socket.socket) -> bytes:
    found = b""
    with contextlib.suppress(ConnectionError), connection:
        while piece := connection.recv(65536):
            found += piece
    return found


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET / HT",
        b"GET / HTTP/1.1\r\nhost: x\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nhalf",
    ],
    ids=["nothing", "half a line", "half a head", "half a body"],
)
def test_a_request_that_does_not_come_is_not_waited_for(port: int, sent: bytes) -> None:
    connection = opened(port, sent)
    connection.settimeout(5.0)
    found = all_of(connection)  # ends because the server hangs up
    assert found == b"" or b"content-length: 9" in sent  # a page that reads no body has answered by then
    assert connection.fileno() == -1


def test_idle_connections_are_kept(port: int) -> None:
    connection = opened(port)
    for _ in range(3):
        connection.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"here" in connection.recv(65536)
        threading.Event().wait(0.7)  # longer than a request may take
    connection.close()


def test_a_head_without_end_is_refused(port: int) -> None:
    connection = opened(port, b"GET / HTTP/1.1\r\nhost: x\r\nx-large: ")
    with contextlib.suppress(OSError):
        for _ in range(MOST_HEAD_BYTES // 1000 + 400):
            connection.sendall(b"y" * 1000)
    reply = all_of(connection)
    assert reply.startswith(b"HTTP/1.1 431 ")
    assert json.loads(reply.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"


SIZES = (65 * 1024, 200_000, 1_000_000, MOST_BODY_MB * MEBIBYTE - 1)


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def counting(request: pytest.FixtureRequest) -> Iterator[int]:
    """A server on either loop that tells how long each body was."""

    async def count(http: Request) -> Response:
        return PlainTextResponse(f"({len(await http.body())} bytes)")

    with bounded(Starlette(routes=[Route("/", count, methods=["POST"])]), loop=request.param) as port:
        yield port


def posted(size: int) -> bytes:
    return b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % size + b"x" * size


def told(connection: socket.socket, count: int) -> list[int]:
    """The sizes that the next replies tell."""
    found = b""
    while found.count(b" bytes)") < count:
        piece = connection.recv(65536)
        assert piece, found
        found += piece
    assert found.count(b"HTTP/1.1 200 ") == count
    return [int(each) for each in re.findall(rb"\((\d+) bytes\)", found)]


@pytest.mark.parametrize("size", SIZES)
def test_a_large_body_is_no_head(counting: int, size: int) -> None:
    with opened(counting) as connection:
        for _ in range(3):
            connection.sendall(posted(size))
            assert told(connection, 1) == [size]


@pytest.mark.parametrize("size", SIZES)
def test_large_bodies_that_are_sent_ahead_are_no_heads(counting: int, size: int) -> None:
    with opened(counting) as connection:
        sent = posted(size) + posted(9) + posted(size)
        threading.Thread(target=connection.sendall, args=(sent,), daemon=True).start()
        assert told(connection, 3) == [size, 9, size]


@pytest.mark.parametrize("tail", [1, 1000, 100_000])
def test_a_body_whose_end_comes_later_is_no_head(counting: int, tail: int) -> None:
    sent = posted(200_000)
    with opened(counting, sent[:-tail]) as connection:
        time.sleep(0.05)
        connection.sendall(sent[-tail:])
        assert told(connection, 1) == [200_000]


def test_a_head_without_end_is_refused_after_a_large_body_too(counting: int) -> None:
    with opened(counting) as connection:
        connection.sendall(posted(200_000))
        assert told(connection, 1) == [200_000]
        connection.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nx-large: " + b"y" * (MOST_HEAD_BYTES + 1))
        assert all_of(connection).startswith(b"HTTP/1.1 431 ")


def test_what_is_no_http_gets_an_error_object(port: int) -> None:
    reply = all_of(opened(port, b"\x16\x03\x01\x02\x00 not http\r\n\r\n"))
    assert reply.startswith(b"HTTP/1.1 400 ")
    assert json.loads(reply.partition(b"\r\n\r\n")[2])["error"]["message"]


def test_who_holds_connections_makes_room_for_others(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "REQUEST_WITHIN_S", 60.0)
    held = [opened(port, b"GET / HTTP/1.1\r\n") for _ in range(12)]
    asked = opened(port, b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert b"here" in all_of(asked)
    for connection in held:
        connection.close()


REPLY_BYTES = 24 * 1024 * 1024


@pytest.fixture(params=["uvloop", "asyncio"])
def talking(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, Starlette]]:
    """A server that says much, at once or in a stream, to clients that have half a second to take some of it."""
    monkeypatch.setattr(connections, "UNREAD_FOR_S", 0.5)
    monkeypatch.setattr(connections, "SWEEP_EVERY_TICKS", 1)

    async def whole(_: Request) -> Response:
        return PlainTextResponse(b"x" * REPLY_BYTES)

    async def pieces() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x" * 65536
                await asyncio.sleep(0.001)
        finally:
            app.state.ended = True

    app = Starlette(
        routes=[
            Route("/whole", whole),
            Route("/stream", lambda _: StreamingResponse(pieces())),
        ]
    )
    with bounded(app, loop=request.param) as port:
        yield port, app


@pytest.mark.parametrize("path", ["whole", "stream"])
def test_a_reply_that_is_not_read_is_given_up(talking: tuple[int, Starlette], path: str) -> None:
    port, app = talking
    held = app.state.server.server_state
    with opened(port, f"GET /{path} HTTP/1.1\r\nhost: x\r\n\r\n".encode()) as connection:
        wait_until(lambda: held.connections)
        wait_until(lambda: not held.connections and not held.tasks)
        assert path == "whole" or app.state.ended
        with contextlib.suppress(ConnectionError):
            while connection.recv(1 << 20):
                pass


def test_who_reads_slowly_gets_all_of_it(talking: tuple[int, Starlette]) -> None:
    port, _ = talking
    found = 0
    with opened(port, b"GET /whole HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n") as connection:
        while piece := connection.recv(1 << 20):
            found += len(piece)
            time.sleep(len(piece) / (12 << 20))  # 2 s in all
    assert found > REPLY_BYTES


def test_files_may_be_many() -> None:
    import resource

    allow_many_files()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft >= min(hard, 2 * 10_000) or hard == resource.RLIM_INFINITY


async def test_sweeping_leaves_what_owes_nothing() -> None:
    server = BoundedServer(uvicorn.Config(Starlette()))
    server.server_state.connections.add(object())  # type: ignore[arg-type]
    server.sweep(asyncio.get_running_loop().time() + 1e6)


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_connections_that_come_while_the_loop_is_busy_are_accepted_together(loop: Literal["uvloop", "asyncio"]) -> None:
    busy, go_on, accepted = threading.Event(), threading.Event(), []

    async def hold_up(_: Request) -> Response:
        busy.set()
        go_on.wait(10.0)  # the loop's thread waits: it stands for work
        return PlainTextResponse("done")

    async def count(request: Request) -> Response:
        accepted.append(len(request.app.state.server.server_state.connections))
        return PlainTextResponse("done")

    app = Starlette(routes=[Route("/hold", hold_up), Route("/count", count)])
    with bounded(app, loop=loop) as port, contextlib.ExitStack() as stack:
        stack.enter_context(opened(port, b"GET /hold HTTP/1.1\r\nhost: x\r\n\r\n"))
        assert busy.wait(10.0)
        for _ in range(60):
            stack.enter_context(opened(port, b"GET /count HTTP/1.1\r\nhost: x\r\n\r\n"))
        go_on.set()
        wait_until(lambda: len(accepted) == 60)
    assert accepted[0] == 61  # uvloop alone accepts one, answers it, and accepts the next


@pytest.fixture
def full() -> Iterator[tuple[int, Gate, threading.Event]]:
    """A server with room for one request, and what lets those end that wait."""
    gate, release = Gate(1), threading.Event()

    async def wait(request: Request) -> Response:
        await asyncio.to_thread(release.wait, 10.0)
        return PlainTextResponse(f"{len(await request.body())} bytes")

    app = Starlette(
        routes=[Route("/v1/x", wait, methods=["POST"]), Route("/page", lambda _: PlainTextResponse("page"))]
    )
    add_gate(app, gate)
    with bounded(app) as port:
        yield port, gate, release
        release.set()


REFUSED = {
    "whole": b"POST /v1/x HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nbody",
    "chunked": b"POST /v1/x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
    "no body": b"GET /v1/x HTTP/1.1\r\nhost: x\r\n\r\n",
    "wants to go": b"POST /v1/x HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 4\r\n\r\nbody",
    "old": b"POST /v1/x HTTP/1.0\r\nhost: x\r\ncontent-length: 4\r\n\r\nbody",
    "waits for 100": b"POST /v1/x HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_too_much_is_refused_as_it_is_read(full: tuple[int, Gate, threading.Event], kind: str) -> None:
    port, gate, release = full
    inside = opened(port, REFUSED["whole"])
    wait_until(lambda: gate.under_way == 1)
    outside = opened(port, REFUSED[kind])
    head, _, body = outside.recv(65536).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
    assert b"\r\nretry-after: " in head
    assert json.loads(body)["error"]["code"] == "overloaded"
    assert gate.refused == 1
    assert b"page" in all_of(opened(port, b"GET /page HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"))
    release.set()
    assert b"4 bytes" in inside.recv(65536)
    wait_until(lambda: gate.under_way == 0)
    if kind in ("whole", "chunked", "no body"):  # the connection is as good as before
        outside.sendall(REFUSED["whole"])
        assert b"4 bytes" in outside.recv(65536)
        outside.close()
    else:
        assert all_of(outside) == b""
    inside.close()


@pytest.mark.parametrize(
    ("origins", "asked", "allowed"),
    [
        ((), b"https://chat.example", b""),
        (("https://chat.example",), b"https://chat.example", b"https://chat.example"),
        (("https://chat.example",), b"https://evil.example", b""),
        (("*",), b"https://any.example", b"*"),
        (("*",), b"", b""),
    ],
)
@pytest.mark.parametrize("by_connection", [True, False])
def test_a_page_that_may_use_the_node_may_read_the_refusal(
    origins: tuple[str, ...], asked: bytes, allowed: bytes, by_connection: bool
) -> None:
    gate = Gate(1, origins=origins)
    gate.under_way = 1  # as full as it gets
    app = Starlette()
    add_gate(app, gate)
    if not by_connection:
        app.state.gate = None
    head = b"GET /v1/x HTTP/1.1\r\nhost: x\r\nconnection: close\r\n" + (b"origin: %s\r\n" % asked if asked else b"")
    with bounded(app) as port:
        reply = all_of(opened(port, head + b"\r\n"))
    assert reply.startswith(b"HTTP/1.1 429 ")
    told = re.search(rb"access-control-allow-origin: (.*)\r\n", reply)
    assert (told[1] if told else b"") == allowed
    assert (b"access-control-expose-headers: *" in reply) == bool(allowed)
    assert (b"vary: Origin" in reply) == (allowed not in (b"", b"*"))


def test_who_asks_for_another_protocol_is_answered_in_http(port: int) -> None:
    upgrade = b"GET /%s HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: eA==\r\n"
    for path, status in ((b"", b"200"), (b"nothing", b"404")):
        with opened(port, upgrade % path + b"sec-websocket-version: 13\r\n\r\n") as connection:
            assert connection.recv(65536).startswith(b"HTTP/1.1 %s " % status)
            connection.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_of_two_requests_read_at_once_each_is_counted(full: tuple[int, Gate, threading.Event]) -> None:
    port, gate, release = full
    with contextlib.ExitStack() as stack:
        many = [stack.enter_context(opened(port, REFUSED["whole"])) for _ in range(20)]
        wait_until(lambda: gate.refused == 19)
        assert gate.under_way == 1
        release.set()
        statuses = sorted(connection.recv(65536)[9:12] for connection in many)
    assert statuses == [b"200"] + [b"429"] * 19


def test_requests_sent_ahead_wait_for_their_turn(full: tuple[int, Gate, threading.Event]) -> None:
    port, gate, release = full
    connection = opened(port, REFUSED["whole"] + REFUSED["whole"])
    wait_until(lambda: gate.under_way == 1)
    release.set()
    found = b""
    while found.count(b"4 bytes") < 2:
        found += connection.recv(65536)
    connection.close()
    assert gate.refused == 0


def test_the_first_of_several_is_told_that_its_connection_is_closed() -> None:
    """It would write to a closed connection, which looks like a fault of the node's own."""
    faults: list[BaseException] = []
    begun, release, ended = threading.Event(), threading.Event(), threading.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        begun.set()
        await asyncio.to_thread(release.wait, 10.0)
        try:
            await PlainTextResponse("here")(scope, receive, send)
        except RuntimeError as error:
            faults.append(error)
        finally:
            ended.set()

    with bounded(Starlette(routes=[Mount("/", slow)])) as port:
        connection = opened(port, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n" * 5 + b"rubbish\r\n\r\n")
        assert begun.wait(10.0)
        assert all_of(connection).startswith(b"HTTP/1.1 400 ")
        threading.Event().wait(0.2)
        release.set()
        assert ended.wait(10.0)
    assert faults == []
