"""Connections that cannot be held open, and that do not wait unseen: uvicorn's protocol and server with bounds.

uvicorn waits for ever for a request that was begun, and keeps a header however long it grows: whoever opens
connections and sends a byte now and then (slow loris) takes a server away from all others. It also waits for ever for
a client to read, and with it the reply, its request and the connection to the big model.

uvloop accepts one connection in each turn of its loop. When turns are long, under load, new connections then wait for
seconds where nothing in the process can see them: a queue that no bound on requests keeps short.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections import deque
from typing import Any

import msgspec
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from puhui.gateway.admission import BOUNDED, Gate

REQUEST_WITHIN_S = 60.0
"""From a request's first byte (or from the connection) to its last."""
UNREAD_FOR_S = 60.0
"""How long a reply may lie with nothing of it taken: as long as a client has for its request."""
MOST_HEAD_BYTES = 64 * 1024
_BOUNDED = BOUNDED.encode()
KEEP_ALIVE_S = 75
"""Longer than clients keep idle connections, so that it is they who hang up and none asks into a closing one."""
MOST_CONNECTIONS = 10_000
SPARE_FILES = 100
ACCEPTED_A_TURN = 200
SWEEP_EVERY_TICKS = 10  # of a tenth of a second


class BoundedProtocol(HttpToolsProtocol):
    """One connection. `waiting_since` is the loop's time at which it began to owe a request, None if it owes none.

    What the application's `gate` has no room for is refused here, before anything is made of it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.waiting_since: float | None = None
        self._gate: Gate | None = getattr(getattr(self.config.app, "state", None), "gate", None)
        self._in_head = True
        self._head_bytes = 0
        self._ended = False
        self._refusing = False
        self._unread_bytes = 0
        self._unread_since = self.loop.time()
        self._begun: deque[Any] = deque()  # uvicorn's cycles, one for each request, that have not ended

    def connection_lost(self, exc: Exception | None) -> None:
        """uvicorn tells the last of pipelined requests alone, and the others' replies fail as if it were our fault."""
        super().connection_lost(exc)
        for cycle in self._begun:
            cycle.disconnected = cycle.disconnected or not cycle.response_complete
            cycle.message_event.set()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Room is made by whoever has owed a request for longest."""
        self.waiting_since = self.loop.time()
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            others = (each for each in self.connections if each is not self and not each.transport.is_closing())
            owing = [each for each in others if _since(each) is not None]
            min(owing or [self], key=lambda each: _since(each) or 0.0).transport.close()

    def data_received(self, data: bytes) -> None:
        """A head that does not end is cut off. A read that ends a request is not counted: it may be all body."""
        self._ended = False
        super().data_received(data)
        if self._in_head and not self._ended:
            self._head_bytes += len(data)
            if self._head_bytes > MOST_HEAD_BYTES and not self.transport.is_closing():
                self._refuse(431, f"the headers are larger than {MOST_HEAD_BYTES} bytes, the most taken here")

    def on_message_begin(self) -> None:
        """The request's time runs."""
        self.waiting_since = self.loop.time()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """What comes now is the body, which the application bounds."""
        self._in_head = False
        busy = self.cycle is not None and not self.cycle.response_complete
        if self._gate is None or busy or not self.url.startswith(_BOUNDED) or self._gate.lets_in():
            super().on_headers_complete()
            while self._begun and self._begun[0].response_complete:  # they end in their order
                self._begun.popleft()
            self._begun.append(self.cycle)
        else:
            self._refusing = True
            if self.expect_100_continue:  # its body would not come before it is wanted
                self._too_much(stay=False)

    def on_body(self, body: bytes) -> None:
        """Of a request that is refused, nothing is kept."""
        if not self._refusing:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole: nothing is owed."""
        self.waiting_since = None
        self._in_head, self._head_bytes, self._ended = True, 0, True
        if self._refusing:
            self._refusing = False
            if not self.transport.is_closing():
                self._too_much(stay=self.parser.should_keep_alive())
        else:
            super().on_message_complete()

    def unread_for_s(self, now: float) -> float:
        """How long, at `now`, nothing of what waits for the client was taken. Called again and again.

        While the application may still write, more may come than is taken, so that tells nothing.
        """
        size = self.transport.get_write_buffer_size()
        if size:
            size += _in_kernel_bytes(self.transport)
        all_there = self.flow.write_paused or self.cycle is None or self.cycle.response_complete
        if not size or not all_there or size < self._unread_bytes:
            self._unread_since = now
        self._unread_bytes = size
        return now - self._unread_since

    def _too_much(self, *, stay: bool) -> None:
        assert self._gate is not None
        self.transport.write(self._gate.refuse(self.headers).reply)
        if stay:
            self.on_response_complete()
        else:
            self.transport.close()

    def _should_upgrade(self) -> bool:
        """Nothing here speaks another protocol: who asks for one is answered in HTTP."""
        return False

    def _unsupported_upgrade_warning(self) -> None:
        """The reply says it; uvicorn's advice to install a library would be wrong."""

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP gets an error object like everything else."""
        self._refuse(400, msg)

    def _refuse(self, status: int, message: str) -> None:
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
        body = msgspec.json.encode({"error": error})
        reason = {400: "Bad Request", 431: "Request Header Fields Too Large"}[status]
        head = f"HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\nconnection: close\r\n"
        self.transport.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        self.transport.close()


class BoundedServer(uvicorn.Server):
    """A server that accepts at once, and hangs up on connections whose request or reading does not come in time."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's, and beside uvloop's own way to accept another that does not leave any waiting."""
        await super().startup(sockets)
        self._doors: list[socket.socket] = []
        self._arriving: set[asyncio.Task[None]] = set()
        loop = asyncio.get_running_loop()
        if not type(loop).__module__.startswith("uvloop"):
            return  # asyncio's own loop accepts all that wait
        for listening in sockets or []:
            door = listening.dup()  # the loop lets nobody else watch a file that it watches itself
            door.setblocking(False)
            self._doors.append(door)
            loop.add_reader(door, self._accept, door)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Closes its own doors first."""
        loop = asyncio.get_running_loop()
        for door in self._doors:
            loop.remove_reader(door)
            door.close()
        await super().shutdown(sockets)

    def _accept(self, door: socket.socket) -> None:
        for _ in range(ACCEPTED_A_TURN):
            try:
                connection, _ = door.accept()
            except OSError:  # none is left, it has gone already, or there are no more files
                return
            task = asyncio.ensure_future(self._welcome(connection))
            self._arriving.add(task)
            task.add_done_callback(self._arriving.discard)

    async def _welcome(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        with contextlib.suppress(OSError):  # it has gone
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection)

    def _protocol(self) -> asyncio.Protocol:
        make: Any = self.config.http_protocol_class
        protocol: asyncio.Protocol = make(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol

    async def on_tick(self, counter: int) -> bool:
        """uvicorn calls this ten times a second."""
        if counter % SWEEP_EVERY_TICKS == 0:
            self.sweep(asyncio.get_running_loop().time())
        return await super().on_tick(counter)

    def sweep(self, now: float) -> None:
        """Closes what has owed a request, or not read its reply, for too long at `now`."""
        for connection in list(self.server_state.connections):
            since = _since(connection)
            if since is not None and now - since > REQUEST_WITHIN_S:
                connection.transport.close()
            if isinstance(connection, BoundedProtocol) and connection.unread_for_s(now) > UNREAD_FOR_S:
                connection.transport.abort()  # to close would be to wait until all is read


def _in_kernel_bytes(transport: asyncio.Transport) -> int:
    """What the kernel has not delivered yet (0 where it does not tell).

    It takes from us in steps of megabytes, so here alone is seen that a slow client reads.
    """
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import fcntl
        import termios

        fd = transport.get_extra_info("socket").fileno()
        return int.from_bytes(fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    return 0


def _since(connection: Any) -> float | None:
    return getattr(connection, "waiting_since", None)


def allow_many_files() -> None:
    """Raises the soft limit on open files, often 1,024, towards the hard one: each connection is a file."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = 2 * MOST_CONNECTIONS + SPARE_FILES  # each may have one to the big model
        if hard != resource.RLIM_INFINITY:
            wanted = min(wanted, hard)
        if wanted > soft:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
