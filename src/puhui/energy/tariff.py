"""Energy and tokens into grams of CO₂ and money."""

from __future__ import annotations

import msgspec

from puhui.core.answer import Prices, Usage
from puhui.core.errors import SettingsError
from puhui.core.settings import Tariff

JOULES_PER_KWH = 3_600_000.0

# gCO₂e a kWh, life-cycle or close to it, 2023: Our World in Data / Ember, by ISO 3166 code. China's official
# factor for 2023 is 530.6 on another basis (generation only).
GRID_G_PER_KWH = {
    "WORLD": 481.0,
    "CHN": 582.0,
    "USA": 370.0,
    "DEU": 381.0,
    "FRA": 56.0,
    "IND": 713.0,
    "JPN": 485.0,
}


def grid_intensity(country: str) -> float:
    """Life-cycle grid carbon of a country in gCO₂ a kWh (2023).

    >>> grid_intensity("fra")
    56.0
    """
    try:
        return GRID_G_PER_KWH[country.upper()]
    except KeyError:
        known = ", ".join(GRID_G_PER_KWH)
        raise SettingsError(
            f"no grid intensity for country {country!r}; known: {known}; for others give --carbon in gCO₂/kWh"
        ) from None


def tariff_at(prices: Prices | None, tariff: Tariff) -> Tariff:
    """The tariff with what one upstream takes for its tokens, where it has prices of its own."""
    if prices is None or prices == (tariff.price_in, tariff.price_out):
        return tariff
    return msgspec.structs.replace(tariff, price_in=prices[0], price_out=prices[1])


def price_usage(usage: Usage, tariff: Tariff) -> Usage:
    """The same usage with its grams of CO₂ and its money filled in.

    Money is the big model's price for its tokens where it has one, and the price of the energy else: whoever
    sells tokens has the electricity in their price.
    """
    kwh = usage.energy.joules / JOULES_PER_KWH
    tokens = usage.prompt_tokens * tariff.price_in + usage.completion_tokens * tariff.price_out
    return Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        seconds=usage.seconds,
        cpu_seconds=usage.cpu_seconds,
        energy=usage.energy,
        co2_g=kwh * tariff.carbon_g_per_kwh,
        cost=tokens / 1_000_000 if tokens else kwh * tariff.price_per_kwh,
    )


def token_prices(model: str) -> tuple[float, float] | None:
    """Money for a million tokens read and written (USD), from the table of `genai-prices`; None if unknown."""
    try:
        from genai_prices import Usage as TokenUsage
        from genai_prices import calc_price
    except ImportError:
        return None
    million = 1_000_000
    try:
        read = calc_price(TokenUsage(input_tokens=million, output_tokens=0), model_ref=model)
        written = calc_price(TokenUsage(input_tokens=0, output_tokens=million), model_ref=model)
    except LookupError:
        return None
    return float(read.total_price), float(written.total_price)
