"""Big models on loopback that are slow, refuse, flap or break off, as a script says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse

from puhui.core.request import Message, Needs, Request
from serving import BigModel, stream_of


class Moody(BigModel):
    """A big model that does what `script` says, request by request, and `then` when the script is at its end.

    A number below 100 is seconds to wait before answering, a greater one a status to refuse with (`retry_after` goes
    with it), "break" a stream that breaks off after two events, "break at once" one that does before any.
    """

    def __init__(self, *script: float | str, then: float | str = 0.0, retry_after: str | None = None) -> None:
        super().__init__()
        self.script = list(script)
        self.then = then
        self.retry_after = retry_after
        self.given_up = 0

    async def _chat(self, http: HttpRequest) -> Response:
        mood = self.script.pop(0) if self.script else self.then
        body = await http.body()  # read before anything else: who asks whether the client is there takes it away
        if isinstance(mood, str):
            self.bodies.append(msgspec.json.decode(body))
            return StreamingResponse(self._broken(2 if mood == "break" else 0), media_type="text/event-stream")
        if mood >= 100:
            self.bodies.append(msgspec.json.decode(body))
            headers = {"retry-after": self.retry_after} if self.retry_after is not None else {}
            return JSONResponse({"error": {"message": f"mood {mood}"}}, int(mood), headers=headers)
        if mood:
            await self._wait(http, mood)
        return await super()._chat(http)

    async def _wait(self, http: HttpRequest, seconds: float) -> None:
        end = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.01)
            if await http.is_disconnected():
                self.given_up += 1
                return

    async def _broken(self, events: int) -> AsyncIterator[bytes]:
        for event in list(stream_of("hello"))[:events]:
            yield event
            await asyncio.sleep(0.01)
        raise ConnectionResetError("as the script says")


def ask(
    text: str = "hello", *, model: str = "puhui", stream: bool = False, needs: Needs = Needs(), **more: Any
) -> Request:
    """A request, as the gateway would make it."""
    body = {"model": model, "messages": [{"role": "user", "content": text}], "stream": stream}
    return Request(
        id="req_1",
        model=model,
        messages=(Message("user", text),),
        body=msgspec.json.encode(body | more),
        stream=stream,
        needs=needs,
    )
