"""Text that is too old is gone from the rows and from every byte on the disk; what it proved stays."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from sqlalchemy import insert, select, text, update

from puhui.store.database import Store
from puhui.store.retention import sweep, sweep_contexts
from puhui.store.tables import contexts, experience
from puhui.store.write_ahead import empty_log

ROWS, OLD = 1_500, 1_200


def fill(store: Store, seed: int) -> None:
    """Rows as a node writes them, audits among them that are answered a little later and grow their rows."""
    draw = random.Random(seed)
    late: list[int] = []
    with store.begin() as connection:
        for number in range(1, ROWS + 1):
            words = f"SECRET{number:06d} " + "word " * draw.randint(2, 60 if draw.random() < 0.98 else 2_000)
            audit = draw.random() < 0.5
            row = {"id": f"r{number}", "at": float(number), "group": "context:1", "input": words, "coin": audit}
            row |= {"expert": "e" if audit else None, "expert_answer": "yes" if audit else None}
            row |= {"body": draw.choice(["", f'{{"x": "{words}"}}']) if audit else None}
            connection.execute(insert(experience), row | {"answer": None if audit else "no"})
            late += [number] if audit else []
            if len(late) > 8:
                which = late.pop(draw.randrange(len(late)))
                done = {"answer": f"ANSWER{which:06d}", "alternatives": ["v" * draw.randint(0, 300)], "body": None}
                connection.execute(update(experience).where(experience.c.number == which).values(loss=1.0, **done))


def sweep_all(store: Store, before: float) -> int:
    swept = 0
    while more := sweep(store, before):
        swept += more
    return swept


def left_on_disk(folder: Path) -> set[int]:
    """The numbers of all rows of which any text can still be read in any file."""
    data = b"".join(path.read_bytes() for path in folder.iterdir() if path.is_file())
    return {int(number) for number in re.findall(rb"(?:SECRET|ANSWER)(\d{6})", data)}


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_byte_of_old_text_is_left(store: Store, tmp_path: Path, seed: int) -> None:
    fill(store, seed)
    assert set(range(1, ROWS + 1)) <= left_on_disk(tmp_path)
    with store.begin() as connection:
        before = connection.execute(select(experience.c.number, experience.c.loss, experience.c.coin)).all()
        kept = connection.execute(select(experience).where(experience.c.number > OLD)).all()
    assert sweep_all(store, OLD + 0.5) == OLD
    assert empty_log(store)
    assert left_on_disk(tmp_path) == set(range(OLD + 1, ROWS + 1))
    with store.begin() as connection:
        after = connection.execute(select(experience.c.number, experience.c.loss, experience.c.coin)).all()
        assert after == before
        assert connection.execute(select(experience).where(experience.c.number > OLD)).all() == kept
        gone = connection.execute(select(experience).where(experience.c.number <= OLD)).all()
    assert {(row.input, row.answer, row.expert_answer, row.body, row.alternatives) for row in gone} == {
        ("", None, None, None, None)
    }
    assert store.check() == "ok"
    assert sweep(store, OLD + 0.5) == 0


def test_a_loss_that_was_never_written_down_is_not_lost(store: Store) -> None:
    """As in a store from before losses were: none where the texts agree, the greatest where they do not."""
    usual = {"group": "g", "at": 1.0, "input": "x", "coin": True, "expert": "e", "body": None}
    with store.begin() as connection:
        for number, (given, answer) in enumerate([("a", "a "), ("a", "b"), (None, "b"), (None, None)]):
            connection.execute(
                insert(experience), usual | {"id": f"r{number}", "expert_answer": given, "answer": answer}
            )
        connection.execute(insert(experience), usual | {"id": "r", "coin": False, "answer": "b", "expert_answer": None})
    assert sweep_all(store, 2.0) == 5
    with store.begin() as connection:
        losses = connection.execute(select(experience.c.loss).order_by(experience.c.number)).scalars().all()
    assert losses == [0.0, 1.0, 0.0, None, None]


def test_old_rows_are_found_by_the_index(store: Store) -> None:
    with store.begin() as connection:
        plan = connection.execute(
            text(
                "EXPLAIN QUERY PLAN SELECT number FROM experience WHERE (input <> '' OR answer IS NOT NULL OR "
                "expert_answer IS NOT NULL OR body <> '') AND at < 1 ORDER BY at LIMIT 9"
            )
        ).all()
    assert "experience_text_at" in str(plan)


def test_system_prompts_go_when_no_row_has_text(store: Store, tmp_path: Path) -> None:
    with store.begin() as connection:
        for number, group in enumerate(("old", "new", "none yet")):
            connection.execute(insert(contexts), {"group": group, "model": "m", "text": f"SECRET{number:06d} prompt"})
        for number, group in enumerate(("old", "old", "new", "new")):
            row = {"id": "r", "at": float(number), "group": group, "input": "x", "answer": "y", "coin": False}
            connection.execute(insert(experience), row)
    assert sweep_contexts(store) == 0
    assert sweep_all(store, 2.5) == 3
    assert sweep_contexts(store) == 1
    assert empty_log(store)
    with store.begin() as connection:
        assert [row.text[-6:] for row in connection.execute(select(contexts))] == ["", "prompt", "prompt"]
    assert left_on_disk(tmp_path) == {1, 2}
    assert sweep_contexts(store) == 0
