"""OpenAI's chat-completion requests into ours, and our answers into its replies and streams."""

from __future__ import annotations

import json
import string
import time
import urllib.parse
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, TypeAlias

import msgspec

from puhui.core.answer import Answer
from puhui.core.errors import InvalidRequest
from puhui.core.request import Caller, Message, Request
from puhui.core.request_ids import current_id
from puhui.gateway.needs import FIELD, headers_to_pass_on, read_caller, read_needs, read_said
from puhui.models.wire import DONE, NOT_JSON, event_data

# Fields that never change what the answer says.
_NEUTRAL = frozenset(
    {
        "model",
        "messages",
        "stream",
        "stream_options",
        "metadata",
        "user",
        "seed",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "parallel_tool_calls",
        FIELD,
    }
)
# Fields with which an answer is more than one text, and values of them with which it is not.
_MORE_THAN_TEXT: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none",),
    "function_call": ("none",),
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
}

LONGEST_MODEL_NAME = 200  # what the ledger's columns hold, "big:" before it
HEADER_SAFE = "".join(set(string.punctuation) - {"%"}) + " "

_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_messages = msgspec.json.Decoder(tuple[Message, ...]).decode
_decode_text = msgspec.json.Decoder(str).decode
_decode_flag = msgspec.json.Decoder(bool | None).decode
_decode_metadata = msgspec.json.Decoder(dict[str, Any] | None).decode


Fields: TypeAlias = dict[str, msgspec.Raw]


def read_request(body: bytes, headers: Mapping[str, str], caller: Caller = Caller()) -> Request:
    """The chat request that an HTTP body and its headers make. Raises `InvalidRequest` that names the field."""
    fields = read_fields(body, "model", "messages")
    messages = _field(fields, "messages", _decode_messages)
    if not messages:
        raise InvalidRequest("'messages' is empty; it needs at least one message", param="messages")
    more = sorted(fields.keys() - _NEUTRAL)
    return request_of(
        body,
        fields,
        headers,
        caller,
        messages=messages,
        task=_task(fields),
        plain=all(_is_plain(name, fields[name]) for name in more if name in _MORE_THAN_TEXT),
        settings=_settings(fields, more) if more else "",
    )


def read_fields(body: bytes, *needed: str) -> Fields:
    """The body's fields, not decoded any further. Raises `InvalidRequest` for no JSON object, or without `needed`."""
    try:
        body.decode()  # also what is not read here, but passed on and kept
        fields = _decode_fields(body)
    except NOT_JSON as error:
        raise InvalidRequest(f"the body is not a JSON object: {error}") from error
    for name in needed:
        if name not in fields:
            raise InvalidRequest(f"the field {name!r} is missing", param=name)
    return fields


def request_of(body: bytes, fields: Fields, headers: Mapping[str, str], caller: Caller, **more: Any) -> Request:
    """A request with what every body has: model, `stream`, and what is said to Puhui, which goes no further."""
    model = _field(fields, "model", _decode_text)
    if len(model) > LONGEST_MODEL_NAME:
        raise InvalidRequest(
            f"'model' has {len(model)} characters; a name has at most {LONGEST_MODEL_NAME}", param="model"
        )
    caller.check_model(model)
    said = read_said(fields.get(FIELD))
    if bytes(fields.get("store", b"")) == b"false":  # OpenAI's way of asking that nothing is kept
        said = msgspec.structs.replace(said, keep="nothing")
    if FIELD in fields:
        body = msgspec.json.encode({name: value for name, value in fields.items() if name != FIELD})
    return Request(
        id=current_id(),
        model=model,
        body=body,
        stream=bool(_field(fields, "stream", _decode_flag)) if "stream" in fields else False,
        needs=read_needs(headers, said),
        caller=read_caller(caller, headers, said),
        authorization=headers.get("authorization"),
        headers=headers_to_pass_on(headers),
        **more,
    )


def _field(fields: Mapping[str, msgspec.Raw], name: str, decode: Any) -> Any:
    try:
        return decode(fields[name])
    except NOT_JSON as error:
        raise InvalidRequest(f"the field {name!r} is not usable: {error}", param=name) from error


def _is_plain(name: str, raw: msgspec.Raw) -> bool:
    try:
        value = msgspec.json.decode(raw)
    except NOT_JSON as error:
        raise InvalidRequest(f"the field {name!r} is not usable: {error}", param=name) from error
    return value is None or value in _MORE_THAN_TEXT[name]


def _settings(fields: Mapping[str, msgspec.Raw], names: Sequence[str]) -> str:
    try:
        return json.dumps([(name, msgspec.json.decode(fields[name])) for name in names], sort_keys=True)
    except NOT_JSON as error:
        raise InvalidRequest(f"the body is not usable: {error}") from error


def _task(fields: Mapping[str, msgspec.Raw]) -> str | None:
    if "metadata" not in fields:
        return None
    metadata = _field(fields, "metadata", _decode_metadata) or {}
    task = metadata.get("task")
    if task is None:
        return None
    if not isinstance(task, str) or not 0 < len(task) <= 128:
        raise InvalidRequest("'metadata.task' must be a name of 1 to 128 characters", param="metadata.task")
    return task


def report(request: Request, answer: Answer) -> dict[str, Any]:
    """The `puhui` object of a reply: who answered, how sure, by which path, at what cost."""
    usage, energy = answer.usage, answer.usage.energy
    return {
        "id": request.id,
        "by": answer.by,
        "confidence": answer.confidence,
        "path": [{"name": step.name, "confidence": step.confidence, "taken": step.taken} for step in answer.path],
        "energy": {
            "joules": energy.joules,
            "low": energy.low,
            "high": energy.high,
            "source": "measured" if energy.measured else "estimated",
        },
        "co2_g": usage.co2_g,
        "cost": usage.cost,
        "cpu_ms": usage.cpu_seconds * 1000.0,
        "ms": usage.seconds * 1000.0,
    }


def headers_of(request: Request, answer: Answer) -> dict[str, str]:
    """The same in short, as headers; a stream's cost is not known yet when they leave.

    What a header cannot carry is percent-encoded.
    """
    headers = dict(answer.headers)
    headers["x-request-id"] = request.id
    headers["x-puhui-by"] = urllib.parse.quote(answer.by, safe=HEADER_SAFE)
    if answer.confidence is not None:
        headers["x-puhui-confidence"] = f"{answer.confidence:.4f}"
    if answer.pieces is None:
        energy = answer.usage.energy
        source = "measured" if energy.measured else "estimated"
        headers["x-puhui-energy"] = f"{energy.joules:.4g} J ({energy.low:.4g}-{energy.high:.4g}, {source})"
        headers["x-puhui-co2"] = f"{answer.usage.co2_g:.4g} g"
        headers["x-puhui-cost"] = f"{answer.usage.cost:.4g}"
    return headers


def whole_reply(request: Request, answer: Answer) -> bytes:
    """A chat completion: the upstream's own with the `puhui` object added, or one made from the text."""
    if answer.body is not None:
        reply: dict[str, Any] = dict(_decode_fields(answer.body))
        reply["puhui"] = report(request, answer)
        return msgspec.json.encode(reply)
    return msgspec.json.encode(
        {
            "id": f"chatcmpl-{request.id}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": request.model,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": answer.text, "refusal": None},
                    "logprobs": _logprobs(answer),
                    "finish_reason": answer.finish,
                }
            ],
            "usage": _tokens(answer),
            "puhui": report(request, answer),
        }
    )


def _tokens(answer: Answer) -> dict[str, int]:
    """Tokens of a big model. An expert reads and writes none, so with its answers they are 0: nothing is made up."""
    usage = answer.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _logprobs(answer: Answer) -> dict[str, Any] | None:
    if not answer.alternatives:
        return None
    tokens = [{"token": token, "logprob": value, "bytes": None} for token, value in answer.alternatives]
    return {"content": [{**tokens[0], "top_logprobs": tokens}], "refusal": None}


async def text_as_stream(request: Request, answer: Answer) -> AsyncIterator[bytes]:
    """The events of a streamed chat completion whose text is there already, with one for usage if asked for."""
    head: dict[str, Any] = {
        "id": f"chatcmpl-{request.id}",
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": request.model,
    }
    with_usage = _wants_usage(request.body)
    if with_usage:
        head["usage"] = None
    delta: dict[str, Any] = {"role": "assistant", "content": answer.text}
    yield _event(head | {"choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}]})
    yield _event(head | {"choices": [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": answer.finish}]})
    if with_usage:
        yield _event(head | {"choices": [], "usage": _tokens(answer)})
    yield DONE


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Streamed(msgspec.Struct):
    stream_options: _StreamOptions | None = None


_decode_streamed = msgspec.json.Decoder(_Streamed).decode


def _wants_usage(body: bytes) -> bool:
    try:
        options = _decode_streamed(body).stream_options
    except NOT_JSON:  # options that nobody understands: the answer is no worse without
        return False
    return options is not None and bool(options.include_usage)


async def with_report(request: Request, answer: Answer, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same events; the last one before the end carries the `puhui` object.

    Only events that may be the last (with a `finish_reason`, or without choices) are held until the next one
    is there, so that text reaches the reader as it comes.
    """
    held: bytes | None = None
    async for piece in pieces:
        if held is not None and event_data(piece):
            yield _add_report(held, request, answer) if piece == DONE else held
            held = None
        if piece != DONE and _may_be_last(piece):
            held = piece
        else:
            yield piece
    if held is not None:
        yield held


def error_event(error: dict[str, Any]) -> bytes:
    """What a stream ends with when it cannot go on."""
    return _event(error)


def _may_be_last(piece: bytes) -> bool:
    if not event_data(piece):  # a comment, to keep the connection alive
        return False
    return b'"finish_reason"' not in piece or b'"finish_reason":null' not in piece.replace(b": ", b":")


def _add_report(piece: bytes, request: Request, answer: Answer) -> bytes:
    try:
        fields: dict[str, Any] = dict(_decode_fields(event_data(piece)))
    except msgspec.DecodeError:
        return piece
    return _event(fields | {"puhui": report(request, answer)})


def _event(fields: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(fields) + b"\n\n"
