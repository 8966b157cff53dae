"""`puhui experts`: list them, show a card, verify a bundle, export it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import msgspec
import platformdirs
import typer
from rich.console import Console
from rich.table import Table
from sqlalchemy import make_url, select

from puhui.bundles.bundle import CARD_FILE, Signed, open_bundle, read_card
from puhui.bundles.card_page import PAGE_FILE, render_card
from puhui.bundles.expert_export import Form, export_expert
from puhui.bundles.probes import PROBES_FILE, TEXTS, probe
from puhui.cli.expert_sheet import print_card
from puhui.cli.options import AsJson, DataFolder, StoreUrl, data_folder, store_url
from puhui.core.errors import BundleError, SettingsError, StoreError, UnknownModel
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


Named = Annotated[str, typer.Argument(help="An expert's id (its beginning is enough) or a bundle's folder.")]


@experts_app.command()
def show(
    expert: Named,
    data_dir: DataFolder = None,
    store: StoreUrl = None,
    json: AsJson = False,
    html: Annotated[bool, typer.Option("--html", help="Print the path of the card's page, card.html.")] = False,
) -> None:
    """An expert's card: what it is, what was proven of it, sizes, speeds, trade-offs and confusions."""
    folder, id = _find(expert, store, data_dir)
    signed = read_card(folder, expert=id)
    if json:
        typer.echo((folder / CARD_FILE).read_text(encoding="utf-8"))
    elif html:
        typer.echo(_page(folder, signed))
    else:
        print_card(signed, Console())


@experts_app.command()
def verify(expert: Named, data_dir: DataFolder = None, store: StoreUrl = None) -> None:
    """Check every digest and the signature of a bundle, and that it answers here as where it was made.

    Exit code 2, and the file's name, if one is wrong.
    """
    folder, id = _find(expert, store, data_dir)
    signed = read_card(folder, expert=id)
    card, model = open_bundle(folder, expert=signed.id)
    typer.echo(f"{folder} is whole and signed: task {card.task_name!r}, {len(model.labels)} labels")
    typer.echo(f"family  {card.family}\nid      {signed.id}\nkey     {signed.key}")
    if PROBES_FILE in card.files:
        probed = probe(model, (folder / PROBES_FILE).read_bytes(), card.calibration.get("threshold"))
        typer.echo(f"answers {probed.same} of {probed.texts} texts as where it was made, off by {probed.furthest:.0e}")
    for name, digest in card.files.items():
        typer.echo(f"{digest}  {name}")


@experts_app.command()
def export(
    expert: Named,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write; it must not hold anything yet.")],
    form: Annotated[Form, typer.Option("--format", help="The form to write.")],
    texts: Annotated[
        Path | None,
        typer.Option(help="Texts to compare the export on, one a line.", show_default="a handful that is built in"),
    ] = None,
    data_dir: DataFolder = None,
    store: StoreUrl = None,
    json: AsJson = False,
) -> None:
    """Write an expert as ONNX, static weights or a repository for Hugging Face, and compare it with the bundle."""
    folder, id = _find(expert, store, data_dir)
    exported = export_expert(folder, out, form, expert=id, texts=_lines(texts) if texts else TEXTS)
    if json:
        typer.echo(msgspec.json.encode(exported._asdict() | {"folder": str(exported.folder)}).decode())
        return
    typer.echo(f"{exported.folder}: answers as the bundle does on {exported.texts:,} texts")
    for name in exported.files:
        typer.echo(f"  {name}")


def _page(folder: Path, signed: Signed) -> Path:
    """The page in the bundle, or one made from the card, in the user's cache."""
    if PAGE_FILE in signed.card.files:
        return folder / PAGE_FILE
    place = Path(platformdirs.user_cache_dir("puhui", appauthor=False)) / "cards" / f"{signed.id[:24]}.html"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(render_card(signed.card, key=signed.key, id=signed.id), encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"the page {place} cannot be written: {error.strerror or error}") from error
    return place


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--texts {path} cannot be read: {error}; give a text file, one text a line") from error


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
    if os.path.isfile(expert):
        folder = next((each for each in Path(expert).absolute().parents if (each / CARD_FILE).is_file()), None)
        raise BundleError(
            f"{expert} is a file, and no expert's bundle"
            + (f": it lies in one, so give that folder, {folder}" if folder else "; give the folder of one, or an id")
        )
    none = f"{expert!r} is no bundle's folder and no expert's id"
    try:
        rows = _rows(store, data_dir)
    except StoreError as error:
        raise StoreError(f"{none}: {error}") from error
    found = [row for row in rows if row["id"].startswith(expert)]
    if not found:
        place = make_url(store_url(store, data_folder(data_dir))).render_as_string(hide_password=True)
        raise UnknownModel(f"{none} in the store at {place}; `puhui experts list` shows them")
    if len(found) > 1:
        raise UnknownModel(f"{len(found)} experts' ids begin with {expert!r}; `puhui experts list` shows them")
    return Path(found[0]["folder"]), found[0]["id"]
