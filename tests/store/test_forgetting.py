"""Forgetting takes everything of a key, a request, a task or a time, and nothing else; all of it or none."""

from __future__ import annotations

import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, insert, select

from puhui.core.errors import SettingsError, UnknownModel
from puhui.store.database import Store, open_store, sqlite_url
from puhui.store.forgetting import FORGOTTEN, Wanted, find_traces, forget
from puhui.store.tables import contexts, experience, experts, keys, ledger, tasks

NOW = 10_000.0


def fill(store: Store, count: int = 60) -> None:
    """Two tasks, two keys, an expert of each task from in between, and a third before all."""
    task = {"model": "m", "prefix": "", "suffix": "", "created": 0.0, "state": {}}
    expert = {"status": "active", "folder": "f", "threshold": 0.5, "coverage": 0.5, "risk_bound": 0.01}
    expert |= {"epsilon": 0.02, "delta": 0.05}
    key = {"digest": "", "created": 0.0, "rules": {}}
    with store.begin() as connection:
        connection.execute(insert(keys), [key | {"id": id, "name": id, "digest": id} for id in ("k1", "k2")])
        for name in ("a", "b"):
            connection.execute(insert(contexts), {"group": f"g{name}", "model": "m", "text": f"prompt of {name}"})
            connection.execute(insert(tasks), task | {"id": f"t{name}", "name": f"task {name}", "group": f"g{name}"})
            connection.execute(insert(experts), expert | {"id": f"e{name}", "task": f"t{name}", "created": count / 2})
        connection.execute(
            insert(experts), expert | {"id": "early", "task": "ta", "created": -1.0, "status": "retired"}
        )
        rows, of_ledger = [], []
        for number in range(count):
            name, key = "ab"[number % 2], ("k1", "k2")[number % 3 == 0]
            row = {"id": f"r{number}", "at": float(number), "key": key}
            rows.append(row | {"group": f"g{name}", "input": f"SECRET{number:06d}", "answer": "x", "coin": True})
            more = {"kind": "request", "task": f"t{name}", "model": "m", "joules": 1.0, "cost": 0.5, "note": "why"}
            of_ledger.append(row | more)
        connection.execute(insert(experience), rows)
        connection.execute(insert(ledger), of_ledger)


def texts(store: Store) -> set[int]:
    with store.begin() as connection:
        found = connection.execute(select(experience.c.input).where(experience.c.input != "")).scalars()
        return {int(each[6:]) for each in found}


def stale(store: Store) -> list[str]:
    with store.begin() as connection:
        return list(
            connection.execute(
                select(experts.c.id).where(experts.c.stale.is_not(None)).order_by(experts.c.id)
            ).scalars()
        )


def sums(store: Store) -> Any:
    query = select(func.count(), func.sum(ledger.c.joules), func.sum(ledger.c.cost), func.max(ledger.c.number))
    with store.begin() as connection:
        return connection.execute(query.where(ledger.c.kind == "request")).one()


def on_disk(folder: Path, what: bytes) -> bool:
    return any(what in path.read_bytes() for path in folder.iterdir() if path.is_file())


@pytest.mark.parametrize(
    ("wanted", "numbers", "made_stale"),
    [
        (Wanted(key="k2"), range(0, 60, 3), ["ea", "eb"]),
        (Wanted(request="r7"), [7], ["eb"]),
        (Wanted(request="r41"), [41], []),
        (Wanted(task="task a"), range(0, 60, 2), ["ea"]),
        (Wanted(task="tb"), range(1, 60, 2), ["eb"]),
        (Wanted(before=20.0), range(20), ["ea", "eb"]),
    ],
    ids=["key", "request", "late request", "task by name", "task by id", "time"],
)
def test_what_goes_and_what_stays(
    store: Store, tmp_path: Path, wanted: Wanted, numbers: range | list[int], made_stale: list[str]
) -> None:
    fill(store)
    before, found = sums(store), find_traces(store, wanted)
    assert (found.rows, found.texts, found.ledger_rows) == (len(numbers),) * 3
    assert sorted(found.experts) == made_stale
    taken = forget(store, wanted, now=NOW)
    assert taken.clean
    assert (taken.rows, taken.texts, taken.ledger_rows, taken.contexts, taken.experts) == (
        (found.rows, found.texts, found.ledger_rows, found.contexts, found.experts)
    )
    assert texts(store) == set(range(60)) - set(numbers)
    assert stale(store) == made_stale
    assert sums(store) == before
    assert not any(on_disk(tmp_path, b"SECRET%06d" % number) for number in numbers)
    with store.begin() as connection:
        for table in (experience, ledger):
            whose = connection.execute(select(table.c.key, table.c.id).where(table.c.at.in_(list(map(float, numbers)))))
            assert {tuple(row) for row in whose} == {(FORGOTTEN, FORGOTTEN)}
        notes = connection.execute(select(ledger.c.task).where(ledger.c.kind == "forgetting")).scalars().all()
    assert len(notes) == len({number % 2 for number in numbers})
    assert find_traces(store, wanted).rows == (len(numbers) if wanted.task else 0)
    assert find_traces(store, wanted).texts == 0


def test_the_system_prompt_goes_with_the_last_row_of_its_task(store: Store, tmp_path: Path) -> None:
    fill(store)
    assert forget(store, Wanted(task="task a"), now=NOW).contexts == 1
    assert not on_disk(tmp_path, b"prompt of a")
    assert on_disk(tmp_path, b"prompt of b")


def test_experts_are_retired_at_once_if_wanted(store: Store) -> None:
    fill(store)
    forget(store, Wanted(task="task a"), now=NOW, at_once=True)
    with store.begin() as connection:
        rows = {row.id: row for row in connection.execute(select(experts))}
        events = connection.execute(select(ledger.c.expert).where(ledger.c.kind == "retirement")).scalars().all()
    assert (rows["ea"].status, rows["ea"].ended, rows["eb"].status) == ("retired", NOW, "active")
    assert events == ["ea"]


def test_rows_of_a_template_are_its_tasks(store: Store) -> None:
    fill(store, 2)
    with store.begin() as connection:
        task = {"id": "tt", "name": "template", "group": "bare:1", "model": "m", "created": 0.0, "state": {}}
        connection.execute(insert(tasks), task | {"prefix": "Sort 100%: ", "suffix": "!"})
        for number, words in enumerate(("Sort 100%: me!", "Sort 100% me!", "Sort 100%: me", "else")):
            row = {"id": f"b{number}", "at": 1.0, "group": "bare:1", "input": words, "answer": "x", "coin": False}
            connection.execute(insert(experience), row)
    assert forget(store, Wanted(task="template"), now=NOW).rows == 1
    with store.begin() as connection:
        left = connection.execute(select(experience.c.input).where(experience.c.group == "bare:1")).scalars().all()
    assert left == ["", "Sort 100% me!", "Sort 100%: me", "else"]


@pytest.mark.parametrize("given", [{}, {"key": "a", "task": "b"}, {"key": ""}, {"request": FORGOTTEN}])
def test_exactly_one_thing_is_forgotten(given: dict[str, str]) -> None:
    with pytest.raises(SettingsError):
        Wanted(**given)


def test_a_task_that_is_not_there(store: Store) -> None:
    with pytest.raises(UnknownModel, match="no task 'x'"):
        find_traces(store, Wanted(task="x"))
    for look in (find_traces, partial(forget, now=NOW)):
        with pytest.raises(UnknownModel, match="no key has the id 'x'"):
            look(store, Wanted(key="x"))


KILLED = """
import sys, time
from puhui.store.database import open_store
from puhui.store.forgetting import Wanted, forget
store = open_store(sys.argv[1])
print("ready", flush=True)
sys.stdin.read(1)
forget(store, Wanted(key="k1"), now=1.0)
print("done", flush=True)
"""


def test_killed_in_the_middle_it_leaves_all_or_nothing(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "puhui.db")
    store = open_store(url)
    fill(store, 3_000)
    ours = {number for number in range(3_000) if number % 3}
    for pause_ms in (5, 20, 40, 100):
        command = [sys.executable, "-c", KILLED, url]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            process.stdin.write(b"x")
            process.stdin.flush()
            time.sleep(pause_ms / 1000.0)
            process.kill()
        left = texts(store) & ours
        assert left in (set(), ours)
        with store.begin() as connection:
            named = connection.execute(select(func.count()).where(ledger.c.key == "k1")).scalar_one()
        assert named == len(left)
        assert bool(stale(store)) == (not left)
        if not left:
            break
    assert store.check() == "ok"
    forget(store, Wanted(key="k1"), now=NOW)
    assert not texts(store) & ours
    store.close()
