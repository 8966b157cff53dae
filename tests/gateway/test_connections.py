"""Connections that are held open on purpose: cut off in time, told why, and nobody else suffers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Iterator

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from puhui.gateway import connections
from puhui.gateway.connections import MOST_HEAD_BYTES, BoundedProtocol, BoundedServer, allow_many_files
from serving import wait_until


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A server that gives a request half a second and takes five connections."""
    monkeypatch.setattr(connections, "REQUEST_WITHIN_S", 0.5)
    monkeypatch.setattr(connections, "SWEEP_EVERY_TICKS", 1)
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 5)
    app = Starlette(routes=[Route("/", lambda _: PlainTextResponse("here"), methods=["GET", "POST"])])
    config = uvicorn.Config(app, http=BoundedProtocol, log_level="critical", timeout_graceful_shutdown=1)
    listening = socket.create_server(("127.0.0.1", 0))
    server = BoundedServer(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    yield listening.getsockname()[1]
    server.should_exit = True
    thread.join(10.0)
    listening.close()


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


def test_files_may_be_many() -> None:
    import resource

    allow_many_files()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft >= min(hard, 2 * 10_000) or hard == resource.RLIM_INFINITY


async def test_sweeping_leaves_what_owes_nothing() -> None:
    server = BoundedServer(uvicorn.Config(Starlette()))
    server.server_state.connections.add(object())  # type: ignore[arg-type]
    server.sweep(asyncio.get_running_loop().time() + 1e6)
