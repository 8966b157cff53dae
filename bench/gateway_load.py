"""The light ends of the gateway benchmark: a mock big model, and a client that asks over kept connections.

    python -m bench.gateway_load --port 9000 --latency-ms 20

serves the mock. Both ends are plain asyncio protocols on uvloop that know just enough HTTP/1.1, so that what is
measured is the gateway between them and not them.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import random
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import uvloop

HOST = "127.0.0.1"
SYSTEM = "Say in one word what this is about."
QUESTION = "about my account and the bank or the cash, number %d"
_NUMBER = b"cash, number "
TICK_S = 0.001


def body_of(number: int, *, model: str = "mock") -> bytes:
    """A chat request as an SDK spells it; each number asks something else."""
    text = (
        f'{{"model":"{model}","messages":[{{"role":"system","content":"{SYSTEM}"}},'
        f'{{"role":"user","content":"{QUESTION % number}"}}]}}'
    )
    return text.encode()


def post(path: str, body: bytes, headers: str = "") -> bytes:
    """An HTTP request as bytes."""
    head = f"POST {path} HTTP/1.1\r\nhost: {HOST}\r\ncontent-type: application/json\r\n{headers}"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


class Mock(asyncio.Protocol):
    """A big model that answers after `latency_s`: `says`, or a hash of the number that it was asked.

    No expert can learn the hash: all answers come from here.
    """

    def __init__(self, latency_s: float, says: bytes = b"") -> None:
        self._latency_s, self._says = latency_s, says
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps where to answer."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Answers each whole request after the latency; keep-alive, no pipelining."""
        self._buffer += data
        head, blank, rest = self._buffer.partition(b"\r\n\r\n")
        if not blank or len(rest) < length_of(head):
            return
        self._buffer = b""
        number = rest.partition(_NUMBER)[2].partition(b'"')[0] or b"0"
        asyncio.get_running_loop().call_later(self._latency_s, self._reply, number)

    def _reply(self, number: bytes) -> None:
        said = self._says or b"%x" % (int(number) * 2654435761 & 0xFFFFFFFF)
        body = (
            b'{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"mock","choices":[{"index":0,'
            b'"message":{"role":"assistant","content":"%s"},"finish_reason":"stop"}],'
            b'"usage":{"prompt_tokens":25,"completion_tokens":3,"total_tokens":28}}' % said
        )
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        self._transport.write(head + body)


def length_of(head: bytes) -> int:
    """The content-length in the head of a message (0 without one; chunks are not read here)."""
    lower = head.lower()
    assert b"\r\ntransfer-encoding: chunked" not in lower, "a whole JSON reply is expected with its length"
    found = lower.partition(b"\r\ncontent-length:")[2]
    return int(found.partition(b"\r\n")[0]) if found else 0


class Seen(NamedTuple):
    """What one run of the load saw: seconds of each good answer and of each refusal (429), replies by status, seconds.

    A status of 0 is a connection that broke. `unsent` are requests that were due when all the connections that the
    load may open were waiting: they were never asked.
    """

    latencies: list[float]
    refusals: list[float]
    statuses: dict[int, int]
    seconds: float
    unsent: int = 0

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return len(self.latencies) / self.seconds

    @property
    def refused(self) -> int:
        """Requests without a good answer."""
        return self.unsent + sum(self.statuses.values()) - len(self.latencies)


Ended = Callable[["Client", int], None]
"""What is done with a connection whose request has ended, and the status of the reply: 0 if there is none."""


class Client(asyncio.Protocol):
    """One kept connection; one request at a time."""

    def __init__(self) -> None:
        self._buffer = b""
        self._whole = 0
        self._ended: Ended | None = None
        self.last = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps where to ask."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Ends the request when its reply is whole."""
        self._buffer = self._buffer + data if self._buffer else data
        if not self._whole:
            head, blank, _ = self._buffer.partition(b"\r\n\r\n")
            if not blank:
                return
            self._whole = len(head) + 4 + length_of(head)
        if len(self._buffer) >= self._whole:
            self.last, self._buffer, self._whole = self._buffer, b"", 0
            self._end(int(self.last[9:12]))

    def connection_lost(self, error: Exception | None) -> None:
        """Whoever waits is told."""
        self._end(0)

    @property
    def is_open(self) -> bool:
        """Whether the server has not hung up, as most do after some idle seconds."""
        return not self._transport.is_closing()

    def begin(self, request: bytes, ended: Ended) -> None:
        """Asks; `ended` is called once."""
        self._ended = ended
        self._transport.write(request)

    async def ask(self, request: bytes) -> int:
        """The status of the reply."""
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def ended(_: Client, status: int) -> None:
            if not done.done():
                done.set_result(status)

        self.begin(request, ended)
        return await done

    def close(self) -> None:
        """Hangs up."""
        self._transport.close()

    def _end(self, status: int) -> None:
        ended, self._ended = self._ended, None
        if ended is not None:
            ended(self, status)


async def connect(port: int, count: int) -> list[Client]:
    """`count` open connections."""
    loop = asyncio.get_running_loop()
    return [(await loop.create_connection(Client, HOST, port))[1] for _ in range(count)]


class _Tally:
    def __init__(self) -> None:
        self.latencies: list[float] = []
        self.refusals: list[float] = []
        self.statuses: dict[int, int] = {}
        self.unsent = 0

    def add(self, status: int, seconds: float) -> None:
        self.statuses[status] = self.statuses.get(status, 0) + 1
        if status == 200:
            self.latencies.append(seconds)
        elif status == 429:
            self.refusals.append(seconds)

    def seen(self, seconds: float) -> Seen:
        return Seen(self.latencies, self.refusals, self.statuses, seconds, self.unsent)


async def closed_loop(
    port: int, make: Callable[[int], bytes], *, clients: int, seconds: float = 1e9, requests: int = 1 << 60
) -> Seen:
    """`clients` who each ask again at once, until `seconds` or `requests` are over."""
    tally, number = _Tally(), 0
    started = time.perf_counter()
    until = started + seconds

    async def one(client: Client) -> None:
        nonlocal number
        while (now := time.perf_counter()) < until and number < requests:
            number += 1
            status = await client.ask(make(number))
            tally.add(status, time.perf_counter() - now)
        client.close()

    await asyncio.gather(*map(one, await connect(port, clients)))
    return tally.seen(time.perf_counter() - started)


class _OpenLoop:
    """Requests sent when they are due, each over a connection that is idle, or over a new one."""

    def __init__(self, port: int, make: Callable[[int], bytes], most_open: int) -> None:
        self._port, self._make, self._most_open = port, make, most_open
        self._idle: list[Client] = []
        self._open = 0
        self._connecting: set[asyncio.Task[None]] = set()
        self._under_way = 0
        self._all_ended: asyncio.Future[None] | None = None
        self.tally = _Tally()

    def send(self, number: int, due: float) -> None:
        """Sends request `number`, which is due now, or since a moment."""
        while self._idle and not self._idle[-1].is_open:
            self._idle.pop()
            self._open -= 1
        if self._idle:
            self._under_way += 1
            self._begin(self._idle.pop(), number, due)
        elif self._open < self._most_open:
            self._under_way += 1
            self._open += 1
            task = asyncio.ensure_future(self._connect(number, due))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)
        else:
            self.tally.unsent += 1

    async def _connect(self, number: int, due: float) -> None:
        try:
            client = (await connect(self._port, 1))[0]
        except OSError:
            self._open -= 1
            self._end(0, due)
        else:
            self._begin(client, number, due)

    def _begin(self, client: Client, number: int, due: float) -> None:
        def ended(client: Client, status: int) -> None:
            if status:
                self._idle.append(client)
            else:
                self._open -= 1
            self._end(status, due)

        client.begin(self._make(number), ended)

    async def close(self) -> None:
        """Waits for what is under way, and hangs up."""
        if self._under_way:
            self._all_ended = asyncio.get_running_loop().create_future()
            await self._all_ended
        for client in self._idle:
            client.close()

    def _end(self, status: int, due: float) -> None:
        self._under_way -= 1
        self.tally.add(status, time.perf_counter() - due)
        if not self._under_way and self._all_ended is not None:
            self._all_ended.set_result(None)


def evenly(rate: float, seconds: float) -> Sequence[float]:
    """When requests are due, in seconds, at so many a second: always the same time apart."""
    return [number / rate for number in range(int(rate * seconds))]


def at_random(rate: float, seconds: float, seed: int) -> Sequence[float]:
    """The same number, as people come who do not know of each other (a Poisson process)."""
    generator = random.Random(seed)
    return sorted(generator.uniform(0.0, seconds) for _ in range(int(rate * seconds)))


async def open_loop(port: int, make: Callable[[int], bytes], due: Sequence[float], *, most_open: int = 2000) -> Seen:
    """Requests when they are `due`, in seconds, whatever the answers take; latencies count from there."""
    load = _OpenLoop(port, make, most_open)
    number, started = 0, time.perf_counter()
    while number < len(due):
        now = time.perf_counter() - started
        while number < len(due) and due[number] <= now:
            load.send(number, started + due[number])
            number += 1
        # Not less than the loop's clock ticks: a shorter sleep is none, and takes the processor from the mock.
        await asyncio.sleep(max(TICK_S, due[number] - now if number < len(due) else 0.0))
    await load.close()
    return load.tally.seen(time.perf_counter() - started)


def main() -> None:
    """Serves the mock until it is killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--latency-ms", type=float, default=20.0)
    parser.add_argument("--says", default="")
    given = parser.parse_args()

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        make = functools.partial(Mock, given.latency_ms / 1000, given.says.encode())
        server = await loop.create_server(make, HOST, given.port, backlog=2048)
        await server.serve_forever()

    uvloop.run(serve())


if __name__ == "__main__":
    main()
