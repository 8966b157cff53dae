"""Keys in the store: what changes is marked; spending is the ledger's."""

from __future__ import annotations

import msgspec
import pytest
from sqlalchemy import insert

from puhui.core.errors import StoreError
from puhui.store.database import Store, open_store
from puhui.store.key_table import KeyRow, KeyTable
from puhui.store.records import event_row
from puhui.store.tables import ledger

ROW = KeyRow(
    id="key_1", name="one", digest="d" * 64, created=1.0, expires=None, revoked=None, rules={"scopes": ["chat"]}
)


def test_rows_come_back_as_they_went_in(store: Store) -> None:
    table = KeyTable(store)
    assert table.rows() == []
    table.add(ROW)
    table.add(msgspec.structs.replace(ROW, id="key_0", digest="e" * 64, created=0.5, expires=9.0))
    assert [row.id for row in table.rows()] == ["key_0", "key_1"]
    assert table.rows()[1] == ROW
    with pytest.raises(StoreError):
        table.add(msgspec.structs.replace(ROW, id="key_2"))  # the digest is there already


def test_every_change_is_marked_for_all_who_look(store: Store) -> None:
    table, elsewhere = KeyTable(store), open_store(store.url)
    marks = [KeyTable(elsewhere).mark()]
    table.add(ROW)
    marks.append(KeyTable(elsewhere).mark())
    assert table.change("key_1", name="two", rules={})
    marks.append(KeyTable(elsewhere).mark())
    assert table.revoke("key_1", 5.0)
    marks.append(KeyTable(elsewhere).mark())
    assert len(set(marks)) == 4
    assert not table.change("key_9", name="x")
    assert not table.revoke("key_9", 5.0)
    assert KeyTable(elsewhere).mark() == marks[-1]
    (row,) = KeyTable(elsewhere).rows()
    assert (row.name, row.rules, row.revoked) == ("two", {}, 5.0)
    assert table.revoke("key_1", 7.0)
    assert table.rows()[0].revoked == 5.0  # it ended when it first was
    elsewhere.close()


def test_spending_is_that_of_answers_since_then(store: Store) -> None:
    def row(kind: str, key: str, at: float, status: int = 200) -> dict[str, object]:
        used = {"joules": 10.0, "cost": 0.25, "prompt_tokens": 3, "completion_tokens": 4, "status": status}
        return event_row(kind, at=at, task=None, expert=None, note="") | used | {"key": key}

    with store.begin() as connection:
        for one in (
            row("request", "a", 100.0),
            row("request", "a", 150.0),
            row("request", "a", 99.0),
            row("request", "a", 160.0, 502),
            row("audit", "a", 150.0),
            row("request", "b", 150.0),
            row("request", "", 150.0),
        ):
            connection.execute(insert(ledger).values(one))
    spent = {row.key: row for row in KeyTable(store).spent_since(100.0)}
    assert spent.keys() == {"a", "b"}
    assert (spent["a"].requests, spent["a"].tokens, spent["a"].joules, spent["a"].money) == (2, 14, 20.0, 0.5)
