"""What the OpenAPI document says of each route, and the schemas that they share. Data alone.

A schema of a request names what is checked here and nothing else: other fields are the big model's business, so the
document promises neither that they are accepted nor that they are refused.
"""

from __future__ import annotations

from typing import Any

import msgspec

from puhui.gateway.chat import LONGEST_MODEL_NAME
from puhui.trust.api_keys import Rules

Piece = dict[str, Any]


def _ref(name: str) -> Piece:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(description: str, schema: Piece) -> Piece:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _body(name: str) -> Piece:
    return {"required": True, "content": {"application/json": {"schema": _ref(name)}}}


def _header(name: str, description: str, schema: Piece) -> Piece:
    return {"name": name, "in": "header", "required": False, "description": description, "schema": schema}


def _get(summary: str, reply: Piece, *, parameters: list[Piece] | None = None) -> Piece:
    found: Piece = {"summary": summary, "responses": {"200": reply}}
    return found | ({"parameters": parameters} if parameters else {})


ANY_OBJECT: Piece = {"type": "object"}
ERROR = _json("What went wrong, as OpenAI words it", _ref("Error"))
EVENTS: Piece = {
    "schema": {
        "description": "Each server-sent event",
        "type": "object",
        "required": ["data"],
        "properties": {"data": {"type": "string"}},
    }
}

_KEEP: Piece = {"enum": ["nothing", "redacted", "whole"]}
_PRIVACY: Piece = {"enum": ["device", "site", "any"]}
_SHARE: Piece = {"type": "number", "minimum": 0, "maximum": 1}
_AMOUNT: Piece = {"type": "number", "minimum": 0}
_OPEN_NUMBER: Piece = {"type": ["number", "null"]}


def _or_null(schema: Piece) -> Piece:
    return {"anyOf": [schema, {"type": "null"}]}


NEEDS_HEADERS = [
    _header("x-puhui-quality", "An expert may answer whose promised risk is at most 1 less this; at 1 none", _SHARE),
    _header("x-puhui-latency-ms", "The longest that the answer may take", _AMOUNT),
    _header("x-puhui-max-cost", "The most that it may cost, in the tariff's currency", _AMOUNT),
    _header("x-puhui-privacy", "How far the request may travel", _PRIVACY),
    _header("x-puhui-keep", "The most that may be kept of its text", _KEEP),
]
_MODEL: Piece = {"type": "string", "maxLength": LONGEST_MODEL_NAME}
_STREAM: Piece = {"type": ["boolean", "null"]}


def _rules() -> Piece:
    """What is checked is what is told: the type's own schema. In a change, null takes any rule away."""
    found: Piece = msgspec.json.schema(Rules)["$defs"]["Rules"]
    for name in ("scopes", "models"):
        found["properties"][name]["minItems"] = 1
    del found["properties"]["models"]["default"]  # an empty list means any, and may not be said
    for name, rule in found["properties"].items():
        if {"type": "null"} not in rule.get("anyOf", ()):
            found["properties"][name] = {"anyOf": [rule, {"type": "null"}]}
    return found | {"description": "What a key may do and spend. In a change, null takes a rule away."}


SCHEMAS: dict[str, Piece] = {
    "Error": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "properties": {
                    "message": {"type": ["string", "null"]},
                    "type": {"type": ["string", "null"]},
                    "param": {"type": ["string", "null"]},
                    "code": {"type": ["string", "integer", "null"]},
                },
            }
        },
    },
    "Needs": {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "quality": _or_null(_SHARE),
            "latency_ms": _or_null(_AMOUNT),
            "max_cost": _or_null(_AMOUNT),
            "privacy": _or_null(_PRIVACY),
        },
    },
    "Said": {
        "description": "What is said to Puhui; it goes no further. It counts before the headers of the same names.",
        "type": ["object", "null"],
        "additionalProperties": False,
        "properties": {"needs": _or_null(_ref("Needs")), "keep": _or_null(_KEEP)},
    },
    "Message": {
        "type": "object",
        "required": ["role"],
        "properties": {
            "role": {"type": "string"},
            "content": {
                "anyOf": [{"type": ["string", "null"]}, {"type": "array", "items": {"type": "object"}}],
            },
        },
    },
    "ChatRequest": {
        "type": "object",
        "required": ["model", "messages"],
        "properties": {
            "model": _MODEL,
            "messages": {"type": "array", "minItems": 1, "items": _ref("Message")},
            "stream": _STREAM,
            "metadata": {
                "type": ["object", "null"],
                "properties": {
                    "task": {
                        "description": "A name for the job: such requests are one task whatever their system prompt",
                        "type": ["string", "null"],
                        "minLength": 1,
                        "maxLength": 128,
                    }
                },
            },
            "puhui": _ref("Said"),
        },
    },
    "PassedOn": {
        "type": "object",
        "required": ["model"],
        "properties": {"model": _MODEL, "stream": _STREAM, "puhui": _ref("Said")},
    },
    "Report": {
        "description": "Who answered, how sure, by which path, and what it used.",
        "type": "object",
        "required": ["id", "by", "confidence", "path", "energy", "co2_g", "cost", "cpu_ms", "ms"],
        "properties": {
            "id": {"type": "string"},
            "by": {"type": "string", "description": "`expert:` and its id, or `big:` and the model"},
            "confidence": _or_null(_SHARE),
            "path": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["name", "confidence", "taken"],
                    "properties": {
                        "name": {"type": "string"},
                        "confidence": _OPEN_NUMBER,
                        "taken": {"type": "boolean"},
                    },
                },
            },
            "energy": {
                "type": "object",
                "required": ["joules", "low", "high", "source"],
                "properties": {
                    "joules": {"type": "number"},
                    "low": {"type": "number"},
                    "high": {"type": "number"},
                    "source": {"enum": ["measured", "estimated"]},
                },
            },
            "co2_g": {"type": "number"},
            "cost": {"type": "number"},
            "cpu_ms": {"type": "number"},
            "ms": {"type": "number"},
        },
    },
    "ChatCompletion": {
        "type": "object",
        "required": ["choices", "puhui"],
        "properties": {"choices": {"type": "array", "minItems": 1, "items": ANY_OBJECT}, "puhui": _ref("Report")},
    },
    "Model": {"type": "object", "required": ["id"], "properties": {"id": {"type": "string"}}},
    "Models": {
        "type": "object",
        "required": ["data"],
        "properties": {"data": {"type": "array", "items": _ref("Model")}},
    },
    "Rules": _rules(),
    "Key": {
        "type": "object",
        "required": ["id", "name", "state", "created", "expires", "revoked", "rules", "spent"],
        "properties": {
            "id": {"type": "string"},
            "name": {"type": "string"},
            "state": {"enum": ["active", "expired", "revoked"]},
            "rules": _ref("Rules"),
            "key": {"type": "string", "description": "In the reply that made it, and never again"},
        },
    },
    "WantedKey": {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 128},
            "expires": {"type": ["number", "null"], "exclusiveMinimum": 0, "exclusiveMaximum": 1e11},
            "rules": _ref("Rules"),
        },
    },
}


def _passed_on(summary: str) -> Piece:
    reply = {
        "description": "The upstream's own reply, as it came",
        "content": {"application/json": {"schema": ANY_OBJECT}, "text/event-stream": EVENTS},
    }
    return {
        "summary": summary,
        "parameters": NEEDS_HEADERS,
        "requestBody": _body("PassedOn"),
        "responses": {"200": reply},
    }


def _page(summary: str, kind: str = "text/html") -> Piece:
    return _get(summary, {"description": "The page", "content": {kind: {"schema": {"type": "string"}}}})


def _traces(summary: str) -> Piece:
    """One of four says what is meant, which OpenAPI has no word for but an object spread over the query."""
    names = ("key", "request", "task", "before")
    schema = {
        "type": "object",
        "properties": {name: {"type": "string"} for name in names} | {"now": {"type": "boolean"}},
        "oneOf": [{"required": [name]} for name in names],
        "additionalProperties": False,
    }
    spread = {"name": "of", "in": "query", "required": True, "style": "form", "explode": True, "schema": schema}
    return _get(
        summary, _json("Counts, and the experts that may have learned from it", ANY_OBJECT), parameters=[spread]
    )


_CHANGED = _json("Whether it is in place now", ANY_OBJECT)
_DECIMAL: Piece = {"type": "integer", "minimum": 1, "maximum": 200, "default": 50}
_PERIOD: Piece = {"enum": ["hour", "today", "week", "month", "all"], "default": "week"}

OPERATIONS: dict[tuple[str, str], Piece] = {
    ("POST", "/v1/chat/completions"): {
        "summary": "An expert's answer where it is proven to be sure enough, else the big model's",
        "parameters": NEEDS_HEADERS,
        "requestBody": _body("ChatRequest"),
        "responses": {
            "200": {
                "description": "The answer, whole or as server-sent events",
                "content": {
                    "application/json": {"schema": _ref("ChatCompletion")},
                    "text/event-stream": EVENTS,
                },
            }
        },
    },
    ("POST", "/v1/completions"): _passed_on("Legacy completions, passed on"),
    ("POST", "/v1/embeddings"): _passed_on("Embeddings, passed on"),
    ("POST", "/v1/responses"): _passed_on("Responses, passed on"),
    ("GET", "/v1/models"): _get("The models that a request may name", _json("A list", _ref("Models"))),
    ("GET", "/v1/models/{id}"): _get("One model", _json("The model", _ref("Model"))),
    ("GET", "/healthz"): _get("Whether the process lives", _json("It does", ANY_OBJECT)),
    ("GET", "/readyz"): {
        "summary": "Whether the node can serve",
        "responses": {"200": _json("It can", ANY_OBJECT), "503": _json("What keeps it", ANY_OBJECT)},
    },
    ("GET", "/metrics"): _get(
        "Numbers for Prometheus",
        {
            "description": "In the format that `accept` asks for",
            "content": {
                kind: {"schema": {"type": "string"}}
                for kind in ("text/plain", "application/openmetrics-text", "application/vnd.google.protobuf")
            },
        },
    ),
    ("GET", "/openapi.json"): _get("This document", _json("The document", ANY_OBJECT)),
    ("GET", "/puhui/state"): _get("The experts in place and the evidence against them", _json("State", ANY_OBJECT)),
    ("GET", "/puhui/v1/status"): _get("How the node is, in a few numbers", _json("Numbers", ANY_OBJECT)),
    ("GET", "/puhui/v1/bill"): _get(
        "The bill of a period",
        _json("The bill", ANY_OBJECT),
        parameters=[{"name": "period", "in": "query", "schema": _PERIOD}],
    ),
    ("GET", "/puhui/v1/experts"): _get("Each task with its experts and evidence", _json("Tasks", ANY_OBJECT)),
    ("GET", "/puhui/v1/experts/{expert}/disagreements"): _get(
        "Requests whose audit did not agree with the expert, the latest first",
        _json("Disagreements", ANY_OBJECT),
        parameters=[{"name": "limit", "in": "query", "schema": _DECIMAL}],
    ),
    ("POST", "/puhui/v1/experts/{expert}/promote"): {
        "summary": "Put an earlier expert back",
        "responses": {"200": _CHANGED, "409": _json("Why not", _ref("Error"))},
    },
    ("POST", "/puhui/v1/experts/{expert}/demote"): {
        "summary": "Take an expert out",
        "responses": {"200": _CHANGED, "409": _json("Why not", _ref("Error"))},
    },
    ("GET", "/puhui/v1/live"): _get(
        "Requests as they flow", {"description": "A stream without an end", "content": {"text/event-stream": EVENTS}}
    ),
    ("GET", "/puhui/v1/keys"): _get("All keys, and what each has spent", _json("A list", ANY_OBJECT)),
    ("POST", "/puhui/v1/keys"): {
        "summary": "A new key, shown in this reply and never again",
        "requestBody": _body("WantedKey"),
        "responses": {"201": _json("The key", _ref("Key"))},
    },
    ("PATCH", "/puhui/v1/keys/{id}"): {
        "summary": "Change a key's name, time or rules",
        "requestBody": _body("WantedKey"),
        "responses": {"200": _json("The key", _ref("Key"))},
    },
    ("DELETE", "/puhui/v1/keys/{id}"): {
        "summary": "End a key for good",
        "responses": {"200": _json("The key", _ref("Key"))},
    },
    ("GET", "/puhui/v1/traces"): _traces("What forgetting would take away"),
    ("DELETE", "/puhui/v1/traces"): _traces("Forget: take it away, all or nothing"),
    ("GET", "/device"): _page("The page where an expert answers by itself"),
    ("GET", "/device/experts"): _get("The experts in place, for browsers", _json("A list", ANY_OBJECT)),
}
