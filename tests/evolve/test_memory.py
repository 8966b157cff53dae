"""The store as the learning loop sees it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select

import experts as sample
from puhui.core.answer import Energy, Usage
from puhui.evolve.memory import Memory, Progress, answers_of
from puhui.evolve.traffic import Task
from puhui.store.database import Store
from puhui.store.records import event_row
from puhui.store.tables import contexts, experience, experts, ledger
from puhui.trust.keys import load_or_create_key

TASK = Task("task-1", "mail", "context:1", "m", "Sort: ", "!")


def remember(store: Store, *rows: dict[str, Any]) -> None:
    usual = {"at": 1.0, "group": "context:1", "alternatives": None, "coin": False}
    usual |= {"expert": None, "expert_answer": None, "body": None, "task": None}
    with store.begin() as connection:
        for number, row in enumerate(rows):
            connection.execute(insert(experience), usual | {"id": f"r{number}", "input": f"q{number}"} | row)


def test_rows_are_the_big_models_answers_in_order(store: Store) -> None:
    remember(
        store,
        {"answer": " a\n", "alternatives": [["a", -0.1], ["b", -2.0]]},
        {"answer": None, "body": "{}"},
        {"answer": "b", "coin": True},
        {"answer": "c", "group": "context:2"},
    )
    rows = Memory(store).rows("context:1")
    assert answers_of(rows) == ["a", "b"]
    assert [row.coin for row in rows] == [False, True]
    assert [list(each) for each in rows[0].alternatives or ()] == [["a", -0.1], ["b", -2.0]]
    assert rows[1].alternatives is None
    assert Memory(store).rows("context:3") == []


def test_groups_are_counted(store: Store) -> None:
    with store.begin() as connection:
        for group in ("context:1", "context:2", "context:3"):
            connection.execute(insert(contexts), {"group": group, "model": "m", "text": f"text of {group}"})
    remember(store, {"answer": "a"}, {"answer": "a"}, {"answer": None}, {"answer": "b", "group": "context:2"})
    assert sorted(Memory(store).groups()) == [
        ("context:1", "m", "text of context:1", 3),
        ("context:2", "m", "text of context:2", 1),
    ]


def test_groups_are_counted_on(store: Store) -> None:
    with store.begin() as connection:
        connection.execute(insert(contexts), {"group": "context:1", "model": "m", "text": ""})
    memory = Memory(store)
    for rows in (1, 2, 3):
        remember(store, {"answer": "a"})
        assert memory.groups() == [("context:1", "m", "", rows)]


def test_the_sample_ends_where_an_audit_is_due(store: Store) -> None:
    memory = Memory(store)
    assert memory.judged_before("context:1") == 0
    remember(store, {"answer": "a", "coin": True}, {"answer": "a"})
    assert memory.judged_before("context:1") == 3
    remember(store, {"body": "{}", "coin": True}, {"answer": "a", "coin": True}, {"coin": True})
    assert memory.judged_before("context:1") == 3
    assert memory.judged_before("context:2") == 0


def test_tasks_and_their_progress_are_kept(store: Store) -> None:
    memory = Memory(store)
    memory.add_task(TASK)
    assert memory.tasks() == [(TASK, Progress())]
    memory.save(TASK, Progress(attempts=3, next_rows=500))
    assert Memory(store).tasks() == [(TASK, Progress(attempts=3, next_rows=500))]


def test_a_promotion_retires_the_one_before(store: Store, tmp_path: Path) -> None:
    key = load_or_create_key(tmp_path / "k")
    first, place, task = sample.promote(store, tmp_path, key, "context:1")
    second, _, _ = sample.promote(store, tmp_path, key, "context:1", threshold=0.7)
    assert first != second
    memory = Memory(store)
    held = memory.in_place(task)
    assert held is not None
    assert (held.id, held.threshold) == (second, 0.7)
    assert memory.demoted(task) is None
    with store.begin() as connection:
        old = connection.execute(select(experts).where(experts.c.id == first)).one()
        assert (old.status, Path(old.folder)) == ("retired", place)
        assert second[:12] in old.reason
        kinds = connection.execute(select(ledger.c.kind, ledger.c.expert).order_by(ledger.c.number)).all()
    assert [tuple(row) for row in kinds] == [("promotion", first), ("promotion", second)]


def test_joules_of_the_big_model(store: Store) -> None:
    memory = Memory(store)
    assert memory.joules_of_big(TASK) == 0.0

    def row(joules: float, **more: Any) -> dict[str, Any]:
        usage = Usage(energy=Energy(joules, joules, joules))
        made = event_row("request", at=1.0, task="task-1", expert=None, note="", usage=usage, id="r")
        return made | {"model": "m"} | more

    with store.begin() as connection:
        connection.execute(insert(ledger), [row(50.0, task=None), row(70.0, task=None)])
    assert memory.joules_of_big(TASK) == pytest.approx(60.0)
    others = [row(99.0, status=502), row(99.0, expert="e"), row(99.0, kind="audit"), row(99.0, task="task-2")]
    with store.begin() as connection:
        connection.execute(insert(ledger), [row(2.0), row(4.0), *others])
    assert memory.joules_of_big(TASK) == pytest.approx(3.0)


def test_what_learning_used_is_in_the_ledger(store: Store) -> None:
    Memory(store).note("learning", TASK, "tried", Usage(cpu_seconds=2.0, energy=Energy(12.0, 4.0, 24.0)))
    with store.begin() as connection:
        row = connection.execute(select(ledger)).one()
    assert (row.kind, row.task, row.note, row.cpu_seconds, row.joules) == ("learning", "task-1", "tried", 2.0, 12.0)


def test_of_very_many_rows_the_newest_are_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("puhui.evolve.memory.MOST_ROWS", 3)
    remember(store, *({"answer": answer} for answer in "abcde"))
    assert answers_of(Memory(store).rows("context:1")) == ["c", "d", "e"]
