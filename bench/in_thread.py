"""An application served in a thread of this process: what stands in for a big model in benchmarks."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette

from puhui.demo.processes import free_port


@contextmanager
def in_thread(app: Starlette) -> Iterator[str]:
    """The base URL of `app`, which is served until the block ends."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", access_log=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.should_exit = True
        thread.join()


def wait_until_healthy(port: int) -> None:
    """Waits for the node at `port` to answer, for a minute at most."""
    until = time.monotonic() + 60.0
    while time.monotonic() < until:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2.0)
        try:
            connection.request("GET", "/healthz")
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.05)
        finally:
            connection.close()
    raise TimeoutError("the node did not start within a minute")
