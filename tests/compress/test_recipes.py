"""Cascades of several steps from one kitchen: calibrated together, made of kept parts, and what they took."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the workshop extra is not installed")
pytest.importorskip("transformers", reason="the workshop extra is not installed")
pytest.importorskip("onnxscript", reason="the workshop extra is not installed")

from tests.encoders import random_base
from tests.experts import CLASSES, questions, subject_of

from puhui.compress.answer_shape import Label
from puhui.compress.recipes import CascadeRecipe, EncoderRecipe, Kitchen, Material, StaticRecipe
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
