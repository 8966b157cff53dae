"""Real servers on loopback for the tests: our own applications, and big models that behave or misbehave.

The big model is not ours, so a stand-in for it is fair; it is a real HTTP server all the same.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

Rule = Callable[[str], str]


@contextlib.contextmanager
def serving(app: Starlette) -> Iterator[str]:
    """Serves `app` in a thread of its own; gives its URL."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=256)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", access_log=False, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    wait_until(lambda: server.started or not thread.is_alive())
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10.0)
        listening.close()
    assert not thread.is_alive()


def wait_until(true: Callable[[], Any], *, seconds: float = 10.0) -> None:
    """Waits until `true()`, and fails after `seconds`."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


class BigModel:
    """An OpenAI-compatible big model that answers the last message by `rule` and keeps what it was sent.

    `refuse` is the status of every answer (200: it answers); `logprobs` says whether it tells likelihoods
    (None: it answers 400 to whoever asks for them); `unsupported` names a field that it answers 400 to.
    """

    def __init__(self, rule: Rule = str.upper, *, logprobs: bool | None = False) -> None:
        self.rule = rule
        self.url = ""
        self.refuse = 200
        self.logprobs = logprobs
        self.unsupported = ""
        self.bodies: list[dict[str, Any]] = []
        self.raw: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.app = Starlette(routes=[Route("/v1/chat/completions", self._chat, methods=["POST"])])

    async def _chat(self, http: Request) -> Response:
        self.raw.append(await http.body())
        body = msgspec.json.decode(self.raw[-1])
        self.bodies.append(body)
        self.headers.append(dict(http.headers))
        if self.refuse != 200:
            return JSONResponse({"error": {"message": "not now"}}, self.refuse, headers={"retry-after": "7"})
        if self.unsupported in body:
            return JSONResponse({"error": {"message": f"Unsupported value: {self.unsupported!r}"}}, 400)
        if body.get("logprobs") and self.logprobs is None:
            return JSONResponse({"error": {"message": "no logprobs here"}}, 400)
        content = body["messages"][-1]["content"]
        text = self.rule(content if isinstance(content, str) else content[0]["text"])
        if body.get("stream"):
            return StreamingResponse(stream_of(text), media_type="text/event-stream")
        return Response(whole(text, likely=bool(body.get("logprobs") and self.logprobs)), media_type="application/json")


def whole(text: str, *, likely: bool = False) -> bytes:
    """A chat completion that says `text`."""
    choice: dict[str, Any] = {
        "index": 0,
        "message": {"role": "assistant", "content": text, "annotations": []},
        "finish_reason": "stop",
    }
    if likely:
        top = [{"token": text[:4], "logprob": -0.1, "bytes": None}, {"token": "other", "logprob": -2.5, "bytes": None}]
        choice["logprobs"] = {"content": [top[0] | {"top_logprobs": top}], "refusal": None}
    reply = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "big-1",
        "choices": [choice],
        "usage": {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14},
        "system_fingerprint": "fp_unknown_to_puhui",
    }
    return msgspec.json.encode(reply)


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
    """One event of a streamed chat completion."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "big-1"}
    return b"data: " + msgspec.json.encode(head | {"choices": [choice]} | more) + b"\n\n"


def stream_of(text: str) -> Iterator[bytes]:
    """The events that say `text`, a character each."""
    yield chunk({"role": "assistant", "content": ""})
    for character in text:
        yield chunk({"content": character})
    yield chunk({}, "stop", usage={"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14})
    yield b"data: [DONE]\n\n"


@contextlib.contextmanager
def raw_server(reply: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that reads a whole request and then does what `reply` does with the connection; gives its URL."""
    listening = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def serve_one(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(10.0)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if _read_request(connection):
                reply(connection)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listening.accept()
                threads.append(threading.Thread(target=serve_one, args=(connection,), daemon=True))
                threads[-1].start()

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    finally:
        with contextlib.suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        accepting.join(5.0)


def _read_request(connection: socket.socket) -> bool:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            return False
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0)
    while len(body) < length:
        body += connection.recv(65536)
    return True


def says(*pieces: bytes, head: bytes = b"", pause_s: float = 0.0) -> Callable[[socket.socket], None]:
    """For `raw_server`: sends `head` and `pieces`, pausing between them, and closes."""

    def reply(connection: socket.socket) -> None:
        for piece in (head, *pieces):
            connection.sendall(piece)
            time.sleep(pause_s)

    return reply


def head_of(content_type: str = "application/json", *, length: int | None = None, status: str = "200 OK") -> bytes:
    """The head of an HTTP response; without `length` the body ends with the connection."""
    lines = [f"HTTP/1.1 {status}", f"content-type: {content_type}", "connection: close"]
    if length is not None:
        lines.append(f"content-length: {length}")
    return "\r\n".join([*lines, "", ""]).encode()
