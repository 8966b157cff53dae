"""`puhui demo`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from puhui.cli.options import AsJson
from puhui.core.settings import Promise


def demo(
    big: Annotated[
        str | None, typer.Option(help="Your own big model, openai:MODEL@URL, in place of the demo's.")
    ] = None,
    key_env: Annotated[str | None, typer.Option(help="Name of the environment variable with its key.")] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help='Your own requests: JSON Lines with "text" and, if known, "label".', show_default="cloud services"
        ),
    ] = None,
    system: Annotated[str, typer.Option(help="System prompt for --data.", show_default="made of the labels")] = "",
    drift: Annotated[
        bool, typer.Option("--drift", help="Change the big model's answers half-way, on a part of the classes.")
    ] = False,
    requests: Annotated[
        int | None, typer.Option(min=1, help="Send no more than this many.", show_default="all")
    ] = None,
    clients: Annotated[int, typer.Option(min=1, help="Clients that ask at once.")] = 3,
    rate: Annotated[
        float | None,
        typer.Option(min=0.1, help="Requests a second.", show_default="the next when the last is answered"),
    ] = None,
    risk: Annotated[float, typer.Option(help="ε of the guarantee.")] = 0.02,
    delta: Annotated[float, typer.Option(help="δ of the guarantee.")] = 0.05,
    seed: Annotated[int, typer.Option(help="Seed of the order of the requests.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder of results.", show_default="demo-results/<time>")] = None,
    json: AsJson = False,
) -> None:
    """Watch the whole loop: a big model's traffic becomes a proven small expert and a bill."""
    from puhui.demo.run import DemoSettings, run_demo  # PyTorch: only this command waits for it

    settings = DemoSettings(
        out=(out or Path("demo-results") / time.strftime("%Y%m%d-%H%M%S")).absolute(),
        big=big,
        key_env=key_env,
        data=data,
        system=system,
        requests=requests,
        clients=clients,
        rate=rate,
        drift=drift,
        seed=seed,
        promise=Promise(risk, delta),
    )
    try:
        result = run_demo(settings, Console(stderr=json))
    except KeyboardInterrupt:
        typer.echo("puhui demo: ended; its processes are gone", err=True)
        sys.exit(130)
    if json:
        typer.echo(msgspec.json.encode(result).decode())
