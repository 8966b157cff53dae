"""What an expert was made from other than answers: the pretrained encoder, where its recipe used it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from puhui.bundles.card import Ancestor
from puhui.compress.recipes import CascadeRecipe, EncoderRecipe, Recipe
from puhui.models.encoder import PACKAGED, packaged_encoder
from puhui.teachers.teacher import IsEncoder, Teacher, file_identity

CACHED = "models--"
"""How a folder of Hugging Face's cache begins, before the owner and the name."""


def lineage_of(base: Path | None, recipe: Recipe, family: str, teacher: Teacher) -> tuple[Ancestor, ...]:
    """The base as an ancestor of the model of `family` that `recipe` made, with the digest of its files."""
    if base is None or not _uses_base(recipe, family):
        return ()
    digest = hashlib.sha256(msgspec.json.encode(file_identity(base), order="sorted")).hexdigest()
    role = "word vectors" if family not in ("encoder", "cascade") else "pretrained encoder"
    return (Ancestor(role, name_of(base, teacher), digest),)


def name_of(base: Path, teacher: Teacher) -> str:
    """The big model's own name where the base is its folder, the packaged encoder's, the one in a cache, or the
    folder's."""
    if isinstance(teacher, IsEncoder) and teacher.body == base:
        return teacher.name
    if base == packaged_encoder():
        return PACKAGED
    cached = next((folder.name for folder in base.parents if folder.name.startswith(CACHED)), "")
    return cached.removeprefix(CACHED).replace("--", "/") or base.name


def _uses_base(recipe: Recipe, family: str) -> bool:
    """A cascade of which the static step alone is left uses no more than that step does."""
    if isinstance(recipe, EncoderRecipe):
        return True
    if isinstance(recipe, CascadeRecipe):
        return family != "static" or recipe.first.word_vectors
    return recipe.word_vectors
