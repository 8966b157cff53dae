"""Settings refuse what cannot be, by name and value; errors are one family."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from puhui.core import errors
from puhui.core.request import Message
from puhui.core.settings import AuditRate, Promise, Tariff


@pytest.mark.parametrize("name", ["epsilon", "delta"])
@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 2.0, float("nan"), float("inf")])
def test_promises_that_cannot_be(name: str, value: float) -> None:
    with pytest.raises(errors.SettingsError, match=f"{name} is {value}"):
        Promise(**{name: value})


@pytest.mark.parametrize("name", ["carbon_g_per_kwh", "price_per_kwh", "price_in", "price_out"])
@pytest.mark.parametrize("value", [-0.01, float("nan"), float("inf")])
def test_tariffs_that_cannot_be(name: str, value: float) -> None:
    with pytest.raises(errors.SettingsError, match=f"{name} is {value}"):
        Tariff(**{name: value})
    assert Tariff(**{name: 0.0})


@pytest.mark.parametrize("name", ["learning", "probation", "steady"])
@pytest.mark.parametrize("value", [0.0, -0.1, 1.01, float("nan")])
def test_audit_rates_that_cannot_be(name: str, value: float) -> None:
    with pytest.raises(errors.SettingsError, match=f"audit rate {name} is {value}"):
        AuditRate(**{name: value})


@pytest.mark.parametrize(("name", "value", "why"), [("learning", 0.91, "0.9 at most"), ("steady", 1.0, "less than 1")])
def test_a_rate_at_which_no_expert_could_come_is_refused(name: str, value: float, why: str) -> None:
    with pytest.raises(errors.SettingsError, match=f"audit rate {name} is {value}, but .*{why}"):
        AuditRate(**{name: value})
    assert AuditRate(learning=0.9, probation=1.0, steady=0.99)


def test_the_rate_falls_as_an_expert_proves_itself() -> None:
    rate = AuditRate(learning=0.3, probation=0.2, steady=0.1, probation_requests=10)
    assert [rate.at(served) for served in (None, 1, 9, 10, 10**6)] == [0.3, 0.2, 0.2, 0.1, 0.1]


def test_every_error_is_ours_and_in_the_tree() -> None:
    ours = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, Exception)]
    assert all(issubclass(cls, errors.PuhuiError) for cls in ours)
    assert errors.__doc__ is not None
    assert all(cls.__name__ in errors.__doc__ for cls in ours)
    assert 'pip install "puhui[serve]"' in str(errors.MissingExtra("x", "serve"))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("hi", "hi"),
        ("", ""),
        (None, None),
        ([], None),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "ab"),
        ([{"type": "text", "text": "a"}, {"type": "image_url"}], None),
        ([{}], None),
        ([{"type": "text"}], ""),
    ],
)
def test_when_a_message_is_text(content: Any, text: str | None) -> None:
    assert Message("user", content).text == text
