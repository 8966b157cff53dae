"""Mutated chat bodies over real HTTP against a real node: no 500, no hang, no crash.

    python -m bench.fuzz --bodies 100000 --json --save

The node is a process of its own, with an expert in place, before a small server that answers whatever it is sent. Good
bodies of every kind (streams, tools, pictures, JSON schemas, needs) are changed by a seeded generator: three in four
by structure (a value of another type or size, a field more or less, fields from another body), one in four by bytes
(cut, doubled, moved, overwritten). Each reply must come within ten seconds, be OpenAI's error object if it is an error,
and never a 500. What an overloaded node turns away (429) is sent again.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from bench.in_thread import in_thread, wait_until_healthy
from puhui.bundles.bundle import Card, seal
from puhui.cascade.guarantee import Calibration
from puhui.compress.static_training import StaticOptions, distill_static
from puhui.demo.processes import free_port
from puhui.evolve.discovery import task_of_group
from puhui.evolve.gate import Verdict
from puhui.evolve.memory import Memory, Progress
from puhui.evolve.traffic import group_key
from puhui.models.hashing import FeatureOptions
from puhui.store.database import open_store, sqlite_url
from puhui.trust.keys import load_or_create_key

HANG_S = 10.0
CLIENTS = 16
RESULTS = Path(__file__).parent / "results" / "fuzz.json"
SYSTEM = "Which is it: cold or warm? One word."
LABELS = {"cold": ("snow", "ice", "frost", "winter"), "warm": ("sun", "summer", "beach", "fire")}

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False}
TOOL = {"type": "function", "function": {"name": "look", "parameters": SCHEMA}}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
ASKED = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "snow and ice and the frost"}]
GOOD: tuple[dict[str, Any], ...] = (
    {"model": "m", "messages": ASKED},
    {"model": "m", "messages": ASKED, "seed": 1, "user": "u", "store": False},
    {"model": "m", "messages": ASKED, "stream": True, "stream_options": {"include_usage": True}},
    {"model": "m", "messages": ASKED, "max_tokens": 5, "stop": ["\n", "."], "temperature": 0.5, "seed": 7},
    {"model": "m", "messages": ASKED, "tools": [TOOL], "tool_choice": "auto", "parallel_tool_calls": False},
    {"model": "m", "messages": ASKED, "n": 2, "logprobs": True, "top_logprobs": 3, "user": "ü"},
    {"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "what?"}, PICTURE]}]},
    {
        "model": "m",
        "messages": ASKED,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}},
    },
    {
        "model": "m",
        "messages": ASKED,
        "metadata": {"task": "weather"},
        "puhui": {"needs": {"quality": 0.5, "latency_ms": 5000, "privacy": "site"}, "keep": "nothing"},
    },
    {
        "model": "m",
        "messages": [
            *ASKED,
            {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": {}}]},
            {"role": "tool", "tool_call_id": "1", "content": "warm"},
        ],
    },
)
NASTY: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**70), 10**400, 0.1, -0.0, 1e308, 1e-320, "", " ", "\x00",
    "a" * 5000, "模型 ü 😀", "\ud800", "{}", "null", "1", "../../etc/passwd", "http://127.0.0.1:1/", "%s%n", "'; DROP",
    "\r\nset-cookie: a=b", [], {}, [None], [[]], [{}], {"": None}, ["a"] * 200, {"type": "text"},
    {"type": "text", "text": 5},
    {"$ref": "http://127.0.0.1:1/schema"}, {"task": "t"}, {"needs": {"quality": 2}}, {"needs": {"privacy": "device"}},
)  # fmt: skip
FIELDS = (
    "model", "messages", "stream", "stream_options", "tools", "tool_choice", "n", "logprobs", "stop", "max_tokens",
    "max_completion_tokens", "response_format", "metadata", "puhui", "seed", "temperature", "modalities", "audio",
    "functions", "store", "user", "role", "content", "type", "text", "nobody_knows", "",
)  # fmt: skip
RUBBISH = (
    b"\xff",
    b"\x00",
    b'"',
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"\\ud800",
    b"\xef\xbb\xbf",
    b"1e999",
    b"NaN",
)


class Bodies:
    """Mutated bodies, the same ones for the same seed."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)

    def one(self) -> bytes:
        """The next body."""
        draw = self._draw
        fields = copy.deepcopy(draw.choice(GOOD))
        if draw.random() < 0.75:
            for _ in range(draw.choice((0, 1, 1, 1, 2, 3))):
                self._change(fields)
            text = json.dumps(fields, ensure_ascii=draw.random() < 0.5)
            return text.encode(errors="surrogatepass")
        body = json.dumps(fields).encode()
        for _ in range(draw.randint(1, 3)):
            body = self._bytes(body)
        return body

    def _change(self, fields: dict[str, Any]) -> None:
        draw = self._draw
        fields.setdefault("model", "m")  # something to change
        holder, key = draw.choice(list(_places(fields)))
        kind = draw.randrange(6)
        if kind == 0 and isinstance(holder, dict):
            holder.pop(key, None)
        elif kind == 1 and isinstance(holder, dict):
            holder[draw.choice(FIELDS)] = copy.deepcopy(draw.choice(NASTY))
        elif kind == 2:
            other = copy.deepcopy(draw.choice(GOOD))
            fields |= {name: other[name] for name in draw.sample(sorted(other), draw.randint(1, len(other)))}
        elif kind == 3:
            deep: Any = holder[key]
            for _ in range(draw.choice((1, 10, 250))):
                deep = [deep] if draw.random() < 0.5 else {"a": deep}
            holder[key] = deep
        elif kind == 4 and isinstance(holder, list):
            holder.extend(copy.deepcopy(holder[:20]))
        else:
            holder[key] = copy.deepcopy(draw.choice(NASTY))

    def _bytes(self, body: bytes) -> bytes:
        draw = self._draw
        at, to = sorted((draw.randint(0, len(body)), draw.randint(0, len(body))))
        kind = draw.randrange(6)
        if kind == 0:
            return body[:at]
        if kind == 1:
            return body[:at] + body[to:]
        if kind == 2:
            return body[:to] + body[at:to] + body[to:]
        if kind == 3:
            return body[:at] + draw.choice(RUBBISH) * draw.choice((1, 1, 1, 50, 3000)) + body[at:]
        if kind == 4:
            return body[:at] + draw.randbytes(min(8, to - at)) + body[at + 8 :]
        return body[:at] + json.dumps(draw.choice(GOOD)).encode()[draw.randint(0, 30) :] + body[to:]


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a JSON value where something stands: its holder, and the key in it."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


async def _answer(http: HttpRequest) -> Response:
    """What a big model says to anything: "cold", as a stream where one is asked for."""
    try:
        streamed = bool(json.loads(await http.body()).get("stream"))
    except (ValueError, AttributeError, RecursionError):
        return JSONResponse({"error": {"message": "no JSON object"}}, 400)
    if streamed:
        return StreamingResponse(_events(), media_type="text/event-stream")
    choice = {"index": 0, "message": {"role": "assistant", "content": "cold"}, "finish_reason": "stop"}
    return JSONResponse({"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]})


async def _events() -> AsyncIterator[bytes]:
    for delta, end in (({"role": "assistant", "content": "cold"}, None), ({}, "stop")):
        choice = {"index": 0, "delta": delta, "finish_reason": end}
        yield b"data: " + json.dumps({"object": "chat.completion.chunk", "choices": [choice]}).encode() + b"\n\n"
    yield b"data: [DONE]\n\n"


def put_expert(folder: Path) -> None:
    """Puts an expert in place for the good bodies' system prompt, before the node starts."""
    draw = random.Random(0)
    kinds = [draw.choice(list(LABELS)) for _ in range(200)]
    texts = [f"{' and '.join(draw.sample(LABELS[kind], 3))} number {n}" for n, kind in enumerate(kinds)]
    model = distill_static(texts, kinds, options=StaticOptions(features=FeatureOptions(buckets=1 << 12)))
    task = task_of_group(group_key("m", "", "context", SYSTEM), "m", SYSTEM)
    card = Card(
        task=task.id,
        task_name=task.name,
        family="static",
        labels=model.labels,
        teacher="m",
        recipe={},
        rows=200,
        data_digest="0" * 64,
        calibration={"threshold": 0.5},
        agreement=1.0,
        size_bytes=model.size_bytes,
        answer_us=50.0,
        joules_low=0.0001,
        joules_high=0.001,
    )
    store = open_store(sqlite_url(folder / "puhui.db"))
    memory = Memory(store)
    memory.add_task(task)
    expert, place = seal(folder / "experts", card, model, load_or_create_key(folder / "keys" / "node.key"))
    proven = Calibration(0.5, 0.9, 0, 0.0, 0.01, 0.05, 0.05, 500)
    memory.promote(task, Progress(attempts=1), expert, place, Verdict(True, proven, "proven"))
    store.close()


class Tally:
    """What came back."""

    def __init__(self) -> None:
        self.statuses: Counter[int] = Counter()
        self.experts = 0
        self.slowest_s = 0.0
        self.failures: list[dict[str, Any]] = []

    def failed(self, why: str, body: bytes) -> None:
        """Keeps the first of them, so that they can be tried again."""
        if len(self.failures) < 20:
            self.failures.append({"why": why, "body": body[:2000].decode("latin-1")})


async def _ask(session: aiohttp.ClientSession, url: str, bodies: Iterator[bytes], tally: Tally) -> None:
    for body in bodies:
        status = 429
        while status == 429:
            began = time.monotonic()
            try:
                async with session.post(url, data=body, headers={"content-type": "application/json"}) as response:
                    said, status = await response.read(), response.status
            except (aiohttp.ClientError, TimeoutError) as error:
                tally.failed(f"no reply: {type(error).__name__} {error}", body)
                break
            tally.slowest_s = max(tally.slowest_s, time.monotonic() - began)
            tally.statuses[status] += 1
            if status == 429:
                await asyncio.sleep(0.2)
        else:
            _judge(response, said, body, tally)


def _judge(response: aiohttp.ClientResponse, said: bytes, body: bytes, tally: Tally) -> None:
    tally.experts += response.headers.get("x-puhui-by", "").startswith("expert:")
    if response.status == 500:
        tally.failed("a fault", body)
    elif response.status >= 400 and not _is_error(said):
        tally.failed(f"an error that is not OpenAI's: {said[:200]!r}", body)


def _is_error(said: bytes) -> bool:
    try:
        return bool(json.loads(said)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return False


async def fuzz(url: str, bodies: Iterator[bytes], tally: Tally, clients: int = CLIENTS) -> None:
    """Sends all bodies, from `clients` connections."""
    timeout = aiohttp.ClientTimeout(total=HANG_S)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(_ask(session, f"{url}/v1/chat/completions", bodies, tally) for _ in range(clients)))


def run(folder: Path, *, bodies: int, seed: int = 0) -> dict[str, Any]:
    """All bodies against a fresh node; `failures` must be empty and `alive` true."""
    put_expert(folder)
    made, tally = Bodies(seed), Tally()
    app = Starlette(routes=[Route("/v1/chat/completions", _answer, methods=["POST"])])
    with in_thread(app) as upstream:
        port = free_port()
        arguments = ["serve", "--upstream", upstream, "--port", str(port), "--data-dir", str(folder), "--no-learn"]
        with (folder / "node.log").open("wb") as log:
            node = subprocess.Popen([sys.executable, "-m", "puhui.cli.main", *arguments], stdout=log, stderr=log)
        try:
            wait_until_healthy(port)
            url = f"http://127.0.0.1:{port}"
            began = time.monotonic()
            asyncio.run(fuzz(url, (made.one() for _ in range(bodies)), tally))
            seconds = time.monotonic() - began
            last = Tally()
            asyncio.run(fuzz(url, iter([json.dumps(GOOD[0]).encode()]), last))
            alive = node.poll() is None and last.statuses == {200: 1}
        finally:
            node.terminate()
            node.wait(30)
    return {
        "bodies": bodies,
        "seed": seed,
        "clients": CLIENTS,
        "statuses": {str(status): count for status, count in sorted(tally.statuses.items())},
        "answered_by_experts": tally.experts,
        "bodies_a_second": round(bodies / seconds, 1),
        "slowest_s": round(tally.slowest_s, 3),
        "tracebacks_in_log": (folder / "node.log").read_bytes().count(b"Traceback"),
        "alive": alive,
        "failures": tally.failures,
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bodies", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--save", action="store_true", help=f"keep it in {RESULTS.name}")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = run(Path(folder), bodies=options.bodies, seed=options.seed)
    if options.save:
        RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        Console().print(result)
    if result["failures"] or result["tracebacks_in_log"] or not result["alive"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
