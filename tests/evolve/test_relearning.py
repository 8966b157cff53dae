"""Experts that learned what was forgotten since are replaced by others, proven as any."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import insert, select

import experts as sample
from puhui.bundles.bundle import open_bundle
from puhui.cascade.guarantee import Calibration
from puhui.evolve.gate import Verdict
from puhui.evolve.learner import Learner
from puhui.evolve.memory import Memory, Progress
from puhui.evolve.traffic import Task
from puhui.store.database import Store
from puhui.store.forgetting import Wanted, forget
from puhui.store.tables import contexts, experience, experts, ledger
from puhui.trust.keys import load_or_create_key

GROUP = "context:learned"
TASK = Task("task-learned", "learned", GROUP, "m")
PROVEN = Verdict(True, Calibration(0.5, 0.9, 0, 0.0, 0.01, 0.02, 0.05, 500), "proven")


def remember(store: Store, count: int, first: int = 0) -> None:
    rows = [
        {
            "id": f"r{number}",
            "at": float(number),
            "group": GROUP,
            "input": text,
            "answer": sample.subject_of(text),
            "coin": number % 5 < 3,
            "key": "k1" if number % 7 == 0 else "k2",
        }
        for number, text in enumerate(sample.questions(count, seed=first + 1), first)
    ]
    with store.begin() as connection:
        if not first:
            connection.execute(insert(contexts), {"group": GROUP, "model": "m", "text": "Which subject?"})
            big = {"id": "r0", "at": 0.0, "kind": "request", "model": "m", "by": "big:m", "joules": 0.1}
            connection.execute(insert(ledger), big)
        connection.execute(insert(experience), rows)


def test_a_stale_expert_is_replaced_without_any_gain(store: Store, tmp_path: Path) -> None:
    remember(store, 1_500)
    learner = Learner(Memory(store), tmp_path / "experts", load_or_create_key(tmp_path / "node.key"))
    assert learner.step() == 1
    with store.begin() as connection:
        first = connection.execute(select(experts)).one()
    assert (first.status, first.stale) == ("active", None)
    assert learner.step() == 0

    traces = forget(store, Wanted(key="k1"), now=1e10)
    assert traces.experts == (first.id,)
    remember(store, 400, 1_500)  # too few for an attempt of its own accord, and for a proof
    assert learner.step() == 0
    remember(store, 1_100, 1_900)
    assert learner.step() == 1
    with store.begin() as connection:
        rows = {row.id: row for row in connection.execute(select(experts))}
    (second,) = (row for row in rows.values() if row.status == "active")
    assert (rows[first.id].status, second.stale) == ("retired", None)
    card, _ = open_bundle(Path(second.folder), expert=second.id)
    assert card.rows <= 1_500 * 6 / 7 + 600
    assert learner.step() == 0


def test_an_attempt_is_brought_forward_once(store: Store, tmp_path: Path) -> None:
    remember(store, 10)
    memory = Memory(store)
    memory.add_task(TASK)
    memory.promote(TASK, Progress(attempts=1, next_rows=1_000), "e1", tmp_path, PROVEN)
    learner = Learner(memory, tmp_path / "experts", load_or_create_key(tmp_path / "node.key"))
    for step in range(3):
        assert learner.step() == 0
        ((_, progress),) = memory.tasks()
        assert (progress.next_rows, progress.relearned) == ((1_000, ""), (30, "e1"), (30, "e1"))[step]
        if not step:
            forget(store, Wanted(request="r3"), now=1.0)
    held = memory.in_place(TASK)
    assert held is not None
    assert held.stale


def test_what_is_forgotten_during_an_attempt_makes_its_expert_stale(store: Store, tmp_path: Path) -> None:
    remember(store, 10)
    memory = Memory(store)
    memory.add_task(TASK)
    before = memory.forgettings(TASK)
    memory.promote(TASK, Progress(attempts=1), "e1", tmp_path, PROVEN, forgettings=before)
    forget(store, Wanted(request="r3"), now=1.0)
    memory.promote(TASK, Progress(attempts=2), "e2", tmp_path, PROVEN, forgettings=before)
    held = memory.in_place(TASK)
    assert held is not None
    assert held.stale
    memory.promote(TASK, Progress(attempts=3), "e3", tmp_path, PROVEN, forgettings=memory.forgettings(TASK))
    held = memory.in_place(TASK)
    assert held is not None
    assert not held.stale
