"""`puhui forget`, as a user types it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import insert, select
from typer.testing import CliRunner

from puhui.cli.main import app
from puhui.core.errors import PuhuiError, UnknownModel
from puhui.gateway.admin import row_of
from puhui.store.database import Store, open_store, sqlite_url
from puhui.store.key_table import KeyTable
from puhui.store.tables import experience
from puhui.trust.api_keys import Rules, new_key


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Store]:
    """A store in a data folder, with three requests of two keys."""
    store = open_store(sqlite_url(tmp_path / "puhui.db"))
    with store.begin() as connection:
        for number, key in enumerate(("k1", "k2", "k1")):
            row = {"id": f"r{number}", "at": number * 86_400.0, "group": "g", "coin": False, "answer": "x"}
            connection.execute(insert(experience), row | {"input": f"text {number}", "key": key})
    yield store
    store.close()


def texts(store: Store) -> list[str]:
    with store.begin() as connection:
        return list(connection.execute(select(experience.c.input).order_by(experience.c.number)).scalars())


def run(folder: Path, *arguments: str, say: str = "") -> str:
    ran = CliRunner().invoke(app, ["forget", "--data-dir", str(folder), *arguments], input=say)
    if isinstance(ran.exception, PuhuiError):
        raise ran.exception
    assert ran.exit_code == (1 if say == "n\n" else 0), ran.output
    return ran.stdout


def test_it_asks_first(held: Store, tmp_path: Path) -> None:
    shown = run(tmp_path, "--key", "k1", say="n\n")
    assert "2 rows of experience (2 with text)" in shown
    assert "Forgotten" not in shown
    assert texts(held) == ["text 0", "text 1", "text 2"]
    assert "Forgotten: 2 rows" in run(tmp_path, "--key", "k1", say="y\n")
    assert texts(held) == ["", "text 1", ""]


def test_for_machines(held: Store, tmp_path: Path) -> None:
    told = json.loads(run(tmp_path, "--before", "1970-01-02", "--yes", "--json"))
    assert told == {"rows": 1, "texts": 1, "ledger_rows": 0, "contexts": 0, "experts": [], "clean": True}
    assert texts(held) == ["", "text 1", "text 2"]


def test_a_key_goes_by_its_name_or_its_id_or_without_either_by_its_requests(held: Store, tmp_path: Path) -> None:
    _, team = new_key("team", Rules())
    team = msgspec.structs.replace(team, id="k1")
    KeyTable(held).add(row_of(team))
    run(tmp_path, "--key", "team", "--yes")
    assert texts(held) == ["", "text 1", ""]
    run(tmp_path, "--key", "k2", "--yes")
    assert texts(held) == ["", "", ""]
    assert "Nothing of it is here" in run(tmp_path, "--key", "team", "--yes")
    with pytest.raises(UnknownModel, match="no key has the id 'k2'"):
        run(tmp_path, "--key", "k2", "--yes")
    for _ in range(2):
        KeyTable(held).add(row_of(new_key("twice", Rules())[1]))
    with pytest.raises(UnknownModel, match="2 keys have the id or name 'twice'"):
        run(tmp_path, "--key", "twice", "--yes")


def test_a_request_that_is_not_here_is_told(held: Store, tmp_path: Path) -> None:
    assert "Nothing of it is here" in run(tmp_path, "--request", "none")
    assert json.loads(run(tmp_path, "--request", "none", "--json"))["rows"] == 0
    assert texts(held) == ["text 0", "text 1", "text 2"]


@pytest.mark.parametrize(
    "arguments",
    [(), ("--key", "none"), ("--key", "k1", "--request", "r1"), ("--before", "yesterday"), ("--task", "none")],
)
def test_what_cannot_be_is_said(held: Store, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    with pytest.raises(PuhuiError):
        run(tmp_path, *arguments, "--yes")
    assert texts(held) == ["text 0", "text 1", "text 2"]
