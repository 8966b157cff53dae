"""Traces by OpenTelemetry (extra `traces`): a span for each HTTP request, and below it who was asked.

    POST /v1/chat/completions        the request, as the HTTP conventions have it; parent: the caller's `traceparent`
    ├── chat expert:1a2b3c4d5e6f     INTERNAL: the expert, how sure it was and whether its answer was taken
    └── chat gpt-4o                  CLIENT: the big model, retries included; its span is the parent of what it does
    chat gpt-4o                      an audit: a trace of its own, linked to the request that is audited
    POST /v1/embeddings
    └── embeddings bge-m3            CLIENT: what is passed on; also `text_completion` and, for responses, `chat`

Attributes follow OpenTelemetry's semantic conventions for generative AI (github.com/open-telemetry/
semantic-conventions-genai, of 2026, status "development") and for HTTP (stable). What they have no name for is called
`puhui.…`. Prompts, answers, messages of errors, headers and query strings are in no span, whatever is set.

The SDK reads its own environment: OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_HEADERS and so on.
"""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any
from urllib.parse import urlsplit

import msgspec
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from puhui.core.answer import Answer, Answerer, Usage
from puhui.core.errors import MissingExtra, UpstreamRefused
from puhui.core.request import Request
from puhui.gateway.access_log import NO_ROUTE, Routes
from puhui.models.endpoint import Forwarded
from puhui.models.wire import DONE, NOT_JSON, Completion, decode_completion
from puhui.node.forwarding import Forward, usage_in

try:
    from opentelemetry import context as active
    from opentelemetry import trace
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as error:
    raise MissingExtra("tracing", "traces") from error

_CARRIED = (b"traceparent", b"tracestate")
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"))
_PROVIDERS = {
    "api.anthropic.com": "anthropic",
    "api.cohere.ai": "cohere",
    "api.cohere.com": "cohere",
    "api.deepseek.com": "deepseek",
    "api.groq.com": "groq",
    "api.mistral.ai": "mistral_ai",
    "api.moonshot.cn": "moonshot_ai",
    "api.moonshot.ai": "moonshot_ai",
    "api.perplexity.ai": "perplexity",
    "api.x.ai": "x_ai",
    "generativelanguage.googleapis.com": "gcp.gemini",
    "aiplatform.googleapis.com": "gcp.vertex_ai",
}
"""Hosts whose provider has a name in the conventions. Others speak OpenAI's format, so they count as that."""
_OPERATIONS = {"/embeddings": "embeddings", "/completions": "text_completion", "/responses": "chat"}


class Tracing:
    """Spans of one node, given to `processor` (None: sent to the OTLP endpoint at `endpoint`, in batches).

    `endpoint` is the collector's base URL, such as http://localhost:4318.
    """

    def __init__(self, endpoint: str | None = None, *, processor: SpanProcessor | None = None) -> None:
        version = importlib.metadata.version("puhui")
        resource = Resource.create({"service.version": version})
        if str(resource.attributes["service.name"]).startswith("unknown_service"):  # OTEL_SERVICE_NAME names none
            resource = resource.merge(Resource({"service.name": "puhui"}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor if processor is not None else _exporting(endpoint))
        self._tracer = self._provider.get_tracer("puhui", version)

    def close(self) -> None:
        """Sends what has not been sent (blocking)."""
        self._provider.shutdown()

    @property
    def tracer(self) -> trace.Tracer:
        """What makes spans."""
        return self._tracer

    def around_node(self, node: Answerer) -> Answerer:
        """The node, with a span for each expert that was asked."""
        tracer = self._tracer

        async def answer_traced(request: Request) -> Answer:
            span = trace.get_current_span()
            if not span.is_recording():
                return await node(request)
            started = time.time_ns()
            answer = await node(request)
            _note_experts(tracer, request, answer, started)
            span.set_attributes({"puhui.by": answer.by, "puhui.request_id": request.id})
            return answer

        return answer_traced

    def around_big(self, big: Answerer, url: str | None = None) -> Answerer:
        """The big model, with a span for each question; `url` is where it is, if it is in one place."""
        return TracedBigModel(big, self._tracer, url)

    def around_forward(self, forward: Forward, url: str | None = None) -> Forward:
        """What passes other requests on, with a span for each."""
        return TracedForward(forward, self._tracer, url)


class TraceLayer:
    """Makes a SERVER span of each HTTP request; continues the caller's trace."""

    def __init__(self, app: ASGIApp, *, tracer: trace.Tracer, routes: Iterable[BaseRoute]) -> None:
        self._app = app
        self._tracer = tracer
        self._routes = Routes(routes)
        self._propagator = TraceContextTextMapPropagator()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        route = self._routes.find(scope["path"])
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        span = self._tracer.start_span(
            method if route == NO_ROUTE else f"{method} {route}",
            context=self._propagator.extract(_carrier(scope["headers"]), context=active.Context()),
            kind=SpanKind.SERVER,
            attributes=_of_request(scope, method, route),
        )

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                status = message["status"]
                span.set_attribute("http.response.status_code", status)
                if status >= 500:
                    _fail(span, str(status))
            await send(message)

        # What is behind continues this trace: upstreams, and audits, which have nothing but the request's headers.
        others = [header for header in scope["headers"] if header[0] not in _CARRIED]
        scope["headers"] = [*others, *((name.encode(), value.encode()) for name, value in _carried(span).items())]
        token = active.attach(trace.set_span_in_context(span, active.Context()))
        try:
            await self._app(scope, receive, sent)
        except Exception as error:
            _fail(span, type(error).__name__)
            raise
        finally:
            active.detach(token)
            span.end()


class TracedBigModel:
    """An answerer around another one: a CLIENT span of each question, its context passed on in `traceparent`."""

    def __init__(self, big: Answerer, tracer: trace.Tracer, url: str | None) -> None:
        self._big = big
        self._tracer = tracer
        self._place = _place(url)
        self._propagator = TraceContextTextMapPropagator()

    async def __call__(self, request: Request) -> Answer:
        """The big model's answer; the span of a stream ends with it."""
        parent = trace.get_current_span().get_span_context()
        links = []
        if not parent.is_valid:  # nobody waits for it: an audit
            asked_by = self._propagator.extract(dict(request.headers), context=active.Context())
            origin = trace.get_current_span(asked_by).get_span_context()
            links = [Link(origin, {"puhui.audit_of": request.id})] if origin.is_valid else []
        span = self._tracer.start_span(
            f"chat {request.model}", kind=SpanKind.CLIENT, links=links, attributes=self._place | _asked(request)
        )
        if not parent.is_valid:
            span.set_attributes({"puhui.audit": True, "puhui.request_id": request.id})
        started = time.perf_counter()
        passed_on = msgspec.structs.replace(request, headers=_carrying(request, span))
        try:
            answer = await self._big(passed_on)
        except BaseException as error:
            _end_failed(span, error)
            raise
        if answer.pieces is None:
            _answered(span, answer)
            span.end()
        else:
            answer.pieces = _streamed(span, answer.pieces, started, lambda: _answered(span, answer))
        return answer


class TracedForward:
    """What passes requests on, around another one: a CLIENT span of each, its context passed on in `traceparent`."""

    def __init__(self, forward: Forward, tracer: trace.Tracer, url: str | None) -> None:
        self._forward = forward
        self._tracer = tracer
        self._place = _place(url)

    async def __call__(self, path: str, request: Request) -> Forwarded:
        """The upstream's reply; the span of a stream ends with it. A look at a list (no body) has none."""
        if not request.body:
            return await self._forward(path, request)
        operation = _OPERATIONS.get(path, path.strip("/"))
        asked = self._place | _asked(request) | {"gen_ai.operation.name": operation}
        span = self._tracer.start_span(f"{operation} {request.model}", kind=SpanKind.CLIENT, attributes=asked)
        started = time.perf_counter()
        try:
            reply = await self._forward(path, msgspec.structs.replace(request, headers=_carrying(request, span)))
        except BaseException as error:
            _end_failed(span, error)
            raise
        span.set_attribute("gen_ai.response.model", reply.by.partition(":")[2])
        if reply.pieces is None:
            if span.is_recording():
                _note_tokens(span, usage_in(reply.body or b"", 0.0))
            span.end()
        else:
            reply.pieces = _streamed(span, reply.pieces, started, lambda: None)
        return reply


async def _streamed(
    span: Span, pieces: AsyncIterator[bytes], started: float, note_answer: Callable[[], None]
) -> AsyncIterator[bytes]:
    ended = False
    first = True
    try:
        async for piece in pieces:
            if first:
                span.set_attribute("gen_ai.response.time_to_first_chunk", time.perf_counter() - started)
                first = False
            if piece == DONE:  # the answer has its usage now, and the node may not ask for more
                note_answer()
                span.end()
                ended = True
            yield piece
    except BaseException as error:
        if not ended:
            _end_failed(span, error)
            ended = True
        raise
    finally:
        if not ended:
            span.end()


def _note_experts(tracer: trace.Tracer, request: Request, answer: Answer, started: int) -> None:
    """Spans of the experts on the answer's path. They take microseconds, so their times are made out afterwards."""
    for step in answer.path:
        if not step.name.startswith("expert:"):
            continue
        ended = started + int(answer.usage.seconds * 1e9) if step.taken else started
        span = tracer.start_span(
            f"chat {step.name}",
            start_time=started,
            attributes={
                "gen_ai.operation.name": "chat",
                "gen_ai.provider.name": "puhui",
                "gen_ai.request.model": request.model,
                "gen_ai.response.model": step.name,
                "puhui.taken": step.taken,
            },
        )
        if step.confidence is not None:
            span.set_attribute("puhui.confidence", step.confidence)
        span.end(ended)


class _Asked(msgspec.Struct):
    """The request's fields that the conventions name. Whatever has another type is left to the big model."""

    n: Any = None
    seed: Any = None
    temperature: Any = None
    top_p: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None
    frequency_penalty: Any = None
    presence_penalty: Any = None


_decode_asked = msgspec.json.Decoder(_Asked).decode


def _asked(request: Request) -> dict[str, Any]:
    found: dict[str, Any] = {"gen_ai.operation.name": "chat", "gen_ai.request.model": request.model}
    if request.stream:
        found["gen_ai.request.stream"] = True
    try:
        asked = _decode_asked(request.body)
    except NOT_JSON:
        return found
    whole = {
        "choice.count": asked.n if asked.n != 1 else None,
        "seed": asked.seed,
        "max_tokens": asked.max_completion_tokens if asked.max_completion_tokens is not None else asked.max_tokens,
    }
    real = {
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "frequency_penalty": asked.frequency_penalty,
        "presence_penalty": asked.presence_penalty,
    }
    found |= {f"gen_ai.request.{name}": value for name, value in whole.items() if _is_count(value)}
    found |= {f"gen_ai.request.{name}": float(value) for name, value in real.items() if _is_number(value)}
    return found


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _is_number(value: object) -> bool:
    return isinstance(value, float) or _is_count(value)


def _answered(span: Span, answer: Answer) -> None:
    if not span.is_recording():
        return
    span.set_attribute("gen_ai.response.model", answer.by.partition(":")[2])
    _note_tokens(span, answer.usage)
    if answer.body is not None:
        try:
            completion: Completion = decode_completion(answer.body)
        except NOT_JSON:
            return
        if completion.model:
            span.set_attribute("gen_ai.response.model", completion.model)
        reasons = [choice.finish_reason for choice in completion.choices if choice.finish_reason]
        span.set_attribute("gen_ai.response.finish_reasons", reasons)


def _note_tokens(span: Span, usage: Usage) -> None:
    if usage.prompt_tokens or usage.completion_tokens:
        span.set_attribute("gen_ai.usage.input_tokens", usage.prompt_tokens)
        span.set_attribute("gen_ai.usage.output_tokens", usage.completion_tokens)


def _end_failed(span: Span, error: BaseException) -> None:
    """Ends a span that failed: with the class of the error, or the upstream's status, and no words of it."""
    if isinstance(error, UpstreamRefused):
        _fail(span, str(error.status))
    elif isinstance(error, Exception):
        _fail(span, type(error).__name__)
    else:  # cancelled, or a stream whose reader went away
        span.set_attribute("error.type", "cancelled")
    span.end()


def _fail(span: Span, kind: str) -> None:
    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR))


def _of_request(scope: Scope, method: str, route: str) -> dict[str, Any]:
    found: dict[str, Any] = {"http.request.method": method, "url.scheme": scope.get("scheme", "http")}
    if route != NO_ROUTE:  # an unknown path may be anything, even a secret
        found |= {"http.route": route, "url.path": scope["path"]}
    server = scope.get("server")
    if server and server[1] is not None:
        found |= {"server.address": server[0], "server.port": server[1]}
    exchange: str | None = scope.get("state", {}).get("request_id")
    return found | ({"puhui.request_id": exchange} if exchange else {})


def _carrier(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in headers if name in _CARRIED}


def _carrying(request: Request, span: Span) -> tuple[tuple[str, str], ...]:
    """The request's headers, with the span in place of whatever trace they named."""
    others = (header for header in request.headers if header[0] not in ("traceparent", "tracestate"))
    return (*others, *_carried(span).items())


def _carried(span: Span) -> dict[str, str]:
    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier, trace.set_span_in_context(span, active.Context()))
    return carrier


def _place(url: str | None) -> dict[str, Any]:
    if url is None:
        return {"gen_ai.provider.name": "openai"}
    parsed = urlsplit(url)
    host = parsed.hostname or ""
    provider = "azure.ai.openai" if host.endswith(".openai.azure.com") else _PROVIDERS.get(host, "openai")
    port = parsed.port or (443 if parsed.scheme == "https" else 80)
    return {"gen_ai.provider.name": provider, "server.address": host, "server.port": port}


def _exporting(endpoint: str | None) -> SpanProcessor:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise MissingExtra("sending traces", "traces") from error
    place = None if endpoint is None else f"{endpoint.rstrip('/')}/v1/traces"
    return BatchSpanProcessor(OTLPSpanExporter(endpoint=place))
