"""`puhui serve`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from puhui.cli.options import DataFolder, StoreUrl, data_folder, store_url
from puhui.core.errors import SettingsError
from puhui.core.settings import Promise, Tariff
from puhui.energy.tariff import grid_intensity, token_prices
from puhui.gateway.server import ServeSettings
from puhui.gateway.server import serve as run


def serve(
    upstream: Annotated[
        str,
        typer.Option(
            envvar="PUHUI_UPSTREAM",
            help="The big model: openai:MODEL@URL, or a base URL alone to let any model pass.",
        ),
    ],
    key_env: Annotated[
        str | None,
        typer.Option(
            help="Name of the environment variable with the big model's key; else the caller's own key passes on."
        ),
    ] = None,
    host: Annotated[str, typer.Option(envvar="PUHUI_HOST", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="PUHUI_PORT", min=0, max=65535, help="Port to listen on.")] = 8000,
    allow_open: Annotated[
        bool, typer.Option("--allow-open", help="Listen beyond this machine although there are no keys.")
    ] = False,
    data_dir: DataFolder = None,
    store: StoreUrl = None,
    durable: Annotated[
        bool, typer.Option("--durable", help="Wait for the disk at each commit: survives power cuts too.")
    ] = False,
    risk: Annotated[
        float,
        typer.Option(help="ε of the guarantee: the greatest share of requests with an answer unlike the big model's."),
    ] = 0.02,
    delta: Annotated[float, typer.Option(help="δ of the guarantee: the chance that it fails.")] = 0.05,
    learn: Annotated[bool, typer.Option(help="Learn experts from the traffic.")] = True,
    logprobs: Annotated[
        bool, typer.Option(help="Ask the big model for log-probabilities: experts learn faster.")
    ] = True,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the big model.")] = 120.0,
    country: Annotated[
        str, typer.Option(help="Grid whose carbon counts: ISO 3166 code (CHN, USA, …) or WORLD.")
    ] = "WORLD",
    carbon: Annotated[float | None, typer.Option(help="Grid carbon in gCO₂/kWh, in place of --country.")] = None,
    price_kwh: Annotated[float, typer.Option(help="Price of a kWh.")] = 0.15,
    price_tokens: Annotated[
        str | None,
        typer.Option(
            help="Price of a million tokens read and written by the big model, as IN,OUT.",
            show_default="by the model's name",
        ),
    ] = None,
    log_level: Annotated[str, typer.Option(envvar="PUHUI_LOG_LEVEL", help="DEBUG, INFO, WARNING or ERROR.")] = "INFO",
) -> None:
    """Serve a node in front of a big model: point your OpenAI client's base_url at it."""
    folder = data_folder(data_dir)
    price_in, price_out = _prices(price_tokens, upstream)
    settings = ServeSettings(
        upstream=upstream,
        upstream_key=_key(key_env),
        store=store_url(store, folder),
        folder=folder,
        host=host,
        port=port,
        allow_open=allow_open,
        timeout_s=timeout,
        durable=durable,
        learn=learn,
        logprobs=logprobs,
        promise=Promise(risk, delta),
        tariff=Tariff(
            carbon_g_per_kwh=grid_intensity(country) if carbon is None else carbon,
            price_per_kwh=price_kwh,
            price_in=price_in,
            price_out=price_out,
        ),
        log_level=_level(log_level),
    )
    typer.echo(f"Puhui serves http://{host}:{port}/v1 in front of {upstream}", err=True)
    run(settings)


def _key(name: str | None) -> str | None:
    if name is None:
        return None
    key = os.environ.get(name)
    if not key:
        raise SettingsError(f"--key-env names {name}, but that environment variable is not set")
    return key


def _prices(given: str | None, upstream: str) -> tuple[float, float]:
    if given is None:
        model = upstream.removeprefix("openai:").partition("@")[0] if upstream.startswith("openai:") else ""
        return token_prices(model) or (0.0, 0.0)
    try:
        read, written = (float(part) for part in given.split(","))
    except ValueError as error:
        raise SettingsError(f"--price-tokens is {given!r}, but must be two numbers such as 2.5,10") from error
    return read, written


def _level(given: str) -> str:
    if given.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise SettingsError(f"--log-level is {given!r}; allowed: DEBUG, INFO, WARNING, ERROR")
    return given.upper()
