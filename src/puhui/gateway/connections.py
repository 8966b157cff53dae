"""Connections that cannot be held open: uvicorn's protocol with a time and a size within which a request must come.

uvicorn waits for ever for a request that was begun, and keeps a header however long it grows: whoever opens
connections and sends a byte now and then (slow loris) takes a server away from all others.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import msgspec
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

REQUEST_WITHIN_S = 60.0
"""From a request's first byte (or from the connection) to its last."""
MOST_HEAD_BYTES = 64 * 1024
KEEP_ALIVE_S = 75
"""Longer than clients keep idle connections, so that it is they who hang up and none asks into a closing one."""
MOST_CONNECTIONS = 10_000
SPARE_FILES = 100
SWEEP_EVERY_TICKS = 10  # of a tenth of a second


class BoundedProtocol(HttpToolsProtocol):
    """One connection. `waiting_since` is the loop's time at which it began to owe a request, None if it owes none."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.waiting_since: float | None = None
        self._in_head = True
        self._head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Room is made by whoever has owed a request for longest."""
        self.waiting_since = self.loop.time()
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            others = (each for each in self.connections if each is not self and not each.transport.is_closing())
            owing = [each for each in others if _since(each) is not None]
            min(owing or [self], key=lambda each: _since(each) or 0.0).transport.close()

    def data_received(self, data: bytes) -> None:
        """A head that does not end is cut off."""
        super().data_received(data)
        if self._in_head:
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
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The request is whole: nothing is owed."""
        self.waiting_since = None
        self._in_head, self._head_bytes = True, 0
        super().on_message_complete()

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
    """A server that hangs up on connections whose request does not come in time."""

    async def on_tick(self, counter: int) -> bool:
        """uvicorn calls this ten times a second."""
        if counter % SWEEP_EVERY_TICKS == 0:
            self.sweep(asyncio.get_running_loop().time())
        return await super().on_tick(counter)

    def sweep(self, now: float) -> None:
        """Closes what has owed a request for too long at `now`."""
        for connection in list(self.server_state.connections):
            since = _since(connection)
            if since is not None and now - since > REQUEST_WITHIN_S:
                connection.transport.close()


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
