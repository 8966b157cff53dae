"""The ledger's sums, read bit by bit, are those of reading it all."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import insert

from puhui.node.bill import DAY_S, bill_of, read_sums
from puhui.node.running_sums import HOUR_S, RunningSums
from puhui.store.database import open_store, sqlite_url
from puhui.store.records import event_row
from puhui.store.tables import ledger

NOW = 1_795_300_000.0

rows = st.builds(
    lambda ago, task, model, kind, expert, status, joules: (
        event_row(kind, at=NOW - ago, task=task, expert=expert, note="")
        | {"model": model, "status": status, "joules": joules, "joules_low": joules / 2, "joules_high": joules * 2}
    ),
    st.floats(0, 3 * DAY_S),
    st.sampled_from([None, "task-1", "task-2"]),
    st.sampled_from(["m", "n"]),
    st.sampled_from(["request", "audit", "learning", "node"]),
    st.sampled_from([None, "e1"]),
    st.sampled_from([200, 502]),
    st.floats(0.001, 10.0),
)


@settings(max_examples=8)
@given(st.lists(st.lists(rows, max_size=12), min_size=1, max_size=4))
def test_bit_by_bit_is_the_same_as_at_once(batches: list[list[dict[str, object]]]) -> None:
    with TemporaryDirectory() as folder:
        store = open_store(sqlite_url(Path(folder) / "puhui.db"))
        running = RunningSums(store)
        for batch in batches:
            if batch:
                with store.begin() as connection:
                    connection.execute(insert(ledger), batch)
            for since, step_s in ((None, DAY_S), (NOW // DAY_S * DAY_S, HOUR_S)):
                told = [
                    bill_of(sums, store, "slot", currency="USD", now=NOW)
                    for sums in (running.read(since=since, step_s=step_s), read_sums(store, since, step_s))
                ]
                one, other = told
                assert [line.name for line in one.lines] == [line.name for line in other.lines]
                assert one.total.requests == other.total.requests
                assert one.total.by_expert == other.total.by_expert
                assert one.total.energy.joules == pytest.approx(other.total.energy.joules)
                assert one.total.big_energy.joules == pytest.approx(other.total.big_energy.joules)
        store.close()


def test_what_is_read_does_not_change_what_is_kept(tmp_path: Path) -> None:
    store = open_store(sqlite_url(tmp_path / "puhui.db"))
    with store.begin() as connection:
        for kind in ("node", "learning"):
            connection.execute(
                insert(ledger), event_row(kind, at=NOW, task=None, expert=None, note="") | {"joules": 1.0}
            )
    running = RunningSums(store)
    for _ in range(3):
        assert sum(one.rows for one in running.read(step_s=DAY_S)) == 2
    store.close()
