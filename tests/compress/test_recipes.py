"""Cascades of several steps from one kitchen: calibrated together, made of kept parts, and what they took."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the workshop extra is not installed")
pytest.importorskip("transformers", reason="the workshop extra is not installed")
pytest.importorskip("onnxscript", reason="the workshop extra is not installed")

from tests.encoders import random_base
from tests.experts import CLASSES, questions, subject_of

from puhui.compress.answer_shape import Label
from puhui.compress.recipes import OLD_S, CascadeRecipe, Cooked, EncoderRecipe, Kitchen, Material, Recipe, StaticRecipe
from puhui.core.errors import LearningError
from puhui.models.expert_cascade import CascadeModel

WORDS = sorted({word for words in CLASSES.values() for word in words} | {"about", "my", "and", "or", "the", "number"})
STATIC, SHORT, LONG = StaticRecipe(), EncoderRecipe(layers=(0,), epochs=1), EncoderRecipe(layers=None, epochs=1)


def material(count: int, seed: int) -> Material:
    texts = questions(count, seed=seed)
    return Material(texts, [subject_of(text) for text in texts], Label(tuple(CLASSES)))


def test_three_steps_are_one_expert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = random_base(tmp_path / "base", WORDS)
    kitchen = Kitchen(material(160, 1), tmp_path / "work", base=base, held=material(80, 2))
    shares: list[float] = []
    cooked = kitchen.cook(CascadeRecipe(STATIC, SHORT, LONG), shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    parts = [kitchen.cook(recipe) for recipe in (STATIC, SHORT, LONG)]
    assert cooked.seconds == sum(part.seconds for part in parts)
    assert cooked.cpu_seconds == sum(part.cpu_seconds for part in parts) > 0
    if isinstance(cooked.model, CascadeModel):  # where one step is as good alone, it is the result
        assert len(cooked.model.steps) in (2, 3)
        assert cooked.family == "cascade"
    monkeypatch.setattr(Kitchen, "_build", lambda *_: pytest.fail("it was built before"))
    again = kitchen.cook(CascadeRecipe(STATIC, SHORT, LONG))
    texts = questions(40, seed=3)
    assert again.model.predict_many(texts)[0] == cooked.model.predict_many(texts)[0]
    assert (again.family, again.cpu_seconds) == (cooked.family, cooked.cpu_seconds)
    with pytest.raises(pytest.fail.Exception):  # thresholds for another risk are others
        Kitchen(material(160, 1), tmp_path / "work", base=base, held=material(80, 2), epsilon=0.1).cook(
            CascadeRecipe(STATIC, SHORT, LONG)
        )


def test_another_base_is_another_result(tmp_path: Path) -> None:
    first, same, other = (random_base(tmp_path / f"{n}", WORDS, layers=layers) for n, layers in enumerate((1, 1, 2)))
    digests = [Kitchen(material(60, 1), tmp_path, base=base).digest for base in (None, first, same, other)]
    assert digests[1] == digests[2]
    assert len(set(digests)) == 3


def test_a_cascade_needs_rows_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(LearningError, match="rows kept from learning"):
        Kitchen(material(60, 1), tmp_path).cook(CascadeRecipe(STATIC, SHORT))


def test_names_say_every_step() -> None:
    assert CascadeRecipe(STATIC, SHORT, LONG).name.count(" → ") == 2
    assert CascadeRecipe(STATIC, SHORT).steps == (STATIC, SHORT)


def test_two_that_build_the_same_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have built it before either writes it down: the second finds the first one's."""
    build, both, kitchens = Kitchen._build, threading.Barrier(3), [Kitchen(material(60, 1), tmp_path) for _ in range(3)]

    def built(self: Kitchen, recipe: Recipe, *more: object) -> Cooked:
        cooked = build(self, recipe, lambda share: None)
        both.wait(60)
        return cooked

    monkeypatch.setattr(Kitchen, "_build", built)
    with ThreadPoolExecutor(3) as pool:
        cooked = list(pool.map(lambda kitchen: kitchen.cook(STATIC), kitchens))
    texts = questions(20, seed=3)
    assert len({tuple(one.model.predict_many(texts)[0]) for one in cooked}) == 1
    monkeypatch.setattr(Kitchen, "_build", lambda *_: pytest.fail("it was built before"))
    assert kitchens[0].cook(STATIC).seconds in {one.seconds for one in cooked}
    (folder,) = tmp_path.iterdir()
    assert len(list(folder.iterdir())) == 2  # the model and its note, and no draft


def test_what_is_damaged_is_built_again(tmp_path: Path) -> None:
    kitchen = Kitchen(material(60, 1), tmp_path)
    kitchen.cook(STATIC)
    (weights,) = tmp_path.rglob("*.safetensors")
    weights.write_bytes(b"rubbish")
    kitchen.cook(STATIC)
    assert weights.stat().st_size > 100


def test_drafts_of_killed_runs_go_and_those_of_others_stay(tmp_path: Path) -> None:
    Kitchen(material(60, 1), tmp_path)
    (folder,) = tmp_path.iterdir()
    for name in (".old", ".new"):
        (folder / name / "model").mkdir(parents=True)
    at = (folder / ".old").stat().st_mtime - OLD_S - 60
    os.utime(folder / ".old", (at, at))
    Kitchen(material(60, 1), tmp_path)
    assert [path.name for path in folder.iterdir()] == [".new"]
