"""One id and one log line for each HTTP request.

Every HTTP request gets an id: it is in the reply's header `x-request-id`, in the line, in the ledger and in whatever
else is logged while the request is under way. A line says who answered, with what status, in how many milliseconds
and tokens, and whose key it was. It never holds what was asked or answered, headers, query strings or unknown paths,
which may hold secrets.

Lines are put into a queue and written by a thread, many at once: a reader that is slow, or a pipe that nobody reads,
must not hold up requests. A full queue drops lines and says how many.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, BinaryIO

import msgspec
from starlette.datastructures import MutableHeaders
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from puhui.core.log_lines import LogFormat, clock
from puhui.core.request_ids import new_id, request_id
from puhui.node.observer import Event, Served

NO_ROUTE = "none"
"""The route of a request that found none."""
LOGGER = "puhui.access"
QUIET_ROUTES = frozenset(("/healthz", "/readyz", "/metrics"))
WENT_AWAY = 499
FAULT = 500
MOST_LINES_WAITING = 20_000
GATHER_S = 0.05


class Exchange(msgspec.Struct, kw_only=True):
    """One HTTP request and its reply, for those who are told of it when its last byte has left.

    `route` is the route's template. `status` is 499 if the client went away before there was a reply, 500 for a
    fault. `whole` is False if the reply's end never came. `served` is what the node did for it, if anything.
    """

    id: str
    method: str
    route: str
    started: float
    at: float
    status: int = 0
    first_s: float | None = None
    seconds: float = 0.0
    whole: bool = False
    served: Served | None = None
    key: str = ""


class Routes:
    """Finds the template of a path: a look-up for most, for those with parts that vary a few comparisons."""

    def __init__(self, routes: Iterable[BaseRoute]) -> None:
        self._plain: dict[str, str] = {}
        self._varied: list[tuple[re.Pattern[str], str]] = []
        for route in routes:
            path = getattr(route, "path", None)
            pattern = getattr(route, "path_regex", None)
            if isinstance(path, str) and "{" not in path and not hasattr(route, "routes"):
                self._plain[path] = path
            elif isinstance(path, str) and isinstance(pattern, re.Pattern):
                self._varied.append((pattern, path))

    def find(self, path: str) -> str:
        """The template, or `NO_ROUTE`."""
        found = self._plain.get(path)
        if found is None:
            found = next((template for pattern, template in self._varied if pattern.match(path)), NO_ROUTE)
        return found


class AccessLayer:
    """An ASGI layer around everything else: gives each request its id and tells `ends` of each exchange.

    It is an observer of the node too, so that an exchange knows what the node did for it. The id is at
    `scope["state"]["request_id"]` for those who want it.
    """

    def __init__(self, app: ASGIApp, *, exchanges: Exchanges, routes: Iterable[BaseRoute]) -> None:
        self._app = app
        self._exchanges = exchanges
        self._routes = Routes(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        exchange = Exchange(
            id=new_id(),
            method=scope["method"],
            route=self._routes.find(scope["path"]),
            started=started,
            at=time.time(),
        )
        scope.setdefault("state", {})["request_id"] = exchange.id
        before = request_id.set(exchange.id)
        self._exchanges.begin(exchange)

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                _name(message, exchange)
            elif message["type"] == "http.response.body":
                if exchange.first_s is None:
                    exchange.first_s = time.perf_counter() - started
                if not message.get("more_body", False):
                    exchange.whole = True
            await send(message)

        try:
            await self._app(scope, receive, sent)
        except Exception:
            exchange.status = exchange.status or FAULT
            raise
        finally:
            exchange.seconds = time.perf_counter() - started
            exchange.status = exchange.status or WENT_AWAY
            caller = scope["state"].get("caller")
            exchange.key = getattr(caller, "key", "")
            request_id.reset(before)
            self._exchanges.end(exchange)


def _name(message: Message, exchange: Exchange) -> None:
    """Puts the id into the reply's headers, unless somebody has put one there."""
    headers: list[tuple[bytes, bytes]] = message.setdefault("headers", [])
    if not any(name.lower() == b"x-request-id" for name, _ in headers):
        MutableHeaders(raw=headers)["x-request-id"] = exchange.id


class Exchanges:
    """Those under way, each told to `ends` when it is over. An observer of the node."""

    def __init__(self, ends: Sequence[Callable[[Exchange], None]]) -> None:
        self._ends = tuple(ends)
        self._open: dict[str, Exchange] = {}

    def __call__(self, event: Event) -> None:
        """Keeps what the node did with the exchange that it did it for."""
        if isinstance(event, Served):
            exchange = self._open.get(event.request.id)
            if exchange is not None:
                exchange.served = event

    def __len__(self) -> int:
        """How many are under way."""
        return len(self._open)

    def begin(self, exchange: Exchange) -> None:
        """An exchange that begins."""
        self._open[exchange.id] = exchange

    def end(self, exchange: Exchange) -> None:
        """One that is over."""
        self._open.pop(exchange.id, None)
        for tell in self._ends:
            tell(exchange)


class LineWriter:
    """Writes lines to `stream` (None: standard error) from a thread.

    A context manager: what waits is written when it ends.
    """

    def __init__(self, stream: BinaryIO | None = None) -> None:
        self._stream = stream
        self._lines: deque[bytes] = deque()
        self._dropped = 0
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="puhui-log", daemon=True)

    def __enter__(self) -> LineWriter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing = True
        self._wake.set()
        self._thread.join(timeout=2.0)  # a pipe that nobody reads must not keep the node from ending

    def put(self, line: bytes) -> None:
        """Puts a line (with its line feed) into the queue; never waits."""
        if len(self._lines) >= MOST_LINES_WAITING:
            self._dropped += 1
            return
        self._lines.append(line)
        if not self._wake.is_set():
            self._wake.set()

    def _run(self) -> None:
        while True:
            self._wake.wait()
            if not self._closing:
                time.sleep(GATHER_S)
            self._wake.clear()
            self._write()
            if self._closing and not self._lines:
                return

    def _write(self) -> None:
        lines = [self._lines.popleft() for _ in range(len(self._lines))]
        dropped, self._dropped = self._dropped, 0
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            if self._stream is not None:
                self._stream.write(b"".join(lines))
                self._stream.flush()
            else:
                sys.stderr.write(b"".join(lines).decode())
                sys.stderr.flush()
        if dropped:
            logging.getLogger(LOGGER).warning("%d lines were dropped: they are not read fast enough", dropped)


class AccessLog:
    """Writes a line for each exchange: `end` belongs among the `ends` of `Exchanges`."""

    def __init__(self, writer: LineWriter, form: LogFormat = "text") -> None:
        self._put = writer.put
        self._line = json_line if form == "json" else text_line

    def end(self, exchange: Exchange) -> None:
        """Writes its line. Of probes and scrapes, which come all the time, only those that fail have one."""
        if exchange.route not in QUIET_ROUTES or exchange.status >= 400:
            self._put(self._line(exchange))


def fields_of(exchange: Exchange) -> dict[str, Any]:
    """What a line says, in its order; times in milliseconds."""
    line: dict[str, Any] = {
        "time": clock(exchange.at),
        "level": "INFO",
        "logger": LOGGER,
        "request_id": exchange.id,
        "method": exchange.method,
        "route": exchange.route,
        "status": exchange.status,
        "ms": round(exchange.seconds * 1000.0, 3),
    }
    return line | _more_of(exchange)


def _more_of(exchange: Exchange) -> dict[str, Any]:
    """What not every line has."""
    line: dict[str, Any] = {}
    if exchange.key:
        line["key"] = exchange.key
    if not exchange.whole:
        line["cut"] = True
    served = exchange.served
    if served is None:
        return line
    line["model"], line["by"], line["task"] = served.request.model, served.by, served.task
    if served.status != exchange.status:  # a stream that broke off
        line["answer_status"] = served.status
    if exchange.first_s is not None and served.first_s is not None:
        line["first_ms"] = round(exchange.first_s * 1000.0, 3)
    answer = served.answer
    if answer is not None:
        usage = answer.usage
        line["expert"], line["confidence"] = answer.expert, answer.confidence
        line["prompt_tokens"], line["completion_tokens"] = usage.prompt_tokens, usage.completion_tokens
        line["joules"], line["cost"] = usage.energy.joules, usage.cost
    return line


_encode = msgspec.json.Encoder().encode


def json_line(exchange: Exchange) -> bytes:
    """The line as a JSON object."""
    try:
        return _encode(fields_of(exchange)) + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair in a model's name
        served = exchange.served
        assert served is not None
        name = served.request.model.encode(errors="backslashreplace").decode()
        return _encode(fields_of(exchange) | {"model": name}) + b"\n"


_ODD = re.compile(r"[^!-~]")


def text_line(exchange: Exchange) -> bytes:
    """The line for people: the same fields, those without a name first."""
    pieces = [
        f"{clock(exchange.at)} {LOGGER} {exchange.id} {exchange.method} {exchange.route} {exchange.status} "
        f"{exchange.seconds * 1000.0:.1f} ms"
    ]
    for name, value in _more_of(exchange).items():
        if value is not None:
            pieces.append(f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={_bare(value)}")
    return " ".join(pieces).encode() + b"\n"


def _bare(value: Any) -> str:
    """A value without blanks, line feeds or anything else that could make it look like more than one."""
    if not isinstance(value, str):
        return str(value)
    if value.isascii() and value.isprintable() and " " not in value:
        return value
    return _ODD.sub(lambda found: found[0].encode("unicode_escape").decode("ascii").replace(" ", "_"), value)
