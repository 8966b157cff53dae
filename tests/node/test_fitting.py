"""Whether expert's answers keep to what requests ask of their form, and what of cut answers is learned."""

from __future__ import annotations

import json
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import experts as sample
from puhui.cascade.agreement import NOT_TEXT
from puhui.cascade.monitor import RiskMonitor
from puhui.core.answer import Answer
from puhui.core.request import Request
from puhui.evolve.discovery import task_of_group
from puhui.gateway.chat import read_request
from puhui.models.endpoint import Endpoint
from puhui.models.fields import FieldsModel, RecordForm
from puhui.node.expert import Expert
from puhui.node.fitting import finish_of, fits, said
from serving import BigModel, head_of, raw_server, says, whole

SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Ulm", "Bonn"]}, "beds": {"type": "integer", "maximum": 9}},
    "required": ["city", "beds"],
    "additionalProperties": False,
}


def asked(**fields: Any) -> Request:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}]} | fields
    return read_request(msgspec.json.encode(body), {})


def keeps(text: str, known: tuple[str, ...] = (), **fields: Any) -> bool:
    return fits(text, asked(**fields).settings, frozenset(known))


def by_schema(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


def test_without_settings_everything_fits() -> None:
    assert keeps("anything\n" * 1000)


@given(st.text(), st.lists(st.text(min_size=1), max_size=4))
def test_an_answer_with_a_stop_sequence_does_not_fit(text: str, stop: list[str]) -> None:
    assert keeps(text, stop=stop) is not any(sequence in text for sequence in stop)


def test_one_stop_sequence_may_be_a_string() -> None:
    assert keeps("a", stop="\n")
    assert not keeps("a\nb", stop="\n")
    assert keeps("a", stop=None)


@given(st.text(), st.integers(1, 100), st.sampled_from(["max_tokens", "max_completion_tokens"]))
def test_an_answer_has_fewer_bytes_than_tokens_are_allowed(text: str, most: int, name: str) -> None:
    assert keeps(text, **{name: most}) is (len(text.encode()) < most)


def test_the_lesser_of_both_limits_counts() -> None:
    assert not keeps("abcdef", max_tokens=100, max_completion_tokens=5)
    assert keeps("abcdef", max_tokens=100, max_completion_tokens=None)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_tokens": 1},
        {"stop": "a"},
        by_schema({"type": "string", "pattern": "^a"}),
        {"response_format": {"type": "new"}},
    ],
)
def test_what_the_big_model_said_under_these_settings_fits(settings: dict[str, Any]) -> None:
    assert keeps("banana", known=("banana", "apple"), **settings)
    assert not keeps("cherry and a", known=("banana", "apple"), **settings)


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ('{"city": "Ulm", "beds": 3}', True),
        ('{"city": "Rome", "beds": 3}', False),
        ('{"city": "Ulm", "beds": 30}', False),
        ('{"city": "Ulm", "beds": 3.5}', False),
        ('{"city": "Ulm"}', False),
        ('{"city": "Ulm", "beds": 3, "more": 1}', False),
        ('```json\n{"city": "Ulm", "beds": 3}\n```', False),
        ("Ulm", False),
        ("", False),
    ],
)
def test_json_is_valid_by_the_schema(text: str, valid: bool) -> None:
    assert keeps(text, **by_schema(SCHEMA)) is valid


@given(st.sampled_from(["Ulm", "Bonn"]), st.integers(0, 20))
def test_a_record_put_together_from_known_fields_is_checked_as_a_whole(city: str, beds: int) -> None:
    form = RecordForm(('{"city": ', ', "beds": ', "}"), (True, False))
    assert keeps(form.written([city, str(beds)]), **by_schema(SCHEMA)) is (beds <= 9)


def test_fields_that_only_go_together_are_seen() -> None:
    pairs = [{"a": "x", "b": "1"}, {"a": "y", "b": "2"}]
    either = {"anyOf": [{"properties": {name: {"const": value} for name, value in pair.items()}} for pair in pairs]}
    assert keeps(json.dumps(pairs[0]), **by_schema(either))
    assert not keeps('{"a": "x", "b": "2"}', **by_schema(either))


def test_any_object_will_do_where_an_object_is_asked_for() -> None:
    wanted = {"response_format": {"type": "json_object"}}
    assert keeps('{"a": [1]}', **wanted)
    assert not keeps("[1]", **wanted)
    assert not keeps('{"a": ', **wanted)
    assert keeps("text", response_format={"type": "text"})


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "http://127.0.0.1:9/schema.json"},
        {"$ref": "file:///etc/passwd"},
        {"$ref": "#/nowhere"},
        {"$defs": {"text": {"type": "string"}}, "$ref": "#/$defs/text"},
        {"$dynamicRef": "#text"},
        {"type": "string", "unevaluatedItems": True},
        {"type": "string", "uniqueItems": True},
        {"type": "string", "description": "x" * 16_000},
        {"type": "string", "pattern": "^(a+)+$"},
        {"type": "string", "format": "email"},
        {"type": 5},
        [],
        None,
        "x",
    ],
)
def test_schemas_that_cannot_be_checked_safely_are_left_to_the_big_model(schema: Any) -> None:
    assert not keeps('"' + "a" * 50 + '!"', **by_schema(schema))


def doubling(levels: int) -> dict[str, Any]:
    """A schema of references, each of which is followed twice."""
    both = {f"l{n}": {"allOf": [{"$ref": f"#/$defs/l{n + 1}"}] * 2} for n in range(levels)}
    return {"$defs": both | {f"l{levels}": {}}, "$ref": "#/$defs/l0"}


def unevaluated(levels: int) -> dict[str, Any]:
    """A schema in which each level looks twice at the next."""
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"allOf": [schema], "unevaluatedProperties": True}
    return schema


@pytest.mark.parametrize("schema", [doubling(40), unevaluated(40), {"items": {"allOf": [{}] * 3_000}}])
def test_no_schema_holds_up_the_node(schema: dict[str, Any]) -> None:
    known = json.dumps([{"a": 1}] * 3_000)
    started = time.process_time()
    assert not fits(known, asked(**by_schema(schema)).settings, ())
    assert time.process_time() - started < 5.0  # where it was looked through, it took hours
    assert fits(known, asked(**by_schema(schema)).settings, (known,))


@pytest.mark.parametrize("settings", [{"stop": 5}, {"stop": [5]}, {"max_tokens": "5"}, {"max_tokens": 1.5}])
def test_settings_that_nobody_understands(settings: dict[str, Any]) -> None:
    assert not keeps("", **settings)


def test_how_an_answer_ends() -> None:
    assert finish_of("") == "stop"
    assert finish_of(asked(max_tokens=5).settings) == "stop"
    assert finish_of(asked(max_tokens=1).settings) == "length"
    assert finish_of(asked(max_completion_tokens=1).settings) == "length"


@pytest.mark.parametrize(
    ("fields", "text", "finish", "expected"),
    [
        ({}, "yes", "stop", "yes"),
        ({}, "yes", "eos", "yes"),
        ({}, None, "tool_calls", NOT_TEXT),
        ({"max_tokens": 5}, "a text that was cu", "length", NOT_TEXT),
        ({"max_tokens": 1}, "yes", "length", "yes"),
        ({"max_completion_tokens": 1}, "yes", "length", "yes"),
        ({"max_tokens": 1}, "yes", "content_filter", NOT_TEXT),
        ({}, "", "content_filter", NOT_TEXT),
    ],
)
def test_what_was_broken_off_is_not_learned(fields: Any, text: str | None, finish: str, expected: str) -> None:
    assert said(asked(**fields), Answer(by="big:m", text=text, finish=finish)) == expected


# --- the expert itself ----------------------------------------------------------------------------------------


def record_expert() -> Expert:
    """An expert whose answers are JSON objects, put together: they are no closed set."""
    model = FieldsModel([("static", sample.model())], RecordForm(('{"subject": ', "}"), (True,)))
    task = task_of_group("context:0", "m", sample.SYSTEM)
    return Expert("0" * 64, task, model, 0.5, RiskMonitor(0.05, 0.05))


@pytest.mark.parametrize(
    ("settings", "sure"),
    [
        ({}, True),
        ({"stop": ["\n"], "max_tokens": 30}, True),
        ({"stop": ["subj"]}, False),
        ({"max_tokens": 10}, False),
        ({"response_format": {"type": "json_object"}}, True),
        (by_schema({"properties": {"subject": {"enum": ["money", "food"]}}, "required": ["subject"]}), True),
        (by_schema({"properties": {"subject": {"enum": ["travel", "food"]}}, "required": ["subject"]}), False),
    ],
)
async def test_an_expert_is_not_sure_of_an_answer_in_another_form(settings: dict[str, Any], sure: bool) -> None:
    request = asked(messages=[{"role": "user", "content": "about my balance and cash"}], **settings)
    answer = await record_expert()(request)
    assert answer.text == '{"subject": "money"}'
    assert answer.confidence is not None
    assert (answer.confidence > 0.5) is sure
    assert answer.finish == "stop"


async def test_what_was_broken_off_is_told_by_the_endpoint(big: BigModel) -> None:
    endpoint = Endpoint(big.url)
    assert (await endpoint(asked())).finish == "stop"
    streamed = await endpoint(asked(stream=True))
    assert streamed.pieces is not None
    assert len([piece async for piece in streamed.pieces]) > 2
    assert streamed.finish == "stop"
    await endpoint.close()
    cut = whole("hal").replace(b'"finish_reason":"stop"', b'"finish_reason":"length"')
    with raw_server(says(cut, head=head_of(length=len(cut)))) as url:
        endpoint = Endpoint(url)
        answer = await endpoint(asked(max_tokens=3))
        await endpoint.close()
    assert (answer.finish, said(asked(max_tokens=3), answer)) == ("length", NOT_TEXT)
