"""Opening a store, and what one is told when that cannot be done."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import insert, select, text

from puhui.core.errors import StoreError
from puhui.store.database import Store, open_store, sqlite_url
from puhui.store.records import event_row
from puhui.store.tables import about, ledger, metadata


def fill(store: Store, rows: int) -> None:
    with store.begin() as connection:
        note = "x" * 2000
        connection.execute(
            insert(ledger), [event_row("node", at=float(n), task=None, expert=None, note=note) for n in range(rows)]
        )


def count(store: Store) -> int:
    with store.begin() as connection:
        return len(connection.execute(select(ledger.c.number)).all())


def test_a_store_is_made_kept_and_sound(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "deep" / "er" / "puhui.db")
    first = open_store(url)
    fill(first, 3)
    assert first.check() == "ok"
    first.close()
    second = open_store(url)
    assert count(second) == 3
    with second.begin() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar_one() == "wal"
        assert connection.execute(text("PRAGMA synchronous")).scalar_one() == 1
    second.close()


def test_a_new_store_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "data" / "puhui.db"
    made = open_store(sqlite_url(path))
    assert {file.name for file in path.parent.iterdir()} == {"puhui.db", "puhui.db-wal", "puhui.db-shm"}
    assert {_mode(file) for file in path.parent.iterdir()} == {0o600}
    assert _mode(path.parent) == 0o700
    made.close()


def test_what_is_there_keeps_its_mode(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir(mode=0o750)
    open_store(sqlite_url(folder / "puhui.db")).close()
    (folder / "puhui.db").chmod(0o640)
    open_store(sqlite_url(folder / "puhui.db")).close()
    assert (_mode(folder), _mode(folder / "puhui.db")) == (0o750, 0o640)


def _mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_durable_store_waits_for_the_disk(tmp_path: Path) -> None:
    store = open_store(sqlite_url(tmp_path / "a.db"), durable=True)
    with store.begin() as connection:
        assert connection.execute(text("PRAGMA synchronous")).scalar_one() == 2
    store.close()


def test_a_driver_in_the_url_changes_nothing(tmp_path: Path) -> None:
    store = open_store(f"sqlite+pysqlite:///{tmp_path / 'new' / 'a.db'}")
    with store.begin() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar_one() == "wal"
    store.close()


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("puhui.db", "is not a database URL"),
        ("", "is not a database URL"),
        ("nosuch:///x", "nosuch"),
        ("postgresql+nosuch://h/x", "nosuch"),
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
        ("sqlite:////proc/nowhere/puhui.db", "cannot be opened"),
        ("sqlite:////dev/null/puhui.db", "cannot be opened"),
        ("sqlite:////proc/puhui.db", "unable to open"),
        ("postgresql://h:port/x", "is not a database URL"),
    ],
)
def test_urls_that_cannot_be(url: str, told: str) -> None:
    with pytest.raises(StoreError, match=told):
        open_store(url)


def test_a_folder_in_place_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="unable to open"):
        open_store(sqlite_url(tmp_path))


def test_the_password_is_not_shown() -> None:
    for url in ("postgresql+nosuch://me:hunter2@h/x", "nosuch://me:hunter2@h/x", "postgresql://me:hunter2@h:port/x"):
        with pytest.raises(StoreError) as caught:
            open_store(url)
        assert "hunter2" not in str(caught.value)


@pytest.fixture
def read_only(tmp_path: Path) -> str:
    path = tmp_path / "ro.db"
    open_store(sqlite_url(path)).close()
    return f"sqlite:///file:{path}?mode=ro&uri=true"


def test_a_read_only_store(read_only: str) -> None:
    try:
        store = open_store(read_only)
    except StoreError as error:
        assert "writable" in str(error)  # noqa: PT017 - both are right: at once, or at the first write
        return
    with pytest.raises(StoreError, match="make the file and its folder writable"):
        fill(store, 1)
    store.close()


def test_a_full_disk(tmp_path: Path) -> None:
    store = open_store(sqlite_url(tmp_path / "full.db"))
    before = count(store)
    with store.begin() as connection:
        pages = connection.execute(text("PRAGMA page_count")).scalar_one()
        connection.execute(text(f"PRAGMA max_page_count={pages + 1}"))
    with pytest.raises(StoreError, match="free some space"):
        fill(store, 100)
    assert count(store) == before
    assert store.check() == "ok"
    store.close()


@pytest.mark.parametrize("place", ["start", "middle"])
def test_a_corrupt_file(tmp_path: Path, place: str) -> None:
    path = tmp_path / "puhui.db"
    store = open_store(sqlite_url(path))
    fill(store, 500)
    with store.begin() as connection:
        connection.execute(text("PRAGMA user_version=1"))
    store.close()
    with sqlite3.connect(path) as raw:
        raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    raw.close()
    data = bytearray(path.read_bytes())
    assert len(data) > 40 * 4096
    offset = 0 if place == "start" else 20 * 4096
    data[offset : offset + 4096] = b"\xa5" * 4096
    path.write_bytes(data)
    with pytest.raises(StoreError, match="move the file away") as caught:
        open_store(sqlite_url(path))
    assert "puhui.db" in str(caught.value)
    assert path.read_bytes() == bytes(data)


def test_a_file_that_is_something_else(tmp_path: Path) -> None:
    path = tmp_path / "puhui.db"
    path.write_bytes(b"# notes\n" * 400)
    with pytest.raises(StoreError, match="move the file away"):
        open_store(sqlite_url(path))


def test_another_schema(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "puhui.db")
    store = open_store(url)
    with store.begin() as connection:
        connection.execute(about.update().values(value="99"))
    store.close()
    with pytest.raises(StoreError, match="schema 99, this Puhui reads schema 2"):
        open_store(url)


def test_a_store_of_the_first_schema_is_brought_up_to_date(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "puhui.db")
    store = open_store(url)
    with store.begin() as connection:
        connection.execute(insert(ledger), event_row("node", at=1.0, task=None, expert=None, note="a"))
        for table, column in (("ledger", "key"), ("experience", "key"), ("experience", "loss"), ("experts", "stale")):
            connection.execute(text(f"ALTER TABLE {table} DROP COLUMN {column}"))
        connection.execute(text("DROP TABLE keys"))
        connection.execute(about.update().values(value="1"))
    store.close()
    again = open_store(url)
    with again.begin() as connection:
        assert [(row.note, row.key) for row in connection.execute(select(ledger))] == [("a", "")]
        for table in metadata.sorted_tables:
            connection.execute(select(table)).all()
        assert connection.execute(select(about.c.value)).scalar_one() == "2"
    again.close()


def test_a_failed_transaction_leaves_nothing(store: Store) -> None:
    with pytest.raises(StoreError), store.begin() as connection:  # noqa: PT012 - the first must be undone
        connection.execute(insert(ledger), event_row("node", at=1.0, task=None, expert=None, note="a"))
        connection.execute(text("INSERT INTO nowhere VALUES (1)"))
    assert count(store) == 0


OPEN_AT = """
import sys, time
from puhui.store.database import open_store
print("ready", flush=True)
sys.stdin.readline()
open_store(sys.argv[1]).close()
print("ok")
"""


@pytest.mark.parametrize("attempt", range(2))
def test_several_processes_make_one_store(tmp_path: Path, attempt: int) -> None:
    url = sqlite_url(tmp_path / "puhui.db")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN_AT, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    ends = [process.communicate(timeout=30) for process in processes]
    assert [(out, err[-300:]) for out, err in ends] == [("ok\n", "")] * len(processes)
