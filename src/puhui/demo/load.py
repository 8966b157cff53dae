"""Requests sent over a few kept connections, as fast as they are answered or at a steady rate, and what came back."""

from __future__ import annotations

import http.client
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec


class Sent(msgspec.Struct):
    """One request as its client saw it. `number` counts from 0; `latency_s` runs from send to whole reply."""

    number: int
    at: float
    latency_s: float
    status: int
    answer: str | None = None
    by: str = ""
    id: str = ""
    confidence: float | None = None
    stages: int = 1
    cpu_ms: float = 0.0
    joules: float = 0.0
    joules_low: float = 0.0
    joules_high: float = 0.0
    error: str | None = None

    @property
    def by_expert(self) -> bool:
        """Whether an expert gave the answer."""
        return self.by.startswith("expert:")

    @property
    def saw_expert(self) -> bool:
        """Whether an expert was in place, sure or not."""
        return self.by_expert or self.stages > 1


def send_all(
    base_url: str,
    bodies: Sequence[bytes],
    *,
    rate: float | None,
    key: str | None = None,
    clients: int,
    done: Callable[[Sent], None],
) -> None:
    """POSTs every body to `base_url`/chat/completions; `done` is told of each as it comes back, in any order.

    `rate` is requests a second (None: as fast as `clients` connections allow). A request that fails is told
    with its status and error, never raised.
    """
    waiting: queue.Queue[int | None] = queue.Queue()
    lock, stop = threading.Lock(), threading.Event()

    def work() -> None:
        connection = _Connection(base_url, key)
        while (number := waiting.get()) is not None and not stop.is_set():
            sent = connection.post(number, bodies[number])
            with lock:
                done(sent)
        connection.close()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        begun = time.perf_counter()
        for number in range(len(bodies)):
            if rate is not None:
                time.sleep(max(0.0, begun + number / rate - time.perf_counter()))
            waiting.put(number)
        for _ in threads:
            waiting.put(None)
        for thread in threads:
            while thread.is_alive():
                thread.join(timeout=0.2)  # in small steps, so that Ctrl-C is heard
    finally:
        stop.set()
        for _ in threads:
            waiting.put(None)


class _Connection:
    """One kept HTTP connection, from the standard library: it adds the least to what is measured."""

    def __init__(self, base_url: str, key: str | None) -> None:
        parts = urlsplit(base_url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._http = kind(parts.netloc, timeout=180)
        self._path = parts.path.rstrip("/") + "/chat/completions"
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})

    def post(self, number: int, body: bytes) -> Sent:
        at, started = time.time(), time.perf_counter()
        try:
            self._http.request("POST", self._path, body, self._headers)
            response = self._http.getresponse()
            reply = response.read()
        except (OSError, http.client.HTTPException) as error:
            self._http.close()
            return Sent(number, at, time.perf_counter() - started, 0, error=str(error) or type(error).__name__)
        return _read(Sent(number, at, time.perf_counter() - started, response.status), reply)

    def close(self) -> None:
        self._http.close()


def _read(sent: Sent, reply: bytes) -> Sent:
    try:
        fields: dict[str, Any] = msgspec.json.decode(reply)
        if sent.status != 200:
            sent.error = str(fields["error"]["message"])
            return sent
        sent.answer = fields["choices"][0]["message"]["content"]
    except (msgspec.DecodeError, LookupError, TypeError):
        sent.error = f"a reply that is no chat completion: {reply[:80]!r}"
        return sent
    report = fields.get("puhui")
    if isinstance(report, dict):
        energy = report["energy"]
        sent.by, sent.id, sent.confidence = report["by"], report["id"], report["confidence"]
        sent.stages, sent.cpu_ms = len(report["path"]), report["cpu_ms"]
        sent.joules, sent.joules_low, sent.joules_high = energy["joules"], energy["low"], energy["high"]
    return sent
