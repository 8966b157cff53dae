"""Reading JSON where it stands: against Python's own reader, and what is no JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puhui.cascade.json_text import read_leaves, read_list

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3), max_leaves=5)
RECORDS = st.recursive(
    st.dictionaries(st.text(max_size=5), VALUES, max_size=4),
    lambda inner: st.dictionaries(st.text(max_size=5), VALUES | inner, min_size=1, max_size=3),
    max_leaves=8,
)
SPACES = st.sampled_from([None, 1, 4])
AROUND = st.text(st.characters(exclude_characters="{"), max_size=10)


def flat(record: dict[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in record.items():
        path = above + key.replace("~", "~0").replace("/", "~1")
        found |= flat(value, f"{path}/") if isinstance(value, dict) else {path: value}
    return found if record else {above: {}}


@given(RECORDS, SPACES, AROUND, st.text(max_size=10), st.booleans())
def test_leaves_are_all_values_and_their_places(
    record: dict[str, Any], indent: int | None, before: str, after: str, escaped: bool
) -> None:
    text = before + json.dumps(record, indent=indent, ensure_ascii=escaped) + after
    leaves = read_leaves(text)
    assert leaves is not None
    assert {leaf.path: leaf.value for leaf in leaves} == flat(record)
    assert [json.loads(text[leaf.start : leaf.end]) for leaf in leaves] == [leaf.value for leaf in leaves]
    assert [leaf.start for leaf in leaves] == sorted(leaf.start for leaf in leaves)


@given(st.lists(VALUES, max_size=5), SPACES)
def test_items_of_a_list_are_all_values(values: list[Any], indent: int | None) -> None:
    text = json.dumps(values, indent=indent)
    places = read_list(text)
    assert places is not None
    assert [json.loads(text[start:end]) for start, end in places] == values


@given(st.text('[]{}",:1a \n\\', max_size=25))
def test_what_python_reads_and_what_it_refuses(text: str) -> None:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if isinstance(value, list):
        assert read_list(text.strip()) is not None
    elif value is None:
        assert read_list(text) is None
    if isinstance(value, dict) and text.count(":") == len(value):  # no key twice
        assert read_leaves(text) is not None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no braces",
        "{",
        '{"a"',
        '{"a":',
        '{"a":1',
        '{"a":1,}',
        '{"a":1 "b":2}',
        "{a:1}",
        '{"a":1,"a":2}',
        '{"a":NaN}',
        '{"a":Infinity}',
        '{"a":' * 5_000,
        '{"a":' + "[" * 100_000,
        '{"a":' + "9" * 5_000 + "}",
    ],
    ids=range(15),
)
def test_what_is_no_object(text: str) -> None:
    assert read_leaves(text) is None


NO_LISTS = ["", "a", "[", "[1", "[1,]", "[1 2]", "[1] x", "[,]", "[NaN]", "[" * 100_000]


@pytest.mark.parametrize("text", NO_LISTS, ids=range(len(NO_LISTS)))
def test_what_is_no_list(text: str) -> None:
    assert read_list(text) is None
