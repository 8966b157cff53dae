"""Options that several commands share. An option is read from the command line, then from the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import platformdirs
import typer

from puhui.store.database import sqlite_url

DataFolder = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        envvar="PUHUI_DATA_DIR",
        help="Folder for the store, experts and keys.",
        show_default="the user's data directory",
    ),
]
StoreUrl = Annotated[
    str | None,
    typer.Option("--store", envvar="PUHUI_STORE", help="Database URL.", show_default="SQLite in the data directory"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")]


def data_folder(given: Path | None) -> Path:
    """The folder for everything that is kept."""
    return (given or Path(platformdirs.user_data_dir("puhui", appauthor=False))).absolute()


def store_url(given: str | None, folder: Path) -> str:
    """The store's URL."""
    return given or sqlite_url(folder / "puhui.db")
