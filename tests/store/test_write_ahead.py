"""The write-ahead log: moved, emptied, and never long however long the load lasts."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import insert

import puhui.store.journal
from puhui.store.database import Store
from puhui.store.journal import Journal
from puhui.store.records import event_row
from puhui.store.tables import contexts, ledger
from puhui.store.write_ahead import empty_log, log_bytes, move_log


def row(number: int, note_bytes: int = 1000) -> dict[str, Any]:
    return event_row("node", id=f"r{number}", at=1.0, task=None, expert=None, note="x" * note_bytes)


def test_moving_counts_the_pages_and_emptying_leaves_none(store: Store) -> None:
    with store.begin() as connection:
        connection.execute(insert(ledger), [row(number) for number in range(100)])
    assert move_log(store) >= 25
    assert log_bytes(store) > 100_000
    assert empty_log(store)
    assert log_bytes(store) == 0
    store.close()  # the last one who leaves takes it away
    assert log_bytes(store) == 0


def test_a_reader_in_the_way_is_said(store: Store) -> None:
    with store.begin() as connection:
        connection.execute(insert(contexts), {"group": "g", "model": "m", "text": "x"})
    with store.engine.connect() as reading:
        reading.exec_driver_sql("BEGIN")
        reading.exec_driver_sql("SELECT count(*) FROM contexts").all()
        with store.begin() as connection:
            connection.execute(insert(contexts), {"group": "h", "model": "m", "text": "x"})
        assert not empty_log(store)
        reading.rollback()
    assert empty_log(store)


async def test_the_log_stays_short_under_a_load_without_a_pause(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(puhui.store.journal, "CHECKPOINT_EVERY_COMMITS", 50)
    monkeypatch.setattr(puhui.store.journal, "MOST_LOG_PAGES", 200)
    journal = Journal(store)
    longest = written = 0

    async def load(first: int) -> None:
        nonlocal longest, written
        for number in range(first, first + 500):
            await journal.append([(ledger, row(number))])
            longest = max(longest, log_bytes(store))
            written += 1

    await asyncio.gather(*(load(first) for first in range(0, 4000, 1000)))
    await asyncio.to_thread(journal.close)
    assert written == 2000
    assert longest < 12_000_000, "it would have been 16 MB and more"


async def test_large_rows_count_by_their_bytes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(puhui.store.journal, "CHECKPOINT_EVERY_BYTES", 1_000_000)
    monkeypatch.setattr(puhui.store.journal, "MOST_LOG_PAGES", 500)
    journal = Journal(store)
    longest = 0
    for number in range(400):
        await journal.append([(ledger, row(number, note_bytes=100_000))])
        await asyncio.sleep(0.003)  # 30 MB a second, not as fast as the disk's cache
        longest = max(longest, log_bytes(store))
    await asyncio.to_thread(journal.close)
    assert longest < 20_000_000, "it would have been 40 MB and more"
