"""The journal: shared commits, failures told to each, and nothing acknowledged without its row."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import bindparam, event, exists, insert, select, text, update

from puhui.core.answer import Usage
from puhui.core.errors import StoreError
from puhui.store.database import Store, open_store, sqlite_url
from puhui.store.journal import Journal
from puhui.store.records import event_row
from puhui.store.tables import contexts, ledger


def row(id: str, **more: Any) -> dict[str, Any]:
    return event_row("node", id=id, at=1.0, task=None, expert=None, note="", **more)


def ids(store: Store) -> list[str]:
    with store.begin() as connection:
        return list(connection.execute(select(ledger.c.id).order_by(ledger.c.number)).scalars())


def commits_of(store: Store) -> list[str]:
    """Grows by one with each commit of a connection that is made from now on."""
    seen: list[str] = []

    def note(statement: str) -> None:
        if statement == "COMMIT":
            seen.append(statement)

    store.engine.dispose()
    event.listen(store.engine, "connect", lambda connection, _: connection.set_trace_callback(note))
    return seen


async def test_requests_share_commits(store: Store) -> None:
    commits = commits_of(store)
    journal = Journal(store)
    await asyncio.gather(*(journal.append([(ledger, row(f"r{n}"))]) for n in range(200)))
    assert sorted(ids(store)) == sorted(f"r{n}" for n in range(200))
    assert 0 < len(commits) < 20 + 1
    await asyncio.to_thread(journal.close)


async def test_one_request_alone_waits_for_nobody(store: Store) -> None:
    journal = Journal(store)
    await asyncio.wait_for(journal.append([(ledger, row("alone"))]), 5.0)
    assert ids(store) == ["alone"]
    await asyncio.to_thread(journal.close)


async def test_entries_of_one_request_are_one_transaction(store: Store) -> None:
    journal = Journal(store)
    context = {"group": "g", "model": "m", "text": "t"}
    await journal.append([(ledger, row("a")), (contexts, context)])
    with pytest.raises(StoreError, match="UNIQUE"):
        await journal.append([(ledger, row("b")), (contexts, context)])
    assert ids(store) == ["a"]
    await asyncio.to_thread(journal.close)


async def test_a_failure_is_told_to_each_and_passes(store: Store) -> None:
    journal = Journal(store)
    with store.begin() as connection:
        connection.execute(text("ALTER TABLE ledger RENAME TO away"))
    told = await asyncio.gather(*(journal.append([(ledger, row(f"r{n}"))]) for n in range(20)), return_exceptions=True)
    assert {type(each) for each in told} == {StoreError}
    with store.begin() as connection:
        connection.execute(text("ALTER TABLE away RENAME TO ledger"))
    await journal.append([(ledger, row("after"))])
    assert ids(store) == ["after"]
    await asyncio.to_thread(journal.close)


@pytest.mark.parametrize(
    "bad",
    [row("b", usage=Usage(prompt_tokens=2**70)), row("\ud800"), row("b") | {"path": object()}, row("b") | {"at": None}],
    ids=["too great a number", "a lone surrogate", "no JSON", "missing"],
)
async def test_a_row_that_cannot_be_stored_harms_no_other(store: Store, bad: dict[str, Any]) -> None:
    journal = Journal(store)
    rows = [row(f"r{n}") for n in range(10)]
    rows.insert(5, bad)
    told = await asyncio.wait_for(
        asyncio.gather(*(journal.append([(ledger, each)]) for each in rows), return_exceptions=True), 10.0
    )
    assert isinstance(told[5], StoreError)
    assert [each for each in told if each is not None] == [told[5]]
    await asyncio.wait_for(journal.append([(ledger, row("after"))]), 10.0)
    assert sorted(ids(store)) == sorted([*(f"r{n}" for n in range(10)), "after"])
    await asyncio.to_thread(journal.close)


async def test_an_update_is_an_entry_like_a_row(store: Store) -> None:
    journal = Journal(store)
    noted = (
        update(ledger).where(ledger.c.id == bindparam("which")).values(note=bindparam("said"), path=bindparam("way"))
    )
    await journal.append([(ledger, row("a")), (ledger, row("b") | {"path": [["x", 0.5, True]]})])
    await journal.append([(noted, {"which": "a", "said": "changed", "way": [1]}), (ledger, row("c"))])
    with store.begin() as connection:
        found = connection.execute(select(ledger.c.id, ledger.c.note, ledger.c.path).order_by(ledger.c.number)).all()
    assert [tuple(each) for each in found] == [("a", "changed", [1]), ("b", "", [["x", 0.5, True]]), ("c", "", None)]
    await asyncio.to_thread(journal.close)


@pytest.mark.parametrize("durable", [False, True])
async def test_a_statement_of_its_own_is_committed_with_the_rows(tmp_path: Path, durable: bool) -> None:
    store = open_store(sqlite_url(tmp_path / "own.db"), durable=durable)
    journal = Journal(store)
    unknown = ~exists().where(contexts.c.group == bindparam("group"))
    values = select(*(bindparam(column.name, type_=column.type) for column in contexts.columns)).where(unknown)
    new = insert(contexts).from_select(["group", "model", "text"], values)
    texts = [{"group": f"g{n % 3}", "model": "m", "text": f"t{n % 3}"} for n in range(9)]
    await asyncio.gather(*(journal.append([(ledger, row(f"r{n}")), (new, text)]) for n, text in enumerate(texts)))
    with store.begin() as connection:
        assert sorted(connection.execute(select(contexts.c.text)).scalars()) == ["t0", "t1", "t2"]
    assert len(ids(store)) == 9
    await asyncio.to_thread(journal.close)
    store.close()


async def test_columns_that_a_row_leaves_out_get_their_defaults(store: Store) -> None:
    journal = Journal(store)
    short = {"id": "a", "at": 1.0, "kind": "node"}
    await journal.append([(ledger, short), (ledger, row("b", usage=Usage(prompt_tokens=3)))])
    with store.begin() as connection:
        found = connection.execute(select(ledger).order_by(ledger.c.id)).all()
    assert [(each.id, each.status, each.model, each.key, each.prompt_tokens) for each in found] == [
        ("a", 200, "", "", 0),
        ("b", 200, "", "", 3),
    ]
    await asyncio.to_thread(journal.close)


async def test_while_another_process_writes_the_loop_goes_on(store: Store) -> None:
    journal = Journal(store)
    await journal.append([(ledger, row("first"))])
    with store.begin() as connection:
        connection.execute(insert(ledger), row("slow"))  # holds the store until the block ends
        waiting = asyncio.ensure_future(journal.append([(ledger, row("second"))]))
        await asyncio.sleep(0.2)  # would not end while the loop waited for the store
        assert not waiting.done()
    await asyncio.wait_for(waiting, 10.0)
    await journal.append([(ledger, row("third"))])
    assert ids(store) == ["first", "slow", "second", "third"]
    await asyncio.to_thread(journal.close)


async def test_who_goes_away_undoes_nothing(store: Store) -> None:
    journal = Journal(store)
    gone = asyncio.ensure_future(journal.append([(ledger, row("gone"))]))
    await asyncio.sleep(0)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    await asyncio.to_thread(journal.close)
    assert ids(store) == ["gone"]


async def test_closing_commits_what_waits_and_takes_no_more(store: Store) -> None:
    journal = Journal(store)
    waiting = [asyncio.ensure_future(journal.append([(ledger, row(f"r{n}"))])) for n in range(50)]
    await asyncio.sleep(0)
    await asyncio.to_thread(journal.close)
    await asyncio.gather(*waiting)
    assert len(ids(store)) == 50
    with pytest.raises(StoreError, match="shutting down"):
        await journal.append([(ledger, row("late"))])
    await asyncio.to_thread(journal.close)
    assert "puhui-journal" not in {thread.name for thread in threading.enumerate() if thread.is_alive()}


APPENDER = """
import asyncio, itertools, sys
from puhui.store.database import open_store
from puhui.store.journal import Journal
from puhui.store.records import event_row
from puhui.store.tables import ledger

async def client(journal, name):
    for number in itertools.count():
        id = f"{name}-{number}"
        await journal.append([(ledger, event_row("node", id=id, at=1.0, task=None, expert=None, note="x" * 300))])
        sys.stdout.write(id + "\\n")
        sys.stdout.flush()

async def main():
    journal = Journal(open_store(sys.argv[1]))
    await asyncio.gather(*(client(journal, f"{sys.argv[2]}-{n}") for n in range(50)))

asyncio.run(main())
"""


def test_sigkill_loses_no_acknowledged_row(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "puhui.db")
    draw = random.Random(7)
    acknowledged: list[str] = []
    for life in range(4):
        process = subprocess.Popen([sys.executable, "-c", APPENDER, url, str(life)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        told = process.stdout.readline()  # it is at work
        killer = threading.Timer(0.05 + 0.3 * draw.random(), os.kill, (process.pid, signal.SIGKILL))
        killer.start()
        told += process.stdout.read()
        assert process.wait() == -signal.SIGKILL
        whole_lines = told.decode().split("\n")[:-1]
        assert len(whole_lines) > 10
        acknowledged += whole_lines
        store = open_store(url)
        assert store.check() == "ok"
        kept = ids(store)
        store.close()
        assert set(acknowledged) <= set(kept)
        assert len(set(kept)) == len(kept)
