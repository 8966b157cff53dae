"""`puhui serve`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import typer

from puhui.cli.options import DataFolder, StoreUrl, data_folder, prices_of, store_url
from puhui.cli.serve_file import ServeFile, read_serve_file
from puhui.core.errors import SettingsError
from puhui.dashboard.pages import dashboard_routes
from puhui.energy.tariff import token_prices
from puhui.gateway.server import ServeSettings
from puhui.gateway.server import serve as run
from puhui.upstreams.upstream_settings import UpstreamSettings

S = TypeVar("S", bound=msgspec.Struct)

MODEL = "The big model"
NODE = "The node"
GUARANTEE = "Guarantee and learning"
BILL = "The bill"


def serve(
    upstream: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REFERENCE",
            envvar="PUHUI_UPSTREAM",
            help="openai:MODEL@URL, or a base URL alone to let any model pass. Given again: who is asked next "
            "when the one before does not answer.",
            show_default="those of --config",
            rich_help_panel=MODEL,
        ),
    ] = None,
    key_env: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Name of the environment variable with the big model's key, one for each --upstream; else the "
            "caller's own key passes on.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            help="Seconds to wait for its first token, and for each next one.",
            show_default="120",
            rich_help_panel=MODEL,
        ),
    ] = None,
    logprobs: Annotated[
        bool | None,
        typer.Option(
            "--logprobs/--no-logprobs",
            help="Ask it for log-probabilities: experts learn faster.",
            show_default="logprobs",
            rich_help_panel=MODEL,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            envvar="PUHUI_CONFIG",
            help="A TOML file that may say all of this and more; the command line overrules it.",
            rich_help_panel=NODE,
        ),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(envvar="PUHUI_HOST", help="Address to listen on.", show_default="127.0.0.1", rich_help_panel=NODE),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            envvar="PUHUI_PORT",
            min=0,
            max=65535,
            help="Port to listen on.",
            show_default="8000",
            rich_help_panel=NODE,
        ),
    ] = None,
    allow_open: Annotated[
        bool | None,
        typer.Option(
            "--allow-open", help="Listen beyond this machine although there are no keys.", rich_help_panel=NODE
        ),
    ] = None,
    keys: Annotated[
        bool | None,
        typer.Option(
            "--keys/--no-keys",
            help="Ask for a key even while there is none; once there is one, it is asked for in any case.",
            show_default="no-keys",
            rich_help_panel=NODE,
        ),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help="A site whose pages may use the node from a browser, such as https://chat.example.com; may be "
            "repeated.",
            show_default="none",
            rich_help_panel=NODE,
        ),
    ] = None,
    max_body_mb: Annotated[
        int | None,
        typer.Option(
            envvar="PUHUI_MAX_BODY_MB",
            min=1,
            help="MiB that the body of a request may have; each request under way may hold as much memory.",
            show_default="8",
            rich_help_panel=NODE,
        ),
    ] = None,
    data_dir: DataFolder = None,
    store: StoreUrl = None,
    durable: Annotated[
        bool | None,
        typer.Option(
            "--durable/--no-durable",
            help="Wait for the disk at each commit: survives power cuts too.",
            show_default="no-durable",
            rich_help_panel=NODE,
        ),
    ] = None,
    log_level: Annotated[
        str | None,
        typer.Option(
            envvar="PUHUI_LOG_LEVEL",
            help="DEBUG, INFO, WARNING or ERROR.",
            show_default="INFO",
            rich_help_panel=NODE,
        ),
    ] = None,
    log_format: Annotated[
        str | None,
        typer.Option(
            envvar="PUHUI_LOG_FORMAT",
            help="text, or json for one object a line.",
            show_default="text",
            rich_help_panel=NODE,
        ),
    ] = None,
    access_log: Annotated[
        bool | None,
        typer.Option(
            "--access-log/--no-access-log",
            help="One line for each request, without its text.",
            show_default="access-log",
            rich_help_panel=NODE,
        ),
    ] = None,
    otlp_endpoint: Annotated[
        str | None,
        typer.Option(
            envvar="OTEL_EXPORTER_OTLP_ENDPOINT",
            help="Base URL of an OpenTelemetry collector to send traces to, such as http://localhost:4318.",
            show_default="no traces",
            rich_help_panel=NODE,
        ),
    ] = None,
    risk: Annotated[
        float | None,
        typer.Option(
            help="ε of the guarantee: the greatest share of requests with an answer unlike the big model's.",
            show_default="0.02",
            rich_help_panel=GUARANTEE,
        ),
    ] = None,
    delta: Annotated[
        float | None,
        typer.Option(
            help="δ of the guarantee: the chance that it fails.", show_default="0.05", rich_help_panel=GUARANTEE
        ),
    ] = None,
    learn: Annotated[
        bool | None,
        typer.Option(
            "--learn/--no-learn",
            help="Learn experts from the traffic.",
            show_default="learn",
            rich_help_panel=GUARANTEE,
        ),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            envvar="PUHUI_KEEP",
            help="What is kept of prompts and answers: nothing, redacted (without mail addresses, phone, card and "
            "identity numbers, keys) or whole. A key or a request may ask for less.",
            show_default="redacted",
            rich_help_panel=NODE,
        ),
    ] = None,
    keep_days: Annotated[
        float | None,
        typer.Option(
            envvar="PUHUI_KEEP_DAYS",
            help="Days after which kept text is deleted from the disk; inf: never.",
            show_default="30",
            rich_help_panel=NODE,
        ),
    ] = None,
    country: Annotated[
        str | None,
        typer.Option(
            help="Grid whose carbon counts: ISO 3166 code (CHN, USA, …) or WORLD.",
            show_default="WORLD",
            rich_help_panel=BILL,
        ),
    ] = None,
    carbon: Annotated[
        float | None,
        typer.Option(help="Grid carbon in gCO₂/kWh, in place of --country.", rich_help_panel=BILL),
    ] = None,
    price_kwh: Annotated[
        float | None, typer.Option(help="Price of a kWh.", show_default="0.15", rich_help_panel=BILL)
    ] = None,
    price_tokens: Annotated[
        str | None,
        typer.Option(
            help="Price of a million tokens read and written by the big model, as IN,OUT.",
            show_default="by the model's name",
            rich_help_panel=BILL,
        ),
    ] = None,
) -> None:
    """Serve a node in front of a big model: point your OpenAI client's base_url at it."""
    file = read_serve_file(config) if config is not None else ServeFile()
    price_in, price_out = prices_of(price_tokens) or (None, None)
    table = _over(
        file.serve,
        host=host,
        port=port,
        allow_open=allow_open,
        allow_origins=tuple(allow_origin) if allow_origin else None,
        data_dir=None if data_dir is None else str(data_dir),
        store=store,
        durable=durable,
        learn=learn,
        logprobs=logprobs,
        log_level=None if log_level is None else log_level.upper(),
        log_format=None if log_format is None else log_format.lower(),
        access_log=access_log,
    )
    tariff = _over(
        file.tariff,
        country=country,
        carbon_g_per_kwh=carbon,
        price_per_kwh=price_kwh,
        price_in=price_in,
        price_out=price_out,
    )
    if country is not None and carbon is None:  # of the file's two ways of saying it, the one that was overruled
        tariff = msgspec.structs.replace(tariff, carbon_g_per_kwh=None)
    upstreams = _with_prices(_big_models(file, upstream, key_env, timeout), by_tariff=price_tokens is not None)
    folder = data_folder(None if table.data_dir is None else Path(table.data_dir))
    settings = ServeSettings(
        upstreams=upstreams,
        store=store_url(table.store, folder),
        folder=folder,
        host=table.host,
        port=table.port,
        allow_open=table.allow_open,
        allow_origins=table.allow_origins,
        keys_required=file.keys.required if keys is None else keys,
        durable=table.durable,
        learn=table.learn,
        logprobs=table.logprobs,
        promise=_over(file.promise, epsilon=risk, delta=delta),
        tariff=tariff.tariff(upstreams[0].price_in or 0.0, upstreams[0].price_out or 0.0),
        audit_rate=file.audit_rate,
        privacy=_over(file.privacy, keep=keep, keep_days=keep_days),
        log_level=table.log_level,
        log_format=table.log_format,
        access_log=table.access_log,
        otlp_endpoint=otlp_endpoint or file.traces.endpoint,
        most_at_once=file.limits.most_at_once,
        max_body_mb=file.limits.max_body_mb if max_body_mb is None else max_body_mb,
        stop_within_s=file.limits.stop_within_s,
    )
    shown = ", then ".join(upstream.ref for upstream in sorted(upstreams, key=lambda each: each.rank))
    home = f"http://{table.host}:{table.port}"
    welcome = f"Puhui serves {home}/v1 in front of {shown}; its pages are at {home}/"
    run(settings, more_routes=dashboard_routes(), ready=lambda: typer.echo(welcome, err=True))


def _over(table: S, **options: Any) -> S:
    """The file's table with what was said on the command line in its place."""
    return msgspec.structs.replace(table, **{name: value for name, value in options.items() if value is not None})


def _big_models(
    file: ServeFile, references: Sequence[str] | None, key_envs: Sequence[str] | None, timeout_s: float | None
) -> tuple[UpstreamSettings, ...]:
    """The upstreams of the command line, or else the file's, with their keys."""
    upstreams = file.upstream
    if references:
        names: Sequence[str | None] = key_envs or [None] * len(references)
        if len(names) != len(references):
            raise SettingsError(
                f"--key-env is given {len(names)} times for {len(references)} --upstream; give one for each, in their "
                "order, or write [[upstream]] tables into a --config file"
            )
        upstreams = tuple(
            UpstreamSettings(ref=reference, key_env=name, rank=rank)
            for rank, (reference, name) in enumerate(zip(references, names, strict=True))
        )
    elif key_envs:
        raise SettingsError("--key-env needs an --upstream; the upstreams of a file have their own key_env")
    if not upstreams:
        raise SettingsError(
            "there is no big model: give --upstream openai:MODEL@URL, or a --config file with [[upstream]]"
        )
    return tuple(_over(each, key=_key(each.key_env), first_token_s=timeout_s) for each in upstreams)


def _key(name: str | None) -> str | None:
    if name is None:
        return None
    key = os.environ.get(name)
    if not key:
        raise SettingsError(f"key_env names {name}, but that environment variable is not set")
    return key


def _with_prices(upstreams: Sequence[UpstreamSettings], *, by_tariff: bool) -> tuple[UpstreamSettings, ...]:
    """Upstreams with the prices that are known of their models, where nothing else was said."""
    if by_tariff:
        return tuple(upstreams)
    priced = []
    for upstream in upstreams:
        model = upstream.ref.removeprefix("openai:").partition("@")[0] if upstream.ref.startswith("openai:") else ""
        if model and upstream.price_in is None and upstream.price_out is None:
            price_in, price_out = token_prices(model) or (None, None)
            upstream = _over(upstream, price_in=price_in, price_out=price_out)
        priced.append(upstream)
    return tuple(priced)
