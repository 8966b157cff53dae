"""The big model of `bench.soak`: it echoes the secret of whoever asks, and misbehaves at random.

    python -m bench.soak_mock --port 9000

In each half-minute there are five seconds in which most requests fail, as of an endpoint that flaps.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

SECRET = re.compile(r"secret-[0-9a-f]{16}")
FAILING_S, EVERY_S = 5.0, 30.0
USAGE = {"prompt_tokens": 20, "completion_tokens": 4, "total_tokens": 24}


class Flapping:
    """An endpoint that answers, with luck."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)
        self.app = Starlette(routes=[Route("/v1/chat/completions", self._chat, methods=["POST"])])

    async def _chat(self, http: Request) -> Response:
        body: dict[str, Any] = msgspec.json.decode(await http.body())
        await asyncio.sleep(self._draw.uniform(0.005, 0.05))
        bad = time.monotonic() % EVERY_S < FAILING_S
        fate = self._draw.random() * (0.25 if bad else 1.0)
        refused = self._failure(fate)
        if refused is not None:
            return refused
        if fate < 0.17:
            await asyncio.sleep(self._draw.uniform(0.5, 3.0))
        secret = SECRET.findall(str(body["messages"][-1].get("content")))
        said = secret[0] if secret else "nothing"
        if body.get("stream"):
            return StreamingResponse(_stream(said, broken=0.10 < fate < 0.13), media_type="text/event-stream")
        return JSONResponse(_whole(said, tools=bool(body.get("tools"))))

    def _failure(self, fate: float) -> Response | None:
        if fate < 0.03:
            error = {"message": "overheated", "type": "server_error", "param": None, "code": None}
            return JSONResponse({"error": error}, 500)
        if fate < 0.05:
            error = {"message": "slow down", "type": "rate_limit_error", "param": None, "code": "rate_limit_exceeded"}
            return JSONResponse({"error": error}, 429, headers={"retry-after": "1"})
        if fate < 0.07:
            return PlainTextResponse("<html>502 Bad Gateway</html>", 502)
        if fate < 0.08:
            return PlainTextResponse("no json {", 200, media_type="application/json")
        return None


def _whole(said: str, *, tools: bool) -> dict[str, Any]:
    call = {"id": "call_1", "type": "function", "function": {"name": "note", "arguments": f'{{"text":"{said}"}}'}}
    message: dict[str, Any] = {"role": "assistant", "content": None if tools else said}
    if tools:
        message["tool_calls"] = [call]
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if tools else "stop"}
    head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "big"}
    return head | {"choices": [choice], "usage": USAGE}


async def _stream(said: str, *, broken: bool) -> AsyncIterator[bytes]:
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "big"}
    pieces = [said[start : start + 4] for start in range(0, len(said), 4)]
    for number, piece in enumerate(pieces):
        if broken and number == 2:
            raise ConnectionError("it breaks off")
        delta = {"role": "assistant", "content": piece}
        choice = {"index": 0, "delta": delta, "finish_reason": None}
        yield b"data: " + msgspec.json.encode(head | {"choices": [choice]}) + b"\n\n"
        await asyncio.sleep(0.002)
    last = {"index": 0, "delta": {}, "finish_reason": "stop"}
    yield b"data: " + msgspec.json.encode(head | {"choices": [last], "usage": USAGE}) + b"\n\n"
    yield b"data: [DONE]\n\n"


def main() -> None:
    """Serves it until it is killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    uvicorn.run(Flapping(given.seed).app, port=given.port, log_level="critical", access_log=False)


if __name__ == "__main__":
    main()
