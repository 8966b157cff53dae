"""`puhui keys`: make, list, show and revoke the keys of a node. A node that runs sees it within a second."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from puhui.cli.options import AsJson, DataFolder, StoreUrl, data_folder, store_url
from puhui.core.errors import SettingsError, UnknownModel
from puhui.gateway.admin import row_of, shown_key
from puhui.gateway.allowance import Allowances
from puhui.gateway.key_ring import KeyRing
from puhui.store.database import open_store
from puhui.store.key_table import KeyTable
from puhui.trust.api_keys import ApiKey, new_key, read_rules

keys_app = typer.Typer(help="The keys of a node, and what each may do and spend.", no_args_is_help=True)

DAY_S = 86_400.0
Named = Annotated[str, typer.Argument(help="A key's id (its beginning is enough) or its name.")]


@keys_app.command()
def new(
    name: Annotated[str, typer.Argument(help="Whose key it is.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(help="chat, embeddings, read or admin; may be repeated.", show_default="chat and embeddings"),
    ] = None,
    days: Annotated[float | None, typer.Option(help="Days until it expires.", show_default="never")] = None,
    requests: Annotated[int | None, typer.Option(help="Most requests a minute.", show_default="no limit")] = None,
    tokens: Annotated[int | None, typer.Option(help="Most tokens a minute.", show_default="no limit")] = None,
    money_day: Annotated[float | None, typer.Option(help="Most money a day.", show_default="no limit")] = None,
    money_month: Annotated[float | None, typer.Option(help="Most money a month.", show_default="no limit")] = None,
    kwh_day: Annotated[float | None, typer.Option(help="Most kWh a day.", show_default="no limit")] = None,
    kwh_month: Annotated[float | None, typer.Option(help="Most kWh a month.", show_default="no limit")] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="A model that it may ask for; may be repeated.", show_default="any"),
    ] = None,
    share: Annotated[bool, typer.Option("--share", help="Learn experts together with all keys that share.")] = False,
    keep: Annotated[
        str | None,
        typer.Option(help="Most that is kept of its texts: nothing, redacted or whole.", show_default="as the node"),
    ] = None,
    data_dir: DataFolder = None,
    store: StoreUrl = None,
    json: AsJson = False,
) -> None:
    """Make a key. It is shown once, now: what is kept is a digest of it."""
    rules = {
        "scopes": scope or None,
        "requests_per_minute": requests,
        "tokens_per_minute": tokens,
        "money_per_day": money_day,
        "money_per_month": money_month,
        "kwh_per_day": kwh_day,
        "kwh_per_month": kwh_month,
        "models": model or None,
        "share": share or None,
        "keep": keep,
    }
    shown, key = new_key(name, read_rules(rules), expires=_expires(days))
    with _table(store, data_dir, create=True) as table:
        table.add(row_of(key))
    if json:
        _echo(shown_key(key, time.time()) | {"key": shown})
        return
    typer.echo(shown)
    typer.echo(f"The key {key.id} of {key.name}. Keep it safe: it cannot be shown again.", err=True)


@keys_app.command("list")
def list_keys(data_dir: DataFolder = None, store: StoreUrl = None, json: AsJson = False) -> None:
    """Every key that ever was: its state, scopes, and what it has used this month."""
    with _table(store, data_dir) as table:
        allowances = Allowances(table)
        found = [_shown(key, allowances) for key in KeyRing(table).keys]
    if json:
        _echo({"keys": found})
        return
    drawn = Table(title="Keys, and what each has used this month", box=box.SIMPLE)
    drawn.add_column("id", no_wrap=True)
    for column in ("name", "state", "scopes"):
        drawn.add_column(column, overflow="fold")
    for column in ("answers", "money", "kWh"):
        drawn.add_column(column, justify="right", no_wrap=True)
    for row in found:
        month = row["spent"]["month"]
        cells = (row["id"], row["name"], row["state"], ", ".join(row["rules"]["scopes"]))
        drawn.add_row(*cells, f"{month['requests']:,}", f"{month['money']:.4f}", f"{month['kwh']:.5f}")
    Console().print(drawn)


@keys_app.command()
def show(key: Named, data_dir: DataFolder = None, store: StoreUrl = None, json: AsJson = False) -> None:
    """One key: its rules, and what it has used this day and month."""
    with _table(store, data_dir) as table:
        found = _shown(_find(KeyRing(table), key), Allowances(table))
    if json:
        _echo(found)
        return
    typer.echo(f"{found['id']} of {found['name']}, {found['state']}")
    typer.echo(f"  made {_day(found['created'])}, expires {_day(found['expires'])}, revoked {_day(found['revoked'])}")
    for name, value in found["rules"].items():
        typer.echo(f"  {name}: {', '.join(value) if isinstance(value, list | tuple) else value}")
    for period, spent in found["spent"].items():
        used = f"{spent['requests']:,} answers, {spent['money']:.6f} money, {spent['kwh']:.6f} kWh"
        typer.echo(f"  this {period}: {used}")


@keys_app.command()
def revoke(key: Named, data_dir: DataFolder = None, store: StoreUrl = None, json: AsJson = False) -> None:
    """End a key for good. A node that runs refuses it within a second."""
    with _table(store, data_dir) as table:
        found = _find(KeyRing(table), key)
        table.revoke(found.id, time.time())
        after = KeyRing(table).get(found.id) or found
    if json:
        _echo(shown_key(after, time.time()))
    else:
        typer.echo(f"{after.id} of {after.name} is revoked")


@contextmanager
def _table(store: str | None, data_dir: Path | None, *, create: bool = False) -> Iterator[KeyTable]:
    opened = open_store(store_url(store, data_folder(data_dir)), create=create)
    try:
        yield KeyTable(opened)
    finally:
        opened.close()


def _find(ring: KeyRing, named: str) -> ApiKey:
    found = [key for key in ring.keys if named and key.id.startswith(named)]
    found = found or [key for key in ring.keys if key.name == named]
    if len(found) != 1:
        what = "no key has the id or name" if not found else f"{len(found)} keys have the id or name"
        raise UnknownModel(f"{what} {named!r}; `puhui keys list` shows them")
    return found[0]


def _shown(key: ApiKey, allowances: Allowances) -> dict[str, Any]:
    now = time.time()
    return shown_key(key, now) | {"spent": allowances.of(key).spent(now)}


def _expires(days: float | None) -> float | None:
    if days is None:
        return None
    if not 0.0 < days < 100_000.0:
        raise SettingsError(f"--days is {days}, but must be more than 0 and less than 100000")
    return time.time() + days * DAY_S


def _day(at: float | None) -> str:
    return "never" if at is None else f"{datetime.datetime.fromtimestamp(at, datetime.UTC):%Y-%m-%d}"


def _echo(shown: dict[str, Any]) -> None:
    typer.echo(msgspec.json.encode(shown).decode())
