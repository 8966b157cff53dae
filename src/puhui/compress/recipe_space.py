"""The recipes as Optuna's parameters, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from puhui.compress.profiles import Profile
from puhui.compress.recipes import CascadeRecipe, EncoderRecipe, Recipe, StaticRecipe, family_of

if TYPE_CHECKING:
    import optuna

CHARS = {"3-4": (3, 4), "3-5": (3, 5), "2-4": (2, 4)}
LAYERS: dict[str, tuple[int, ...] | None] = {
    "0": (0,),
    "0-1": (0, 1),
    "0-2": (0, 1, 2),
    "0-3": (0, 1, 2, 3),
    "all": None,
}
INNER = (1.0, 0.5, 0.25)
TOKENS = (2_000, 10_000, 30_000)
"""Of the base's vocabulary, beside those of the texts."""
CELLS = (250_000, 24_000_000)
PENALTY = (1e-7, 1e-5)
RATE = (1e-4, 6e-4)
EPOCHS = (2, 4, 8)
WEIGHTS = ("int8", "float32")
WORDS = {"none": (False, True), "means": (True, False), "order": (True, True)}
"""Whether a static recipe has word vectors, and whether by where they stand as well."""


class Space:
    """What may be suggested for a device."""

    def __init__(self, profile: Profile, *, with_base: bool) -> None:
        """Without a base encoder only static recipes, without word vectors, remain."""
        wanted = ("static", "encoder", "cascade") if with_base else ("static",)
        self._families = [family for family in wanted if profile.allows(family)]
        self._words = list(WORDS) if with_base else ["none"]

    def suggest(self, trial: optuna.Trial) -> Recipe:
        """The recipe of a trial's parameters."""
        family = trial.suggest_categorical("family", self._families)
        if family == "static":
            return self._static(trial)
        if family == "encoder":
            return self._encoder(trial)
        return CascadeRecipe(self._static(trial), self._encoder(trial))

    def trial_of(self, recipe: Recipe, values: Sequence[float], over: float) -> optuna.trial.FrozenTrial:
        """A finished trial: what is known of a recipe. `over` is by how much it breaks the limits, 0 if it does not."""
        import optuna

        given: dict[str, Any] = {"family": family_of(recipe)}
        static = recipe.first if isinstance(recipe, CascadeRecipe) else recipe
        encoder = recipe.then if isinstance(recipe, CascadeRecipe) else recipe
        if isinstance(static, StaticRecipe):
            given |= {"cells": static.max_cells, "penalty": static.penalty, "precision": static.precision}
            given |= {"chars": "-".join(map(str, static.chars)), "words": _words_of(static)}
        if isinstance(encoder, EncoderRecipe):
            layers = next(name for name, layers in LAYERS.items() if layers == encoder.layers)
            given |= {"layers": layers, "epochs": encoder.epochs, "rate": encoder.learning_rate}
            given |= {"inner": encoder.inner, "tokens": encoder.common_tokens, "weights": encoder.precision}
        known = self._distributions()
        return optuna.trial.create_trial(
            params=given,
            distributions={name: known[name] for name in given},
            values=values,
            constraints={"limits": over},  # kept where it is 0 or less
        )

    def _static(self, trial: optuna.Trial) -> StaticRecipe:
        word_vectors, word_order = WORDS[trial.suggest_categorical("words", self._words)]
        return StaticRecipe(
            max_cells=trial.suggest_int("cells", *CELLS, log=True),
            chars=CHARS[trial.suggest_categorical("chars", list(CHARS))],
            penalty=trial.suggest_float("penalty", *PENALTY, log=True),
            precision=4 if trial.suggest_categorical("precision", (4, 8)) == 4 else 8,
            word_vectors=word_vectors,
            word_order=word_order,
        )

    def _encoder(self, trial: optuna.Trial) -> EncoderRecipe:
        return EncoderRecipe(
            layers=LAYERS[trial.suggest_categorical("layers", list(LAYERS))],
            inner=trial.suggest_categorical("inner", INNER),
            common_tokens=trial.suggest_categorical("tokens", TOKENS),
            precision="int8" if trial.suggest_categorical("weights", WEIGHTS) == "int8" else "float32",
            epochs=trial.suggest_categorical("epochs", EPOCHS),
            learning_rate=trial.suggest_float("rate", *RATE, log=True),
        )

    def _distributions(self) -> dict[str, Any]:
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        return {
            "family": CategoricalDistribution(self._families),
            "cells": IntDistribution(*CELLS, log=True),
            "chars": CategoricalDistribution(list(CHARS)),
            "penalty": FloatDistribution(*PENALTY, log=True),
            "precision": CategoricalDistribution((4, 8)),
            "words": CategoricalDistribution(self._words),
            "layers": CategoricalDistribution(list(LAYERS)),
            "inner": CategoricalDistribution(INNER),
            "tokens": CategoricalDistribution(TOKENS),
            "weights": CategoricalDistribution(WEIGHTS),
            "epochs": CategoricalDistribution(EPOCHS),
            "rate": FloatDistribution(*RATE, log=True),
        }


def _words_of(recipe: StaticRecipe) -> str:
    if not recipe.word_vectors:
        return "none"
    return "order" if recipe.word_order else "means"
