"""A stand-in for a big model behind OpenAI's API: a real HTTP server that answers every kind of request by rule.

Chat says the last message in capitals; with tools it calls the first, with a JSON schema it answers by it. Embeddings
have four numbers, responses and legacy completions say their input in capitals. It is strict where OpenAI's is: what
it cannot read gets 400 and OpenAI's error object.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from bench.in_thread import in_thread

MODELS = ("gpt-4o", "org/small", "text-embedding-3-small")
USAGE = {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14}
SAMPLES = {"string": "text", "integer": 3, "number": 1.5, "boolean": True, "null": None}


def stand_in_app(seen: list[dict[str, Any]] | None = None) -> Starlette:
    """The server. `seen` gets the headers, path and body of each request."""

    async def chat(http: Request) -> Response:
        body = await _read(http, seen)
        if body is None:
            return _refusal("no JSON object")
        text = _text_of(body)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        finish, limit = "stop", body.get("max_tokens") or body.get("max_completion_tokens")
        if body.get("tools"):
            with contextlib.suppress(KeyError, TypeError, IndexError):
                message, finish = _call(body["tools"][0]["function"]["name"]), "tool_calls"
        elif isinstance(limit, int) and len(text) > limit:
            message["content"], finish = text[:limit], "length"
        if body.get("stream"):
            return _events(_chunks(body, message, finish))
        count = body.get("n") if isinstance(body.get("n"), int) and 0 < body["n"] < 9 else 1
        choices = [{"index": n, "message": message, "logprobs": None, "finish_reason": finish} for n in range(count)]
        return JSONResponse(_head("chat.completion", body) | {"choices": choices, "usage": USAGE})

    async def complete(http: Request) -> Response:
        body = await _read(http, seen)
        if body is None:
            return _refusal("no JSON object")
        choices = [{"index": 0, "text": str(body.get("prompt", "")).upper(), "logprobs": None, "finish_reason": "stop"}]
        whole = _head("text_completion", body) | {"choices": choices, "usage": USAGE}
        return _events([whole]) if body.get("stream") else JSONResponse(whole)

    async def embed(http: Request) -> Response:
        body = await _read(http, seen)
        if body is None:
            return _refusal("no JSON object")
        given = body.get("input", "")
        data = [
            {"object": "embedding", "index": n, "embedding": [0.5, -0.5, 0.25, 1.0]}
            for n in range(len(given) if isinstance(given, list) else 1)
        ]
        usage = {"prompt_tokens": 8, "total_tokens": 8}
        return JSONResponse({"object": "list", "data": data, "model": body.get("model"), "usage": usage})

    async def respond(http: Request) -> Response:
        body = await _read(http, seen)
        if body is None:
            return _refusal("no JSON object")
        whole = _response(body)
        if not body.get("stream"):
            return JSONResponse(whole)
        return StreamingResponse(_response_events(whole), media_type="text/event-stream")

    async def models(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_model(name) for name in MODELS]})

    async def model(http: Request) -> Response:
        name = http.path_params["id"]
        return JSONResponse(_model(name)) if name in MODELS else _refusal(f"no model {name!r}", 404)

    return Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/completions", complete, methods=["POST"]),
            Route("/v1/embeddings", embed, methods=["POST"]),
            Route("/v1/responses", respond, methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/models/{id:path}", model),
        ]
    )


@contextmanager
def stand_in(seen: list[dict[str, Any]] | None = None) -> Iterator[str]:
    """Its base URL; it is served in a thread."""
    with in_thread(stand_in_app(seen)) as url:
        yield url


async def _read(http: Request, seen: list[dict[str, Any]] | None) -> dict[str, Any] | None:
    raw = await http.body()
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if seen is not None:
        seen.append({"path": http.url.path, "headers": dict(http.headers), "body": body})
    return body if isinstance(body, dict) else None


def _refusal(message: str, status: int = 400) -> Response:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    return JSONResponse({"error": error}, status)


def _head(kind: str, body: dict[str, Any]) -> dict[str, Any]:
    return {"id": "id-1", "object": kind, "created": 1, "model": body.get("model"), "system_fingerprint": "fp_1"}


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 1, "owned_by": "somebody"}


def _call(name: str) -> dict[str, Any]:
    call = {"id": "call_1", "type": "function", "function": {"name": name, "arguments": '{"city": "Ulm"}'}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def _text_of(body: dict[str, Any]) -> str:
    try:
        return json.dumps(_by_schema(body["response_format"]["json_schema"]["schema"]))
    except (KeyError, TypeError, AttributeError, RecursionError):
        pass
    try:
        content = body["messages"][-1]["content"]
        return (content if isinstance(content, str) else content[0]["text"]).upper()
    except (KeyError, TypeError, AttributeError, IndexError):
        return "WHAT?"


def _by_schema(schema: dict[str, Any]) -> Any:
    """The plainest value that a schema of objects and simple fields allows."""
    if "enum" in schema:
        return schema["enum"][0]
    if schema["type"] == "object":
        return {name: _by_schema(field) for name, field in schema["properties"].items()}
    return [_by_schema(schema["items"])] if schema["type"] == "array" else SAMPLES[schema["type"]]


def _chunks(body: dict[str, Any], message: dict[str, Any], finish: str) -> list[dict[str, Any]]:
    """The chunks that say `message`, in two halves."""
    head = _head("chat.completion.chunk", body)
    options = body.get("stream_options")
    with_usage = isinstance(options, dict) and bool(options.get("include_usage"))
    text = message["content"]
    parts: list[dict[str, Any]] = (
        [{"content": text[: len(text) // 2]}, {"content": text[len(text) // 2 :]}] if text else []
    )
    for number, call in enumerate(message.get("tool_calls", ())):
        parts.append({"tool_calls": [{"index": number, **call}]})
    deltas: list[tuple[dict[str, Any], str | None]] = [
        ({"role": "assistant", "content": None if not text else ""}, None)
    ]
    deltas += [(part, None) for part in parts] + [({}, finish)]
    chunks = [head | {"choices": [{"index": 0, "delta": delta, "finish_reason": end}]} for delta, end in deltas]
    if with_usage:
        chunks = [chunk | {"usage": None} for chunk in chunks] + [head | {"choices": [], "usage": USAGE}]
    return chunks


def _events(chunks: list[dict[str, Any]]) -> Response:
    async def events() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield b"data: " + json.dumps(chunk).encode() + b"\n\n"
        yield b"data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


def _response(body: dict[str, Any]) -> dict[str, Any]:
    said = {"type": "output_text", "text": str(body.get("input", "")).upper(), "annotations": []}
    message = {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": [said]}
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "status": "completed",
        "model": body.get("model"),
        "output": [message],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": 9,
            "output_tokens": 4,
            "total_tokens": 13,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
        },
    }


async def _response_events(whole: dict[str, Any]) -> AsyncIterator[bytes]:
    text = whole["output"][0]["content"][0]["text"]
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    started = whole | {"status": "in_progress", "output": [], "usage": None}
    item = whole["output"][0] | {"status": "in_progress", "content": []}
    part = {"type": "output_text", "text": "", "annotations": []}
    for number, event in enumerate(
        (
            {"type": "response.created", "response": started},
            {"type": "response.output_item.added", "output_index": 0, "item": item},
            {"type": "response.content_part.added", **place, "part": part},
            {"type": "response.output_text.delta", **place, "delta": text, "logprobs": []},
            {"type": "response.output_text.done", **place, "text": text, "logprobs": []},
            {"type": "response.completed", "response": whole},
        )
    ):
        numbered = json.dumps(event | {"sequence_number": number})
        yield f"event: {event['type']}\ndata: {numbered}\n\n".encode()
