"""Traces of a whole node: in the SDK's memory, and sent to a real OTLP receiver over HTTP."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from bench.stand_in import stand_in
from instrumented import ALWAYS, body, put_expert_in_place, staged
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

import experts as sample
from puhui.gateway.tracing import Tracing
from puhui.store.database import Store
from serving import BigModel, serving, wait_until

CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
NOWHERE = "http://127.0.0.1:9/v1"


@pytest.fixture
def memory() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(memory: InMemorySpanExporter) -> Tracing:
    return Tracing(processor=SimpleSpanProcessor(memory))


def by_name(memory: InMemorySpanExporter, count: int) -> dict[str, ReadableSpan]:
    wait_until(lambda: len(memory.get_finished_spans()) >= count)
    spans: Sequence[ReadableSpan] = memory.get_finished_spans()
    assert len(spans) == count, [span.name for span in spans]
    return {span.name: span for span in spans}


def trace_of(span: ReadableSpan) -> str:
    return f"{span.get_span_context().trace_id:032x}"


def id_of(span: ReadableSpan) -> str:
    return f"{span.get_span_context().span_id:016x}"


def parent_of(span: ReadableSpan) -> str | None:
    return None if span.parent is None else f"{span.parent.span_id:016x}"


def test_the_callers_trace_goes_on_to_the_big_model(
    store: Store, big: BigModel, tmp_path: Path, tracing: Tracing, memory: InMemorySpanExporter
) -> None:
    headers = {"traceparent": CALLER, "tracestate": "vendor=1"}
    with staged(store, tmp_path, big.url, tracing=tracing) as stage:
        reply = stage.ask("hello", headers=headers, temperature=0.5, max_tokens=7, seed=3, n=1, top_p="odd")
        spans = by_name(memory, 2)
    server, client = spans["POST /v1/chat/completions"], spans["chat m"]
    assert (server.kind, client.kind) == (SpanKind.SERVER, SpanKind.CLIENT)
    assert trace_of(server) == trace_of(client) == CALLER.split("-")[1]
    assert (parent_of(server), parent_of(client)) == (CALLER.split("-")[2], id_of(server))
    (sent,) = big.headers
    assert sent["traceparent"] == f"00-{trace_of(client)}-{id_of(client)}-01"
    assert sent["tracestate"] == "vendor=1"
    assert server.attributes is not None
    assert (
        server.attributes.items()
        >= {
            "http.request.method": "POST",
            "http.route": "/v1/chat/completions",
            "url.path": "/v1/chat/completions",
            "http.response.status_code": 200,
            "puhui.by": "big:m",
            "puhui.request_id": reply.headers["x-request-id"],
        }.items()
    )
    assert client.attributes is not None
    assert (
        client.attributes.items()
        >= {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": "m",
            "gen_ai.response.model": "big-1",
            "gen_ai.request.temperature": 0.5,
            "gen_ai.request.max_tokens": 7,
            "gen_ai.request.seed": 3,
            "gen_ai.usage.input_tokens": 11,
            "gen_ai.usage.output_tokens": 3,
            "gen_ai.response.finish_reasons": ("stop",),
            "server.address": "127.0.0.1",
        }.items()
    )
    assert not {"gen_ai.request.top_p", "gen_ai.request.choice.count", "error.type"} & client.attributes.keys()
    assert client.resource.attributes["service.name"] == "puhui"


def test_an_expert_and_its_audit(
    store: Store, big: BigModel, tmp_path: Path, tracing: Tracing, memory: InMemorySpanExporter
) -> None:
    expert = put_expert_in_place(store, tmp_path)
    big.rule = sample.subject_of
    with staged(store, tmp_path, big.url, tracing=tracing, audit_rate=ALWAYS) as stage:
        reply = stage.ask(sample.questions(1)[0])
        assert reply.headers["x-puhui-by"].startswith("expert:")
        wait_until(lambda: not stage.node.audits_due)
        spans = by_name(memory, 3)
    server, asked, audit = (
        spans[name] for name in ("POST /v1/chat/completions", f"chat expert:{expert[:12]}", "chat m")
    )
    assert parent_of(server) is None
    assert (asked.kind, parent_of(asked), trace_of(asked)) == (SpanKind.INTERNAL, id_of(server), trace_of(server))
    assert asked.attributes is not None
    assert asked.attributes.items() >= {"gen_ai.provider.name": "puhui", "puhui.taken": True}.items()
    assert 0.5 < asked.attributes["puhui.confidence"] <= 1  # type: ignore[operator]
    assert server.start_time <= asked.start_time <= asked.end_time <= server.end_time  # type: ignore[operator]
    assert parent_of(audit) is None
    assert trace_of(audit) != trace_of(server)
    (link,) = audit.links
    assert f"{link.context.span_id:016x}" == id_of(server)
    assert audit.attributes is not None
    assert audit.attributes["puhui.audit"] is True
    assert audit.attributes["puhui.request_id"] == reply.headers["x-request-id"]


def test_a_stream(store: Store, big: BigModel, tmp_path: Path, tracing: Tracing, memory: InMemorySpanExporter) -> None:
    with staged(store, tmp_path, big.url, tracing=tracing) as stage:
        stage.ask("hello", stream=True)
        client = by_name(memory, 2)["chat m"]
    assert client.attributes is not None
    assert client.attributes["gen_ai.request.stream"] is True
    assert client.attributes["gen_ai.usage.output_tokens"] == 3
    assert 0 < client.attributes["gen_ai.response.time_to_first_chunk"] < 10  # type: ignore[operator]
    assert client.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize(
    ("path", "name", "body_", "tokens"),
    [
        ("embeddings", "embeddings", {"input": ["a xylophone"]}, 8),
        ("completions", "text_completion", {"prompt": "a xylophone"}, 11),
        ("completions", "text_completion", {"prompt": "a xylophone", "stream": True}, None),
        ("responses", "chat", {"input": "a xylophone"}, 9),
    ],
)
def test_what_is_passed_on_has_a_span_of_its_own(
    store: Store,
    tmp_path: Path,
    tracing: Tracing,
    memory: InMemorySpanExporter,
    path: str,
    name: str,
    body_: dict[str, Any],
    tokens: int | None,
) -> None:
    seen: list[dict[str, Any]] = []
    with stand_in(seen) as url, staged(store, tmp_path, url, tracing=tracing) as stage:
        reply = stage.http.post(f"/v1/{path}", json={"model": "gpt-4o"} | body_, headers={"traceparent": CALLER})
        assert reply.status_code == 200
        assert stage.http.get("/v1/models").status_code == 200
        spans = by_name(memory, 3)  # the list of models is nobody's answer
        client = spans[f"{name} gpt-4o"]
    assert client.kind is SpanKind.CLIENT
    assert parent_of(client) == id_of(spans[f"POST /v1/{path}"])
    assert seen[0]["headers"]["traceparent"] == f"00-{trace_of(client)}-{id_of(client)}-01"
    assert client.attributes is not None
    assert client.attributes["gen_ai.operation.name"] == name
    assert client.attributes["gen_ai.response.model"] == "gpt-4o"
    assert client.attributes["server.address"] == "127.0.0.1"
    assert client.attributes.get("gen_ai.usage.input_tokens") == tokens
    assert not any("xylophone" in span.to_json() for span in spans.values())


def test_what_is_passed_on_and_fails_says_of_what_kind(
    store: Store, tmp_path: Path, tracing: Tracing, memory: InMemorySpanExporter
) -> None:
    with staged(store, tmp_path, NOWHERE, tracing=tracing) as stage:
        stage.http.post("/v1/embeddings", json={"model": "m", "input": "x"})
        spans = by_name(memory, 2)
    assert spans["embeddings m"].attributes["error.type"] == "UpstreamUnavailable"  # type: ignore[index]


def test_failures_say_of_what_kind_and_no_more(
    store: Store, big: BigModel, tmp_path: Path, tracing: Tracing, memory: InMemorySpanExporter
) -> None:
    big.refuse = 429
    with staged(store, tmp_path, big.url, tracing=tracing) as stage:
        stage.ask("a xylophone", model="m")
        spans = by_name(memory, 2)
    assert spans["chat m"].attributes["error.type"] == "429"  # type: ignore[index]
    assert spans["chat m"].status.status_code is StatusCode.ERROR
    assert spans["POST /v1/chat/completions"].status.status_code is StatusCode.UNSET  # the caller's affair
    assert not any("xylophone" in span.to_json() for span in spans.values())
    memory = InMemorySpanExporter()
    with staged(store, tmp_path, NOWHERE, tracing=Tracing(processor=SimpleSpanProcessor(memory))) as stage:
        stage.ask("a xylophone", model="m")
        spans = by_name(memory, 2)
    assert spans["chat m"].attributes["error.type"] == "UpstreamUnavailable"  # type: ignore[index]
    assert spans["POST /v1/chat/completions"].attributes["error.type"] == "503"  # type: ignore[index]
    assert not any("xylophone" in span.to_json() for span in spans.values())


def test_no_span_holds_a_prompt_or_an_unknown_path(
    store: Store, big: BigModel, tmp_path: Path, tracing: Tracing, memory: InMemorySpanExporter
) -> None:
    put_expert_in_place(store, tmp_path)
    with staged(store, tmp_path, big.url, tracing=tracing) as stage:
        stage.ask("a xylophone", headers={"x-note": "xylophone"}, stop=["xylophone"], user="xylophone")
        stage.http.get("/xylophone?key=xylophone")
        wait_until(lambda: len(memory.get_finished_spans()) == 3)
    for span in memory.get_finished_spans():
        assert "xylophone" not in span.to_json().lower()
        assert sample.SYSTEM[:20] not in span.to_json()


@pytest.mark.parametrize(
    "odd", ["", "x", "00-0-0-0", f"{CALLER}-more", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "\xff"]
)
def test_a_traceparent_that_is_none_begins_a_new_trace(
    store: Store, big: BigModel, tmp_path: Path, tracing: Tracing, memory: InMemorySpanExporter, odd: str
) -> None:
    with staged(store, tmp_path, big.url, tracing=tracing) as stage:
        headers = [(b"traceparent", odd.encode("latin-1"))]
        assert stage.http.post("/v1/chat/completions", json=body("hello"), headers=headers).status_code == 200
        spans = by_name(memory, 2)
    assert parent_of(spans["POST /v1/chat/completions"]) is None


class Collector:
    """An OTLP receiver, as the specification has it: protobuf over HTTP at /v1/traces."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.resources: list[Any] = []
        self.app = Starlette(routes=[Route("/v1/traces", self._take, methods=["POST"])])

    async def _take(self, http: HttpRequest) -> Response:
        content = await http.body()
        if http.headers.get("content-encoding") == "gzip":
            content = gzip.decompress(content)
        assert http.headers["content-type"] == "application/x-protobuf"
        for resource in ExportTraceServiceRequest.FromString(content).resource_spans:
            self.resources.append({each.key: each.value.string_value for each in resource.resource.attributes})
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]
        return Response(b"", media_type="application/x-protobuf")


def test_spans_reach_a_collector_when_the_node_ends(store: Store, big: BigModel, tmp_path: Path) -> None:
    collector = Collector()
    with serving(collector.app) as place:
        with staged(store, tmp_path, big.url, otlp_endpoint=f"{place}/") as stage:
            for number in range(5):
                assert stage.ask(f"hello {number}").status_code == 200
        wait_until(lambda: len(collector.spans) == 10)
    assert {span.name for span in collector.spans} == {"POST /v1/chat/completions", "chat m"}
    assert {resource["service.name"] for resource in collector.resources} == {"puhui"}
    assert len({span.trace_id for span in collector.spans}) == 5


def test_a_collector_that_is_away_fails_no_request(
    store: Store, big: BigModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with staged(store, tmp_path, big.url, otlp_endpoint="http://127.0.0.1:9") as stage:
        assert stage.ask("hello").status_code == 200


def test_without_an_endpoint_nothing_is_traced_and_headers_pass(store: Store, big: BigModel, tmp_path: Path) -> None:
    with staged(store, tmp_path, big.url) as stage:
        stage.ask("hello", headers={"traceparent": CALLER})
    assert big.headers[0]["traceparent"] == CALLER


@pytest.mark.parametrize(
    ("url", "provider"),
    [
        ("https://api.openai.com/v1", "openai"),
        ("https://me.openai.azure.com/openai/v1", "azure.ai.openai"),
        ("https://api.deepseek.com", "deepseek"),
        ("http://10.0.0.7:8000/v1", "openai"),
    ],
)
async def test_providers_have_their_conventional_names(
    url: str, provider: str, tracing: Tracing, memory: InMemorySpanExporter
) -> None:
    from puhui.core.answer import Answer
    from puhui.core.request import Request

    async def answer(request: Request) -> Answer:
        return Answer(by="big:m", text="x")

    await tracing.around_big(answer, url)(Request(id="r", model="m", messages=(), body=b"{}"))
    (span,) = memory.get_finished_spans()
    assert span.attributes is not None
    assert span.attributes["gen_ai.provider.name"] == provider
    assert span.attributes["server.port"] in (443, 8000)
