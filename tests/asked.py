"""Asking an `Endpoint` in the tests: one request, one answer, or the events of a stream."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from puhui.core.answer import Answer
from puhui.core.request import Message, Request
from puhui.models.endpoint import Endpoint


def ask(text: str = "hello", *, stream: bool = False, alternatives: bool = False, **more: Any) -> Request:
    body = {"model": "m", "messages": [{"role": "user", "content": text}]} | ({"stream": True} if stream else {})
    return Request(
        id="req_1",
        model="m",
        messages=(Message("user", text),),
        body=msgspec.json.encode(body | {"unknown": {"to": ["puhui"]}}),
        stream=stream,
        alternatives=alternatives,
        **more,
    )


@contextlib.asynccontextmanager
async def endpoint(url: str, **more: Any) -> AsyncIterator[Endpoint]:
    opened = Endpoint(url, **more)
    try:
        yield opened
    finally:
        await opened.close()


async def answer(url: str, request: Request | None = None, **more: Any) -> Answer:
    async with endpoint(url, **more) as big:
        return await big(request or ask())


async def stream(url: str, request: Request | None = None, **more: Any) -> tuple[list[bytes], Answer]:
    """The events that came (also before an error, which is then raised with them) and the answer."""
    async with endpoint(url, **more) as big:
        found = await big(request or ask(stream=True))
        assert found.pieces is not None
        return [piece async for piece in found.pieces], found
