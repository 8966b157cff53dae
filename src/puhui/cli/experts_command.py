"""`puhui experts`: list them, show a card, verify a bundle."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from sqlalchemy import select

from puhui.cli.options import AsJson, DataFolder, StoreUrl, data_folder, store_url
from puhui.compress.bundle import CARD_FILE, open_bundle
from puhui.core.errors import BundleError, UnknownModel
from puhui.store.database import open_store
from puhui.store.tables import experts, tasks

experts_app = typer.Typer(help="The experts of a store, and their bundles.", no_args_is_help=True)


@experts_app.command("list")
def list_experts(data_dir: DataFolder = None, store: StoreUrl = None, json: AsJson = False) -> None:
    """Every expert that ever was: its task, state, coverage and proven risk, and why it ended."""
    rows = _rows(store, data_dir)
    if json:
        typer.echo(msgspec.json.encode(rows).decode())
        return
    table = Table(title="Experts")
    for column in ("id", "task", "status", "coverage", "proven risk", "ended because"):
        table.add_column(column, overflow="fold")
    for row in rows:
        cells = (row["id"][:12], row["task_name"], row["status"], f"{row['coverage']:.1%}")
        table.add_row(*cells, f"≤ {row['risk_bound']:.2%}", row["reason"] or "")
    Console().print(table)


@experts_app.command()
def show(
    expert: Annotated[str, typer.Argument(help="An expert's id (its beginning is enough) or a bundle's folder.")],
    data_dir: DataFolder = None,
    store: StoreUrl = None,
) -> None:
    """Print an expert's card."""
    card = _find(expert, store, data_dir)[0] / CARD_FILE
    try:
        typer.echo(card.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{card} cannot be read: {error}") from error


@experts_app.command()
def verify(
    expert: Annotated[str, typer.Argument(help="An expert's id (its beginning is enough) or a bundle's folder.")],
    data_dir: DataFolder = None,
    store: StoreUrl = None,
) -> None:
    """Check every digest and the signature of a bundle; exit code 2 and the file's name if one is wrong."""
    folder, id = _find(expert, store, data_dir)
    card, model = open_bundle(folder, expert=id)
    typer.echo(f"{folder} is whole and signed: task {card.task_name!r}, {len(model.labels)} labels")


def _rows(store: str | None, data_dir: Path | None) -> list[dict[str, Any]]:
    opened = open_store(store_url(store, data_folder(data_dir)), create=False)
    query = (
        select(experts, tasks.c.name.label("task_name"))
        .join(tasks, tasks.c.id == experts.c.task)
        .order_by(experts.c.created)
    )
    with opened.begin() as connection:
        rows = [dict(row) for row in connection.execute(query).mappings()]
    opened.close()
    return rows


def _find(expert: str, store: str | None, data_dir: Path | None) -> tuple[Path, str | None]:
    """The folder of a bundle, and the id that it must have, if it was asked for by that."""
    if os.path.isdir(expert):
        if not (Path(expert) / CARD_FILE).is_file():
            raise BundleError(f"{expert} is no expert's bundle: it has no {CARD_FILE}")
        return Path(expert), None
    found = [row for row in _rows(store, data_dir) if row["id"].startswith(expert)]
    if len(found) != 1:
        what = "no expert's id begins" if not found else f"{len(found)} experts' ids begin"
        raise UnknownModel(f"{what} with {expert!r}; `puhui experts list` shows them")
    return Path(found[0]["folder"]), found[0]["id"]
