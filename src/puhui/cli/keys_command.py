"""`puhui keys`: make, list, show, change and revoke the keys of a node. A node that runs sees it within a second."""

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
from puhui.trust.api_keys import ApiKey, checked_name, new_key, read_rules

keys_app = typer.Typer(help="The keys of a node, and what each may do and spend.", no_args_is_help=True)

DAY_S = 86_400.0
SHORTEST_ID = len("key_") + 4
Named = Annotated[str, typer.Argument(help="A key's id (its beginning is enough) or its name.")]
Scopes = Annotated[
    list[str] | None,
    typer.Option(help="chat, embeddings, read or admin; may be repeated. A new key has chat and embeddings."),
]
Days = Annotated[float | None, typer.Option(help="Days from now until it expires.")]
Requests = Annotated[int | None, typer.Option(help="Most requests a minute.")]
Tokens = Annotated[int | None, typer.Option(help="Most tokens a minute.")]
MoneyDay = Annotated[float | None, typer.Option(help="Most money a day.")]
MoneyMonth = Annotated[float | None, typer.Option(help="Most money a month.")]
KwhDay = Annotated[float | None, typer.Option(help="Most kWh a day.")]
KwhMonth = Annotated[float | None, typer.Option(help="Most kWh a month.")]
Models = Annotated[list[str] | None, typer.Option(help="A model that it may ask for; may be repeated.")]
Share = Annotated[bool | None, typer.Option("--share", help="Learn experts together with all keys that share.")]
Inherit = Annotated[bool | None, typer.Option("--inherit", help="Go on with what was learned before there were keys.")]
Keeps = Annotated[str | None, typer.Option(help="Most that is kept of its texts: nothing, redacted or whole.")]
Limits = tuple[int | None, int | None, float | None, float | None, float | None, float | None]

_LIMITS = {
    "requests": "requests_per_minute",
    "tokens": "tokens_per_minute",
    "money-day": "money_per_day",
    "money-month": "money_per_month",
    "kwh-day": "kwh_per_day",
    "kwh-month": "kwh_per_month",
}
_OTHERS = {"days": "expires", "model": "models", "share": "share", "inherit": "inherit", "keep": "keep"}


@keys_app.command()
def new(
    name: Annotated[str, typer.Argument(help="Whose key it is.")],
    scope: Scopes = None,
    days: Days = None,
    requests: Requests = None,
    tokens: Tokens = None,
    money_day: MoneyDay = None,
    money_month: MoneyMonth = None,
    kwh_day: KwhDay = None,
    kwh_month: KwhMonth = None,
    model: Models = None,
    share: Share = None,
    inherit: Inherit = None,
    keep: Keeps = None,
    data_dir: DataFolder = None,
    store: StoreUrl = None,
    json: AsJson = False,
) -> None:
    """Make a key. It is shown once, now: what is kept is a digest of it. What no option limits has no limit."""
    limits = (requests, tokens, money_day, money_month, kwh_day, kwh_month)
    rules = read_rules(_rules(scope, limits, model, share, inherit, keep))
    shown, key = new_key(name, rules, expires=_expires(days))
    with _table(store, data_dir, create=True) as table:
        table.add(row_of(key))
    if json:
        _echo(shown_key(key, time.time()) | {"key": shown})
        return
    typer.echo(shown)
    typer.echo(f"The key {key.id} of {key.name}. Keep it safe: it cannot be shown again.", err=True)


@keys_app.command()
def change(
    key: Named,
    name: Annotated[str | None, typer.Option(help="Another name.")] = None,
    scope: Scopes = None,
    days: Days = None,
    requests: Requests = None,
    tokens: Tokens = None,
    money_day: MoneyDay = None,
    money_month: MoneyMonth = None,
    kwh_day: KwhDay = None,
    kwh_month: KwhMonth = None,
    model: Models = None,
    share: Share = None,
    inherit: Inherit = None,
    keep: Keeps = None,
    without: Annotated[
        list[str] | None, typer.Option(help="A rule to take away, by the name of its option; may be repeated.")
    ] = None,
    data_dir: DataFolder = None,
    store: StoreUrl = None,
    json: AsJson = False,
) -> None:
    """Change a key's name, end or rules. What no option names stays."""
    limits = (requests, tokens, money_day, money_month, kwh_day, kwh_month)
    taken = _taken_away(without or [])
    rules = _rules(scope, limits, model, share, inherit, keep) | dict.fromkeys(taken - {"expires"})
    with _table(store, data_dir) as table:
        found = _find(KeyRing(table), key)
        values: dict[str, Any] = {"rules": read_rules(found.rules.as_dict() | rules).as_dict()}
        if name is not None:
            values["name"] = checked_name(name)
        if days is not None or "expires" in taken:
            values["expires"] = None if "expires" in taken else _expires(days)
        table.change(found.id, **values)
        after = KeyRing(table).get(found.id) or found
    if json:
        _echo(shown_key(after, time.time()))
    else:
        typer.echo(f"{after.id} of {after.name} is changed; `puhui keys show {after.id}` shows its rules")


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


def _rules(
    scopes: list[str] | None,
    limits: Limits,
    models: list[str] | None,
    share: bool | None,
    inherit: bool | None,
    keep: str | None,
) -> dict[str, Any]:
    """The rules that were given, by their names."""
    rules: dict[str, Any] = dict(zip(_LIMITS.values(), limits, strict=True))
    rules |= {"scopes": scopes or None, "models": models or None, "share": share, "inherit": inherit, "keep": keep}
    return {name: value for name, value in rules.items() if value is not None}


def _taken_away(options: list[str]) -> set[str]:
    """The rules of these options, and `expires` for days."""
    known = _LIMITS | _OTHERS
    if unknown := sorted(set(options) - known.keys()):
        raise SettingsError(f"--without is {unknown[0]!r}; allowed: {', '.join(known)}")
    return {known[option] for option in options}


@contextmanager
def _table(store: str | None, data_dir: Path | None, *, create: bool = False) -> Iterator[KeyTable]:
    opened = open_store(store_url(store, data_folder(data_dir)), create=create)
    try:
        yield KeyTable(opened)
    finally:
        opened.close()


def find_keys(ring: KeyRing, named: str) -> list[ApiKey]:
    """The key of that id; without one, those of that name; without any, those whose id begins so."""
    exact = [key for key in ring.keys if key.id == named] or [key for key in ring.keys if key.name == named]
    shortened = len(named) >= SHORTEST_ID
    return exact or [key for key in ring.keys if shortened and key.id.startswith(named)]


def one_of(found: list[ApiKey], named: str) -> ApiKey:
    """The one that was found. Raises `UnknownModel` where there is none, or several."""
    if len(found) != 1:
        what = "no key has the id or name" if not found else f"{len(found)} keys have the id or name"
        raise UnknownModel(f"{what} {named!r}; `puhui keys list` shows them")
    return found[0]


def _find(ring: KeyRing, named: str) -> ApiKey:
    return one_of(find_keys(ring, named), named)


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
