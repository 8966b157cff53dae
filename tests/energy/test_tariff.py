"""Joules into grams and money, and estimates that say what they are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puhui.core.answer import Energy, Usage
from puhui.core.errors import SettingsError
from puhui.core.settings import Tariff
from puhui.energy.power import estimate_joules, estimate_remote_joules
from puhui.energy.tariff import GRID_G_PER_KWH, JOULES_PER_KWH, grid_intensity, price_usage, token_prices

AMOUNT = st.floats(0.0, 1e9)


@given(AMOUNT, st.floats(0, 2000), st.floats(0, 5))
def test_grams_and_money_of_energy(joules: float, carbon: float, price: float) -> None:
    usage = Usage(energy=Energy(joules, joules / 2, joules * 2), seconds=3.0, cpu_seconds=1.0)
    priced = price_usage(usage, Tariff(carbon_g_per_kwh=carbon, price_per_kwh=price))
    assert priced.co2_g == pytest.approx(joules / 3.6e6 * carbon)
    assert priced.cost == pytest.approx(joules / 3.6e6 * price)
    assert (priced.seconds, priced.cpu_seconds, priced.energy) == (3.0, 1.0, usage.energy)


def test_one_kilowatt_hour() -> None:
    priced = price_usage(Usage(energy=Energy(JOULES_PER_KWH)), Tariff(carbon_g_per_kwh=582.0, price_per_kwh=0.1))
    assert (priced.co2_g, priced.cost) == (582.0, 0.1)


def test_who_sells_tokens_has_the_electricity_in_the_price() -> None:
    usage = Usage(prompt_tokens=1_000_000, completion_tokens=500_000, energy=Energy(JOULES_PER_KWH))
    assert price_usage(usage, Tariff(price_in=2.5, price_out=10.0)).cost == pytest.approx(7.5)
    assert price_usage(usage, Tariff(price_per_kwh=0.15)).cost == pytest.approx(0.15)


@pytest.mark.parametrize("code", [*GRID_G_PER_KWH, "chn", "world"])
def test_known_grids(code: str) -> None:
    assert grid_intensity(code) == GRID_G_PER_KWH[code.upper()] > 0


@pytest.mark.parametrize("code", ["", "XXX", "China", "CN", "世界"])
def test_an_unknown_country(code: str) -> None:
    with pytest.raises(SettingsError, match=r"known: WORLD, CHN.*--carbon") as caught:
        grid_intensity(code)
    assert repr(code) in str(caught.value)


@given(AMOUNT)
def test_estimates_have_bounds_and_say_so(amount: float) -> None:
    for energy in (estimate_joules(amount), estimate_remote_joules(int(amount), int(amount) // 7)):
        assert 0.0 <= energy.low <= energy.joules <= energy.high
        assert not energy.measured


@given(AMOUNT, AMOUNT)
def test_energy_adds_up(first: float, second: float) -> None:
    total = estimate_joules(first) + estimate_joules(second)
    assert total.joules == pytest.approx(estimate_joules(first + second).joules)
    assert total.low <= total.joules <= total.high


def test_a_sum_is_measured_only_if_every_part_is() -> None:
    measured, guessed, nothing = Energy(1, 1, 1, True), Energy(1, 0.5, 2, False), Energy()
    assert (measured + measured).measured
    assert not (measured + guessed).measured
    assert not (guessed + measured).measured
    assert (measured + nothing).measured
    assert (nothing + measured).measured


def test_prices_by_name() -> None:
    assert token_prices("gpt-4o") == (2.5, 10.0)
    for unknown in ("", "no such model", "模型"):
        assert token_prices(unknown) is None
