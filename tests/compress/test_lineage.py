"""What the card names as an ancestor, and how."""

from __future__ import annotations

from pathlib import Path

import pytest

from puhui.compress import lineage
from puhui.compress.lineage import lineage_of, name_of
from puhui.compress.recipes import CascadeRecipe, EncoderRecipe, Recipe, ShapeRecipe, StaticRecipe
from puhui.models.encoder import PACKAGED
from puhui.teachers.teacher import TeacherOptions
from puhui.teachers.teachers import open_teacher

TEACHER = open_teacher(str.upper, TeacherOptions(name="upper"))


@pytest.mark.parametrize(
    ("recipe", "family", "role"),
    [
        (StaticRecipe(), "static", None),
        (StaticRecipe(word_vectors=True), "static", "word vectors"),
        (EncoderRecipe(), "encoder", "pretrained encoder"),
        (CascadeRecipe(StaticRecipe(), EncoderRecipe()), "cascade", "pretrained encoder"),
        (CascadeRecipe(StaticRecipe(), EncoderRecipe()), "static", None),
        (ShapeRecipe(), "number", None),
        (ShapeRecipe(word_vectors=True), "number", "word vectors"),
    ],
)
def test_the_base_is_an_ancestor_where_it_was_used(
    tmp_path: Path, recipe: Recipe, family: str, role: str | None
) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert [one.role for one in lineage_of(tmp_path, recipe, family, TEACHER)] == ([role] if role else [])
    assert not lineage_of(None, recipe, family, TEACHER)


def test_the_name_is_not_that_of_a_folder_in_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert name_of(tmp_path / "hub" / "models--BAAI--bge-small" / "snapshots" / "5c38", TEACHER) == "BAAI/bge-small"
    assert name_of(tmp_path / "mine", TEACHER) == "mine"
    monkeypatch.setattr(lineage, "packaged_encoder", lambda: tmp_path / "model")
    assert name_of(tmp_path / "model", TEACHER) == PACKAGED
