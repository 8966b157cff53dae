"""Needs, what may be kept, and headers to pass on."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puhui.core.errors import InvalidRequest
from puhui.core.request import Caller, Needs, Request
from puhui.gateway.chat import read_request
from puhui.gateway.needs import headers_to_pass_on


def read(headers: dict[str, str] | None = None, caller: Caller = Caller(), **fields: Any) -> Request:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]} | fields
    return read_request(msgspec.json.encode(body), headers or {}, caller)


def test_needs_by_header() -> None:
    given_ = {
        "x-puhui-quality": "0.5",
        "x-puhui-latency-ms": "200",
        "x-puhui-max-cost": "0.01",
        "x-puhui-privacy": "Site",
    }
    assert read(given_).needs == Needs(0.5, 200.0, 0.01, "site")
    assert read().needs == Needs()


def test_needs_in_the_body_count_before_headers_and_go_no_further() -> None:
    request = read(
        {"x-puhui-quality": "0.5", "x-puhui-privacy": "site"}, puhui={"needs": {"quality": 1.0}}, nobody_knows=[1]
    )
    assert request.needs == Needs(1.0, privacy="site")
    assert msgspec.json.decode(request.body) == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "nobody_knows": [1],
    }
    assert request.settings == read(nobody_knows=[1]).settings


@pytest.mark.parametrize(
    ("puhui", "told"),
    [
        ({"needs": {"qualty": 1.0}}, "qualty"),
        ({"neds": {}}, "neds"),
        ({"needs": {"quality": 2}}, "'quality'"),
        ({"needs": {"quality": "1"}}, "quality"),
        ({"needs": {"latency_ms": -1}}, "'latency_ms'"),
        ({"needs": {"max_cost": "free"}}, "max_cost"),
        ({"needs": {"privacy": "nowhere"}}, "device, site, any"),
        ({"needs": []}, "needs"),
        ({"keep": "all"}, "keep"),
        (5, "puhui"),
        ([], "puhui"),
    ],
)
def test_what_is_not_known_in_the_body_is_refused_and_named(puhui: Any, told: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read(puhui=puhui)
    assert told in str(caught.value)
    assert caught.value.param is not None
    assert caught.value.param.startswith("puhui")


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("x-puhui-quality", "1.01"),
        ("x-puhui-latency-ms", "soon"),
        ("x-puhui-latency-ms", "-5"),
        ("x-puhui-max-cost", "inf"),
        ("x-puhui-max-cost", "nan"),
        ("x-puhui-privacy", "home"),
        ("x-puhui-privacy", ""),
        ("x-puhui-keep", "most"),
    ],
)
def test_headers_that_cannot_be(header: str, value: str) -> None:
    with pytest.raises(InvalidRequest, match=r"needs|x-puhui|puhui\.needs"):
        read({header: value})


def test_null_is_no_word() -> None:
    assert read(puhui=None).needs == Needs()
    assert read(puhui={"needs": None, "keep": None}).needs == Needs()
    for name in Needs.__struct_fields__:
        assert read(puhui={"needs": {name: None}}).needs == Needs()
    assert read({"x-puhui-quality": "0.5"}, puhui={"needs": {"quality": None}}).needs == Needs(quality=0.5)
    with pytest.raises(InvalidRequest, match="qualty"):
        read(puhui={"needs": {"qualty": None}})


@pytest.mark.parametrize(
    ("key", "header", "body", "kept"),
    [
        (None, None, None, None),
        (None, "nothing", None, "nothing"),
        ("whole", "redacted", None, "redacted"),
        ("nothing", "whole", None, "nothing"),
        ("redacted", "nothing", "whole", "redacted"),
        ("whole", None, "nothing", "nothing"),
    ],
)
def test_a_request_may_let_less_be_kept_but_not_more(
    key: Any, header: str | None, body: str | None, kept: str | None
) -> None:
    headers = {} if header is None else {"x-puhui-keep": header}
    said = {} if body is None else {"puhui": {"keep": body}}
    request = read(headers, Caller("k", "p", key), **said)
    assert request.caller.keep == kept
    assert (request.caller.key, request.caller.pool) == ("k", "p")


def test_headers_that_are_passed_on() -> None:
    passed = dict(
        headers_to_pass_on(
            {
                "host": "here",
                "authorization": "Bearer x",
                "cookie": "a=b",
                "accept-encoding": "br",
                "content-length": "5",
                "connection": "keep-alive, X-Private",
                "x-private": "1",
                "x-puhui-quality": "1",
                "x-forwarded-for": "10.0.0.1",
                "transfer-encoding": "chunked",
                "openai-organization": "org-1",
                "openai-beta": "assistants=v2",
                "user-agent": "OpenAI/Python",
                "x-nobody-knows": "ü".encode().decode("latin-1"),
                "x-broken": "\xff",
                "x-control": "a\tb",
            }
        )
    )
    assert passed == {
        "openai-organization": "org-1",
        "openai-beta": "assistants=v2",
        "user-agent": "OpenAI/Python",
        "x-nobody-knows": "ü",
    }


@given(st.dictionaries(st.text(min_size=1), st.text()))
def test_what_is_passed_on_can_be_sent(headers: dict[str, str]) -> None:
    for _, value in headers_to_pass_on(headers):
        assert value.isprintable()
        value.encode()
