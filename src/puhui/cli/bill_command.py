"""`puhui bill`."""

from __future__ import annotations

import datetime
import time
from typing import Annotated, Literal

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from puhui.cli.options import AsJson, DataFolder, StoreUrl, data_folder, store_url
from puhui.core.errors import SettingsError
from puhui.energy.tariff import JOULES_PER_KWH
from puhui.node.bill import Bill, Line, draw_up
from puhui.store.database import open_store


def bill(
    by: Annotated[Literal["day", "task", "model", "total"], typer.Option(help="One line for each.")] = "day",
    since: Annotated[str | None, typer.Option(help="First day that counts, as YYYY-MM-DD (UTC).")] = None,
    data_dir: DataFolder = None,
    store: StoreUrl = None,
    currency: Annotated[str, typer.Option(help="Name of the currency of the prices given to serve.")] = "USD",
    json: AsJson = False,
) -> None:
    """The bill as from a power company: requests, energy, CO₂, money, and what the big model alone would have used."""
    opened = open_store(store_url(store, data_folder(data_dir)))
    drawn = draw_up(opened, by, currency=currency, since=_day(since), now=time.time())
    opened.close()
    if json:
        typer.echo(msgspec.json.encode(drawn.as_dict()).decode())
    else:
        print_bill(drawn, Console())


def print_bill(drawn: Bill, console: Console) -> None:
    """The bill as a table."""
    table = Table(title="Bill", caption=_caption(drawn))
    table.add_column(drawn.by, overflow="fold")
    for column in (
        "requests",
        "by expert",
        "proven risk",
        "Wh",
        "… big model alone",
        "gCO₂",
        "…",
        drawn.currency,
        "…",
    ):
        table.add_column(column, justify="right")
    for line in drawn.lines:
        table.add_row(*_cells(line))
    if drawn.by != "total":
        table.add_section()
        table.add_row(*_cells(drawn.total), style="bold")
    console.print(table)


def _cells(line: Line) -> list[str]:
    return [
        line.name,
        f"{line.requests:,}" + (f" (+{line.failed} failed)" if line.failed else ""),
        f"{line.share_by_expert:.1%}",
        "–" if line.proven_risk is None else f"≤ {line.proven_risk:.2%}",
        f"{line.energy.joules / JOULES_PER_KWH * 1000:.3f}",
        f"{line.big_energy.joules / JOULES_PER_KWH * 1000:.3f}",
        f"{line.co2_g:.3f}",
        f"{line.big_co2_g:.3f}",
        f"{line.cost:.6f}",
        f"{line.big_cost:.6f}",
    ]


def _caption(drawn: Bill) -> str:
    energy = drawn.total.energy
    low, high = (value / JOULES_PER_KWH * 1000 for value in (energy.low, energy.high))
    basis = "measured" if energy.measured else "estimated from CPU time and tokens"
    return (
        f"Energy is {basis}: the total lies between {low:.3f} and {high:.3f} Wh. Audits, learning and the node's own "
        "work are in it. Proven risk speaks of agreement with the big model, not of truth."
    )


def _day(given: str | None) -> float | None:
    if given is None:
        return None
    try:
        day = datetime.date.fromisoformat(given)
    except ValueError as error:
        raise SettingsError(f"--since is {given!r}, but must be a day such as 2026-11-21") from error
    return datetime.datetime(day.year, day.month, day.day, tzinfo=datetime.UTC).timestamp()
