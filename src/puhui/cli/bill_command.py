"""`puhui bill`."""

from __future__ import annotations

import datetime
import time
from typing import Annotated, Literal

import msgspec
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from puhui.cli.options import AsJson, DataFolder, StoreUrl, data_folder, store_url
from puhui.core.answer import Energy
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
    first = _day(since)
    opened = open_store(store_url(store, data_folder(data_dir)), create=False)
    drawn = draw_up(opened, by, currency=currency, since=first, now=time.time())
    opened.close()
    if json:
        typer.echo(msgspec.json.encode(drawn.as_dict()).decode())
    else:
        print_bill(drawn, Console())


def print_bill(drawn: Bill, console: Console) -> None:
    """The bill as a table: what was used, and below it what the big model alone would have used."""
    table = Table(title="Bill", box=box.SIMPLE, caption=_caption(drawn))
    table.add_column(drawn.by, overflow="fold", ratio=1)
    for column in ("requests", "by expert", "proven risk", "Wh", "gCO₂", drawn.currency):
        table.add_column(column, justify="right", no_wrap=True)
    for line in drawn.lines:
        _add_rows(table, line)
    if drawn.by != "total":
        table.add_section()
        _add_rows(table, drawn.total, style="bold")
    console.print(table)


def _add_rows(table: Table, line: Line, style: str = "") -> None:
    failed = f" (+{line.failed} failed)" if line.failed else ""
    risk = "–" if line.proven_risk is None else f"≤ {line.proven_risk:.2%}"
    share = f"{line.share_by_expert:.1%}"
    used = _amounts(line.energy, line.co2_g, line.cost)
    alone = _amounts(line.big_energy, line.big_co2_g, line.big_cost)
    table.add_row(line.name, f"{line.requests:,}{failed}", share, risk, *used, style=style)
    table.add_row("  big model alone", "", "", "", *alone, style="dim")


def _amounts(energy: Energy, co2_g: float, cost: float) -> tuple[str, str, str]:
    return f"{energy.joules / JOULES_PER_KWH * 1000:.3f}", f"{co2_g:.3f}", f"{cost:.6f}"


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
