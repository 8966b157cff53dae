"""Tokens of a request that nobody has counted: its text, and not the pictures and files in it."""

from __future__ import annotations

import time

import msgspec
import pytest

from puhui.core.answer import Answer
from puhui.core.request import Request
from puhui.core.settings import Tariff
from puhui.energy.token_estimate import estimate_tokens
from puhui.node.meter import meter
from puhui.upstreams.suitable import expected_tokens

PICTURE = "data:image/png;base64," + "iVBORw0KGgo/" * 100_000


def body_of(url: str, text: str = "What is this?") -> bytes:
    parts = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": url}}]
    return msgspec.json.encode({"model": "m", "messages": [{"role": "user", "content": parts}]})


@pytest.mark.parametrize("escaped", [False, True])
def test_a_picture_is_not_text(escaped: bool) -> None:
    body = body_of(PICTURE)
    whole = body.replace(b"/", b"\\/") if escaped else body
    assert abs(estimate_tokens(whole) - estimate_tokens(body_of("data:image/png;base64,"))) <= 1


def test_text_counts_whole_whatever_it_speaks_of() -> None:
    for text in (f"why does {PICTURE[:60]} not work?", "data:text/plain;base64, is a prefix", "x" * 4000):
        body = body_of("https://example.com/a.png", text)
        assert estimate_tokens(body) == len(body) // 4


def test_the_bill_and_the_most_that_it_may_cost_go_by_it() -> None:
    request = Request(id="r", model="m", messages=(), body=body_of(PICTURE))
    assert expected_tokens(request.body)[0] < 60
    usage = meter(request, Answer(by="big:m", text="a cat"), Tariff(price_in=1.0, price_out=1.0))
    assert usage.prompt_tokens < 60
    assert usage.cost < 1e-4


@pytest.mark.parametrize("piece", ['"data:', ";base64,", "data:a;base64,AAAA ", '"data:;base64,A\\'])
def test_it_takes_time_in_proportion(piece: str) -> None:
    body = (piece * (4_000_000 // len(piece)) + ";base64,").encode()
    started = time.perf_counter()
    estimate_tokens(body)
    assert time.perf_counter() - started < 2.0
