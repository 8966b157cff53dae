"""`puhui forget`: take away a key's, a request's, a task's or a time's traces. A node may be running."""

from __future__ import annotations

import time
from typing import Annotated

import msgspec
import typer

from puhui.cli.keys_command import find_keys, one_of
from puhui.cli.options import AsJson, DataFolder, StoreUrl, data_folder, store_url
from puhui.gateway.key_ring import KeyRing
from puhui.gateway.traces import seconds_of
from puhui.store.database import Store, open_store
from puhui.store.forgetting import Traces, Wanted, find_traces
from puhui.store.forgetting import forget as take_away
from puhui.store.key_table import KeyTable


def forget(
    key: Annotated[
        str | None, typer.Option(metavar="KEY", help="The requests of this key, by its id or name (revoke it first).")
    ] = None,
    request: Annotated[str | None, typer.Option(metavar="ID", help="One request, by its x-request-id.")] = None,
    task: Annotated[str | None, typer.Option(metavar="NAME", help="All requests of a task, by its name or id.")] = None,
    before: Annotated[
        str | None, typer.Option(metavar="DATE", help="All requests from before this day (UTC), such as 2026-11-01.")
    ] = None,
    now: Annotated[
        bool,
        typer.Option("--now", help="Retire experts that may know them at once, not when others are proven."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask first.")] = False,
    data_dir: DataFolder = None,
    store: StoreUrl = None,
    json: AsJson = False,
) -> None:
    """Delete traces of requests everywhere, for good: texts, answers, ids. The bill's sums stay."""
    wanted = Wanted(key=key, request=request, task=task, before=None if before is None else seconds_of(before))
    opened = open_store(store_url(store, data_folder(data_dir)), create=False)
    try:
        if key is not None:
            wanted = Wanted(key=_id_of(opened, key))
        found = find_traces(opened, wanted)
        if not found.rows and not found.ledger_rows:
            typer.echo("Nothing of it is here: there was none, it is forgotten, or it is still under way.", err=json)
            if json:
                typer.echo(msgspec.json.encode(found).decode())
            return
        if not yes:
            of_whom = "" if wanted.key is None else f"Of the key {wanted.key}: "
            typer.echo(of_whom + _shown(found), err=json)
            typer.confirm("Forget them for good?", abort=True, err=json)
        traces = take_away(opened, wanted, now=time.time(), at_once=now)
    finally:
        opened.close()
    if json:
        typer.echo(msgspec.json.encode(traces).decode())
        return
    typer.echo(f"Forgotten: {_shown(traces)}")
    if traces.experts:
        typer.echo("These experts are " + ("retired, and" if now else "to be replaced:") + " others are learned anew.")
    if not traces.clean:
        typer.echo("Copies may lie unused in the files of the store; to be sure stop the node and run VACUUM.")


def _id_of(store: Store, named: str) -> str:
    """The id of the key of that id or name; as it is where there is none, since requests may outlive their key."""
    found = find_keys(KeyRing(KeyTable(store)), named)
    return one_of(found, named).id if found else named


def _shown(traces: Traces) -> str:
    return (
        f"{traces.rows:,} rows of experience ({traces.texts:,} with text), {traces.ledger_rows:,} of the ledger, "
        f"{traces.contexts:,} system prompts; {len(traces.experts):,} experts may have learned from them"
        + "".join(f"\n  {expert[:12]}" for expert in traces.experts)
    )
