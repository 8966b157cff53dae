"""Sorting requests into what repeats: by model, system prompt, settings and name."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puhui.core.request import Request
from puhui.evolve.traffic import Task, TaskIndex, Traffic, sort_request
from puhui.gateway.chat import read_request

USER = {"role": "user", "content": "what is this?"}
SYSTEM = {"role": "system", "content": "You sort mail."}


def asked(*messages: dict[str, Any], **fields: Any) -> Request:
    return read_request(msgspec.json.encode({"model": "m", "messages": list(messages)} | fields), {})


def group(*messages: dict[str, Any], **fields: Any) -> str:
    found = sort_request(asked(*messages, **fields))
    assert found is not None
    return found.group


def test_one_system_prompt_is_one_kind() -> None:
    found = sort_request(asked(SYSTEM, USER))
    assert found is not None
    assert (found.context, found.input) == ("You sort mail.", "what is this?")
    assert found.group.startswith("context:")
    assert group(SYSTEM, USER) == group(SYSTEM, {"role": "user", "content": "and this?"})
    assert group(SYSTEM, USER) == group({"role": "developer", "content": "You sort mail."}, USER)
    parts = {"role": "system", "content": [{"type": "text", "text": "You sort "}, {"type": "text", "text": "mail."}]}
    assert group(SYSTEM, USER) == group(parts, USER)
    assert group(SYSTEM, USER) != group({"role": "system", "content": "You sort mail"}, USER)
    assert group(USER).startswith("bare:")


def test_whatever_changes_answers_changes_the_kind() -> None:
    base = group(SYSTEM, USER)
    assert group(SYSTEM, USER, temperature=0.1) != base
    assert group(SYSTEM, USER, max_tokens=3) != base
    assert group(SYSTEM, USER, response_format={"type": "json_object"}) != base
    assert group(SYSTEM, USER, stream=True, user="u", seed=1) == base
    other = sort_request(msgspec.structs.replace(asked(SYSTEM, USER), model="n"))
    assert other is not None
    assert other.group != base


def test_a_name_given_outright() -> None:
    named = group(SYSTEM, USER, metadata={"task": "mail"})
    assert named.startswith("named:")
    assert named == group(USER, metadata={"task": "mail"})
    assert named != group(USER, metadata={"task": "post"})
    assert group(SYSTEM, USER, metadata={"team": "mail"}) == group(SYSTEM, USER)
    # A system prompt that reads like the name is still another kind.
    assert named != group({"role": "system", "content": "mail"}, USER)


@pytest.mark.parametrize(
    ("messages", "fields"),
    [
        ([SYSTEM], {}),
        ([USER, {"role": "assistant", "content": "a letter"}, USER], {}),
        ([{"role": "assistant", "content": "hi"}], {}),
        ([USER, USER], {}),
        ([USER, SYSTEM], {}),
        ([SYSTEM, {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}], {}),
        ([SYSTEM, {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "input_audio"}]}], {}),
        ([SYSTEM, {"role": "user"}], {}),
        ([SYSTEM, {"role": "user", "content": []}], {}),
        ([{"role": "system", "content": [{"type": "image_url"}]}, USER], {}),
        ([SYSTEM, {"role": "tool", "content": "7"}], {}),
        ([SYSTEM, USER], {"tools": [{"type": "function"}]}),
        ([SYSTEM, USER], {"n": 2}),
        ([SYSTEM, USER], {"logprobs": True}),
    ],
)
def test_what_an_expert_must_not_see(messages: list[dict[str, Any]], fields: dict[str, Any]) -> None:
    assert sort_request(asked(*messages, **fields)) is None


def test_what_is_too_large_to_be_looked_through_is_left_to_the_big_model() -> None:
    phones = "13800138000 " * 5_000
    assert sort_request(asked({"role": "user", "content": phones}), redacted=True) is not None
    assert sort_request(asked({"role": "user", "content": phones * 2}), redacted=True) is None
    assert sort_request(asked({"role": "system", "content": phones}, {"role": "user", "content": phones})) is None
    assert sort_request(asked(SYSTEM, USER, metadata={"note": phones * 2})) is None  # an audit would keep it


TEXT = st.text(max_size=8)


@given(TEXT, TEXT, TEXT)
def test_a_template_gives_back_what_varies(prefix: str, middle: str, suffix: str) -> None:
    task = Task("t", "t", "g", "m", prefix, suffix)
    assert task.input_of(prefix + middle + suffix) == middle


@given(TEXT, TEXT, TEXT)
def test_a_template_takes_only_its_own(prefix: str, suffix: str, text: str) -> None:
    found = Task("t", "t", "g", "m", prefix, suffix).input_of(text)
    if found is None:
        assert not (text.startswith(prefix) and text[len(prefix) :].endswith(suffix))
    else:
        assert prefix + found + suffix == text


def test_beginning_and_end_may_not_share_letters() -> None:
    assert Task("t", "t", "g", "m", "abc", "cde").input_of("abcde") is None


def test_the_longest_template_wins() -> None:
    short, long = Task("s", "s", "g", "m", "Sort: "), Task("l", "l", "g", "m", "Sort: ", " Answer:")
    index = TaskIndex([short, long])
    assert index.find(Traffic("g", "", "Sort: x Answer:")) == (long, "x")
    assert index.find(Traffic("g", "", "Sort: x")) == (short, "x")
    assert index.find(Traffic("g", "", "Other")) is None
    assert index.find(Traffic("h", "", "Sort: x")) is None
    assert TaskIndex().find(Traffic("g", "", "x")) is None
