"""Options that several commands share. An option is read from the command line, then from the environment."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import platformdirs
import typer

from puhui.core.errors import SettingsError
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
PriceTokens = Annotated[
    str | None,
    typer.Option(
        help="Price of a million tokens read and written by the big model, as IN,OUT.",
        show_default="by the model's name",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")]


def prices_of(given: str | None) -> tuple[float, float] | None:
    """The two prices of `--price-tokens`; None where it is not given. SettingsError for anything but two prices.

    >>> prices_of("2.5,10")
    (2.5, 10.0)
    """
    if given is None:
        return None
    try:
        read, written = (float(part) for part in given.split(","))
    except ValueError as error:
        raise SettingsError(f"--price-tokens is {given!r}, but must be two numbers such as 2.5,10") from error
    if not (0 <= read < math.inf and 0 <= written < math.inf):
        raise SettingsError(f"--price-tokens is {given!r}, but no price is below 0 or without end")
    return read, written


def data_folder(given: Path | None) -> Path:
    """The folder for everything that is kept."""
    return (given or Path(platformdirs.user_data_dir("puhui", appauthor=False))).absolute()


def store_url(given: str | None, folder: Path) -> str:
    """The store's URL."""
    return given or sqlite_url(folder / "puhui.db")
