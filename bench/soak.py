"""A node under everything at once, for as long as one likes: what is lost, leaks or gets mixed up?

    python -m bench.soak --minutes 20 --json --save     # and eight minutes more

200 clients ask a real node (`puhui serve`, learning on) whole answers, streams and tool calls, and send bad input; the
big model flaps; every two minutes the node gets SIGKILL and starts again on the same store. Each request holds a
secret that the big model echoes. It must hold that

* every answer whose whole reply reached its client is in the ledger under its `x-request-id`, and the store is sound;
* a reply holds the secret of its own request and none of another;
* every refusal is OpenAI's error object, every stream ends with [DONE] or an error event (or with a kill);
* memory does not grow: its slope, fitted from a quarter of each life between kills on, and from half of a last, longer
  life on, in which nobody kills, is near 0;
* the learning process ends with its node.

The exit code is 1 if one of the first three fails. A slope is reported, not judged: a node learns while it runs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import numpy as np
import psutil
import uvloop
from rich.console import Console
from sqlalchemy import select

from bench.soak_mock import SECRET
from puhui.demo.processes import free_port
from puhui.store.database import open_store, sqlite_url
from puhui.store.tables import ledger

RESULTS = Path(__file__).parent / "results" / "soak.json"
SAMPLE_EVERY_S = 1.0
DONE = "data: [DONE]"
TOOL = {"type": "function", "function": {"name": "note", "parameters": {"type": "object"}}}
BAD = (
    b"{",
    b"[1, 2]",
    b'{"model": "big"}',
    b'{"model": "big", "messages": []}',
    b'{"model": 7, "messages": [{"role": "user", "content": "x"}]}',
    b'{"model": "big", "messages": "x"}',
    b'{"model": "big", "messages": [{"role": "user", "content": "x"}], "stream": "yes"}',
    b'{"model": "big", "messages": [{"role": "user", "content": "x"}], "metadata": {"task": 3}}',
    b"\xff\xfe",
    b'{"model": "big", "messages": ' + b"[" * 5000,
)


class Found:
    """What the clients saw. `wrong` are sentences, a few of each kind."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.acknowledged: set[str] = set()
        self.wrong: list[str] = []
        self.slopes: list[float] = []
        self.last_slope = math.nan
        self.last_mb: list[float] = []
        self.starts_s: list[float] = []
        self.orphans = 0

    def complain(self, kind: str, detail: str) -> None:
        """Something that must not be."""
        self.counts[f"wrong: {kind}"] += 1
        if self.counts[f"wrong: {kind}"] <= 5:
            self.wrong.append(f"{kind}: {detail[:300]}")


class NodeUnderTest:
    """The node's process, started again after each kill."""

    def __init__(self, folder: Path, upstream: str) -> None:
        self.port = free_port()
        self._command = [sys.executable, "-m", "puhui.cli.main", "serve", "--upstream", upstream]
        self._command += ["--port", str(self.port), "--data-dir", str(folder), "--no-access-log"]
        self._log = (folder / "node.log").open("ab")
        self.process: subprocess.Popen[bytes] | None = None

    async def start(self, session: aiohttp.ClientSession) -> float:
        """Seconds until it is healthy."""
        started = time.monotonic()
        self.process = self._spawn()
        while time.monotonic() < started + 90.0:
            with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
                async with session.get(f"http://127.0.0.1:{self.port}/healthz") as reply:
                    if reply.status == 200:
                        return time.monotonic() - started
            await asyncio.sleep(0.1)
        raise TimeoutError("the node did not start within 90 s")

    def _spawn(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._command, stdout=self._log, stderr=subprocess.STDOUT)

    async def kill(self) -> int:
        """Kills it without warning; returns how many of its children outlive it by ten seconds."""
        assert self.process is not None
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        for _ in range(100):
            if not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children):
                return 0
            await asyncio.sleep(0.1)
        alive = [child for child in children if child.is_running()]
        for child in alive:
            with contextlib.suppress(psutil.Error):
                child.kill()
        return len(alive)

    def memory_mb(self) -> float:
        """Resident memory of the serving process, in MiB."""
        assert self.process is not None
        return float(psutil.Process(self.process.pid).memory_info().rss / 2**20)


class Client:
    """One of many: asks, checks, and asks again."""

    def __init__(self, number: int, base: str, session: aiohttp.ClientSession, found: Found) -> None:
        self._draw = random.Random(number)
        self._url = f"{base}/v1/chat/completions"
        self._session = session
        self._found = found

    async def run(self, until: float) -> None:
        """Until then; a node that is down is waited for."""
        while time.monotonic() < until:
            kind = self._draw.choices(("whole", "stream", "tools", "bad"), (55, 20, 10, 15))[0]
            try:
                await self._ask(kind)
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                self._found.counts[f"no reply: {type(error).__name__}"] += 1
                await asyncio.sleep(0.3)
            await asyncio.sleep(self._draw.uniform(0.0, 0.1))

    async def _ask(self, kind: str) -> None:
        secret = f"secret-{secrets.token_hex(8)}"
        body = self._draw.choice(BAD) if kind == "bad" else _body(kind, secret)
        headers = {"content-type": "application/json"}
        async with self._session.post(self._url, data=body, headers=headers) as reply:
            raw = await reply.read()
        text = raw.decode(errors="replace")
        self._found.counts[f"{kind} {reply.status}"] += 1
        others = set(SECRET.findall(text)) - {secret}
        if others:
            self._found.complain("a secret of another", f"{kind} {text}")
        if reply.status != 200:
            self._check_error(kind, reply.status, text)
            if reply.status in (429, 503):  # as the official clients do
                await asyncio.sleep(float(reply.headers.get("retry-after", 1)) * self._draw.uniform(0.5, 1.5))
        elif kind == "bad":
            self._found.complain("bad input was answered", f"{body[:60]!r} {text}")
        elif kind == "stream":
            self._check_stream(reply, secret, text)
        else:
            if secret not in text:
                self._found.complain("a reply without its secret", f"{kind} {text}")
            self._found.acknowledged.add(reply.headers["x-request-id"])

    def _check_stream(self, reply: aiohttp.ClientResponse, secret: str, text: str) -> None:
        events = [event for event in text.split("\n\n") if event]
        if events and events[-1] == DONE:
            chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-1] if event.startswith("data: ")]
            said = "".join(each["choices"][0]["delta"].get("content") or "" for each in chunks if each["choices"])
            if said != secret:
                self._found.complain("a stream without its secret", f"{said} for {secret}")
            self._found.acknowledged.add(reply.headers["x-request-id"])
            return
        self._found.counts["stream with an error event"] += 1
        last = events[-1].removeprefix("data: ") if events else ""
        self._check_error("stream", 200, last)

    def _check_error(self, kind: str, status: int, text: str) -> None:
        try:
            error = json.loads(text)["error"]
            good = (
                isinstance(error["message"], str) and isinstance(error["type"], str) and {"param", "code"} <= set(error)
            )
        except (ValueError, KeyError, TypeError):
            good = False
        if not good:
            self._found.complain("an error in another format", f"{kind} {status} {text}")
        if kind == "bad" and not 400 <= status < 500 and status not in (502, 503, 504):
            self._found.complain("bad input made a fault", f"{status} {text}")


def _body(kind: str, secret: str) -> bytes:
    messages = [
        {"role": "system", "content": "Repeat the secret."},
        {"role": "user", "content": f"Here it is: {secret}. Repeat it."},
    ]
    more: dict[str, Any] = {"stream": True} if kind == "stream" else {"tools": [TOOL]} if kind == "tools" else {}
    return json.dumps({"model": "big", "messages": messages} | more).encode()


def _big_model() -> tuple[subprocess.Popen[bytes], int]:
    port = free_port()
    return subprocess.Popen([sys.executable, "-m", "bench.soak_mock", "--port", str(port)]), port


async def _live(node: NodeUnderTest, seconds: float) -> list[tuple[float, float]]:
    """Lets the node live so long; returns its memory, by time."""
    samples = [(time.monotonic(), node.memory_mb())]
    while time.monotonic() < samples[0][0] + seconds:
        await asyncio.sleep(SAMPLE_EVERY_S)
        with contextlib.suppress(psutil.Error):
            samples.append((time.monotonic(), node.memory_mb()))
    return samples


def slope_mb_a_minute(samples: list[tuple[float, float]], *, skip: float = 0.25) -> float:
    """The line through a life's memory, without its first part."""
    kept = samples[int(len(samples) * skip) :]
    if len(kept) < 10:
        return math.nan
    times, levels = np.array(kept).T
    return float(np.polyfit((times - times[0]) / 60.0, levels, 1)[0])


async def soak(
    folder: Path, *, minutes: float, last_life_minutes: float, clients: int, kill_every_s: float, console: Console
) -> Found:
    """All of it; what was found."""
    found = Found()
    mock, port = _big_model()
    node = NodeUnderTest(folder, f"http://127.0.0.1:{port}/v1")
    killing_ends = time.monotonic() + minutes * 60.0
    until = killing_ends + last_life_minutes * 60.0
    timeout = aiohttp.ClientTimeout(total=60.0)
    try:
        async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
            found.starts_s.append(await node.start(session))
            base = f"http://127.0.0.1:{node.port}"
            asking = [asyncio.ensure_future(Client(n, base, session, found).run(until)) for n in range(clients)]
            while (left := killing_ends - time.monotonic()) > 5.0:
                samples = await _live(node, min(kill_every_s, left))
                found.slopes.append(slope_mb_a_minute(samples))
                console.print(
                    f"{until - time.monotonic():.0f} s left: {len(found.acknowledged)} acknowledged, "
                    f"{len(found.wrong)} wrong, {samples[-1][1]:.0f} MiB, {found.slopes[-1]:+.2f} MiB a minute"
                )
                found.orphans += await node.kill()
                found.starts_s.append(await node.start(session))
            samples = await _live(node, until - time.monotonic())
            found.last_slope = slope_mb_a_minute(samples, skip=0.5)
            found.last_mb = [samples[int(share * (len(samples) - 1))][1] for share in (0.1, 0.5, 1.0)]
            await asyncio.gather(*asking)
    finally:
        if node.process is not None:
            await node.kill()
        mock.kill()
        mock.wait()
    return found


def report(found: Found, folder: Path) -> dict[str, Any]:
    """The result, with what the ledger says."""
    store = open_store(sqlite_url(folder / "puhui.db"))
    sound = store.check()
    with store.begin() as connection:
        kept = set(connection.execute(select(ledger.c.id)).scalars())
    store.close()
    slopes = [slope for slope in found.slopes if math.isfinite(slope)]
    return {
        "kills": len(found.starts_s) - 1,
        "replies": sum(count for kind, count in found.counts.items() if kind.split()[-1].isdigit()),
        "acknowledged": len(found.acknowledged),
        "missing": len(found.acknowledged - kept),
        "store": sound,
        "wrong": found.wrong,
        "memory_slopes_mb_a_minute": slopes,
        "median_slope_mb_a_minute": median(slopes) if slopes else None,
        "last_life_slope_mb_a_minute": found.last_slope,
        "last_life_mb": found.last_mb,
        "orphans": found.orphans,
        "starts_s": found.starts_s,
        "seen": dict(sorted(found.counts.items())),
    }


def main() -> None:
    """Runs, prints, keeps; exit code 1 if a row is missing, a secret went astray or an error has another format."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--last-life-minutes", type=float, default=8.0, help="after those, without a kill")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--kill-every", type=float, default=120.0, metavar="SECONDS")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", action="store_true", help=f"keep the result in results/{RESULTS.name}")
    given = parser.parse_args()
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = uvloop.run(
            soak(
                folder,
                minutes=given.minutes,
                last_life_minutes=given.last_life_minutes,
                clients=given.clients,
                kill_every_s=given.kill_every,
                console=console,
            )
        )
        result = {"minutes": given.minutes, "clients": given.clients} | report(found, folder)
    if given.save:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    sys.stdout.write(json.dumps(result, indent=None if given.json else 1) + "\n")
    sys.exit(bool(result["missing"] or result["wrong"] or result["store"] != "ok"))


if __name__ == "__main__":
    main()
