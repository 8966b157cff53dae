"""Who may be asked, and what a caller is told when nobody may."""

from __future__ import annotations

from typing import Any

import pytest
from upstreams_made import ask

from puhui.core.answer import Usage
from puhui.core.errors import NeedsUnmet, SettingsError
from puhui.core.request import Needs, Request
from puhui.core.settings import Tariff
from puhui.energy.power import estimate_remote_joules
from puhui.energy.tariff import price_usage
from puhui.upstreams.suitable import MOST_TOKENS, TOKENS_IF_UNSAID, cost_of, expected_tokens, suitable
from puhui.upstreams.upstream import Upstream
from puhui.upstreams.upstream_settings import UpstreamSettings, is_on_site

FAR = "https://api.example.com/v1"
NEAR = "http://10.1.2.3:8000/v1"


def upstream(ref: str = FAR, **more: Any) -> Upstream:
    return Upstream(UpstreamSettings(ref=ref, **more))


def chosen(upstreams: list[Upstream], request: Request, tariff: Tariff = Tariff()) -> list[Upstream]:
    return list(suitable(upstreams, request, tariff))


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("[::1]:8000", True),
        ("10.0.0.7", True),
        ("172.16.3.4:80", True),
        ("192.168.1.1", True),
        ("[fd00::1]", True),
        ("api.openai.com", False),
        ("8.8.8.8", False),
        ("172.32.0.1", False),
        ("[2001:4860:4860::8888]", False),
        ("0.0.0.0", False),
        ("localhost.example.com", False),
        ("10.0.0.7.example.com", False),
    ],
)
def test_what_is_on_site(host: str, here: bool) -> None:
    assert is_on_site(f"http://{host}/v1") is here
    assert upstream(f"http://{host}/v1").on_site is here
    assert upstream(f"http://{host}/v1", site=not here).on_site is not here


def test_a_request_that_may_not_leave_the_site() -> None:
    near, far = upstream(NEAR), upstream(FAR)
    private = ask(needs=Needs(privacy="site"))
    assert chosen([far, near], private) == [near]
    with pytest.raises(NeedsUnmet, match="may not leave this site") as caught:
        chosen([far], private)
    assert caught.value.need == "privacy"
    with pytest.raises(NeedsUnmet, match="may not leave this node") as caught:
        chosen([near], ask(needs=Needs(privacy="device")))
    assert caught.value.need == "privacy"


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        (b"x" * 400, (100, TOKENS_IF_UNSAID)),
        (b'{"max_tokens": 7}', (4, 7)),
        (b'{"max_tokens": 7, "max_completion_tokens": 9, "n": 3}', (13, 27)),
        (b'{"max_output_tokens": 0}', (6, 0)),
        (b'{"max_tokens": -7, "n": -3}', (6, 0)),
        (b'{"max_tokens": null, "n": null}', (7, TOKENS_IF_UNSAID)),
        (b'{"max_tokens": "many"}', (5, TOKENS_IF_UNSAID)),
        (b'{"max_tokens": ' + b"9" * 400 + b', "n": ' + b"9" * 400 + b"}", (205, MOST_TOKENS**2)),
    ],
)
def test_expected_tokens(body: bytes, tokens: tuple[int, int]) -> None:
    assert expected_tokens(body) == tokens


def test_a_request_that_may_not_cost_more() -> None:
    dear, cheap = upstream(price_in=10.0, price_out=100.0), upstream(price_in=1.0, price_out=10.0)
    by_tariff, free = upstream(), upstream(price_in=0.0, price_out=0.0)
    tariff = Tariff(price_in=5.0, price_out=50.0, currency="EUR")

    def asked(most: float) -> Request:
        return ask(needs=Needs(max_cost=most), max_tokens=1_000)

    everyone = [dear, cheap, by_tariff, free]
    assert chosen(everyone, asked(1.0), tariff) == everyone
    assert chosen(everyone, asked(0.06), tariff) == [cheap, by_tariff, free]
    assert chosen(everyone, asked(0.02), tariff) == [cheap, free]
    assert chosen(everyone, asked(0.001), tariff) == [free]
    with pytest.raises(NeedsUnmet, match=r"0\.001 EUR at most, and the cheapest .* up to 0\.01") as caught:
        chosen([dear, cheap], asked(0.001), tariff)
    assert caught.value.need == "max_cost"


def test_what_has_no_price_costs_its_electricity_and_elsewhere_nobody_knows_what() -> None:
    near, far, free = upstream(NEAR), upstream(), upstream(price_in=0.0, price_out=0.0)

    def asked(most: float) -> Request:
        return ask(needs=Needs(max_cost=most), max_tokens=1_000)

    cost = cost_of(near, 20, 1_000, Tariff())
    usage = Usage(prompt_tokens=20, completion_tokens=1_000, energy=estimate_remote_joules(20, 1_000))
    assert cost == cost_of(free, 20, 1_000, Tariff()) == price_usage(usage, Tariff()).cost > 0.0
    assert chosen([near, far, free], asked(0.001)) == [near, free]
    assert chosen([far], asked(1.0), Tariff(price_out=1.0)) == [far]
    with pytest.raises(NeedsUnmet, match="electricity"):
        chosen([near, far, free], asked(0.0))
    with pytest.raises(NeedsUnmet, match=r"no price for https://api\.example\.com/v1; .* price_in") as caught:
        chosen([far], asked(1.0))
    assert caught.value.need == "max_cost"
    assert chosen([near], asked(0.0), Tariff(price_per_kwh=0.0)) == [near]


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_is_in_a_hurry(stream: bool) -> None:
    slow, quick, unknown = upstream(), upstream(), upstream()
    for _ in range(20):
        (slow.first_event if stream else slow.whole).add(0.5)
        (quick.first_event if stream else quick.whole).add(0.1)

    def asked(ms: float) -> Request:
        return ask(needs=Needs(latency_ms=ms), stream=stream)

    assert chosen([slow, quick, unknown], asked(600.0)) == [slow, quick, unknown]
    assert chosen([slow, quick, unknown], asked(200.0)) == [quick, unknown]
    with pytest.raises(NeedsUnmet, match=r"within 50 ms, and the quickest .* 100 ms") as caught:
        chosen([slow, quick], asked(50.0))
    assert caught.value.need == "latency_ms"


def test_every_need_must_be_met() -> None:
    near, cheap = upstream(NEAR, price_in=9.0, price_out=9.0), upstream(price_in=1.0, price_out=1.0)
    with pytest.raises(NeedsUnmet) as caught:
        chosen([near, cheap], ask(needs=Needs(privacy="site", max_cost=0.002), max_tokens=1_000))
    assert caught.value.need == "max_cost"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weight", 0.0),
        ("weight", float("nan")),
        ("weight", float("inf")),
        ("retries", -1),
        ("retries", 11),
        ("price_in", -1.0),
        ("price_out", float("inf")),
        ("connect_s", 0.0),
        ("whole_s", float("nan")),
    ],
)
def test_settings_that_cannot_be(name: str, value: float) -> None:
    with pytest.raises(SettingsError, match=rf"^upstream {FAR}: {name} is"):
        UpstreamSettings(ref=FAR, **{name: value})  # type: ignore[arg-type]


def test_a_key_is_not_shown() -> None:
    assert "sk-1" not in repr(UpstreamSettings(ref=FAR, key="sk-1", key_env="MY_KEY"))
    assert "MY_KEY" in repr(UpstreamSettings(ref=FAR, key="sk-1", key_env="MY_KEY"))
    assert "sk-1" not in repr(upstream(key="sk-1"))
