"""The search for the smallest, fastest expert that still says what the big model says, on one device.

First a ladder of recipes, cheapest first: the search ends at the first one that keeps the floor within the device's
limits, so that an easy task costs seconds. Beyond the ladder Optuna suggests (TPE, Bergstra et al. 2011, with the
limits as constraints): agreement up, milliseconds and bytes down. Each candidate learns from one part of the answers
and is judged on the other; the guarantee is later calibrated on neither.

Every candidate is written down in the folder when it is judged: a search that was interrupted goes on where it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from puhui.cascade.agreement import agreements, is_whole
from puhui.cascade.guarantee import calibrate_threshold, errors_allowed, loss_allowed
from puhui.compress.answer_shape import Label, Shape, rule_of
from puhui.compress.cascade_training import coverage
from puhui.compress.profiles import Footprint, Miss, Profile, measure_here
from puhui.compress.recipe_space import Space
from puhui.compress.recipes import (
    CascadeRecipe,
    Cooked,
    EncoderRecipe,
    Kitchen,
    Material,
    Recipe,
    ShapeRecipe,
    StaticRecipe,
)
from puhui.compress.shape_training import FAMILY_OF
from puhui.core.errors import BundleError, LearningError, MissingExtra, PuhuiError, SettingsError
from puhui.core.settings import Promise

LADDER: tuple[Recipe, ...] = (
    StaticRecipe(max_cells=1_000_000),
    StaticRecipe(),
    StaticRecipe(max_cells=12_000_000),
    StaticRecipe(max_cells=12_000_000, word_vectors=True),
    EncoderRecipe(layers=(0,)),
    CascadeRecipe(StaticRecipe(), EncoderRecipe(layers=(0,))),
    EncoderRecipe(layers=(0, 1, 2)),
    CascadeRecipe(StaticRecipe(), EncoderRecipe(layers=(0, 1, 2))),
    EncoderRecipe(layers=None),
    CascadeRecipe(StaticRecipe(), EncoderRecipe(layers=None)),
)
SHAPE_LADDER: tuple[Recipe, ...] = (ShapeRecipe(), ShapeRecipe(max_cells=12_000_000, word_vectors=True))
"""Cheapest first, and each step worth its price on the benchmarks (`bench.compress`)."""
JUDGED = 2
"""Raise it where candidates are judged otherwise than they were: what was written of them is then not read."""
SUGGESTIONS = 20  # draws of Optuna's until one is new


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A recipe, built and judged.

    `family` is the model's. `agreement` and `coverage` (the share that may be answered at the promised risk, `proven`
    or as these rows show it) are of `rows` held-out answers, `footprint` is that of this machine, `training_s` the
    seconds of building, `misses` are the device's limits that it does not keep, the worst first.
    """

    recipe: Recipe
    family: str
    agreement: float
    coverage: float
    rows: int
    footprint: Footprint
    training_s: float
    proven: bool = True
    misses: tuple[Miss, ...] = ()

    @property
    def name(self) -> str:
        """A few words for people."""
        return self.recipe.name

    def beats(self, other: Candidate) -> bool:
        """At least as good in agreement, time and bytes, and better in one (Pareto)."""
        mine, its = self._figures, other._figures
        return mine != its and all(a >= b for a, b in zip(mine, its, strict=True))

    @property
    def _figures(self) -> tuple[float, float, float]:
        return self.agreement, -self.footprint.latency_ms, -self.footprint.bytes


class Failed(msgspec.Struct, frozen=True):
    """A recipe that could not be built, and why."""

    recipe: Recipe
    why: str


class Found(msgspec.Struct, frozen=True):
    """The end of a search: every candidate in the order of building, the chosen one (None: nothing will do), and what
    could not be built."""

    tried: tuple[Candidate, ...]
    chosen: Candidate | None
    why: str
    failed: tuple[Failed, ...] = ()


class Goal(msgspec.Struct, frozen=True, kw_only=True):
    """What a search looks for: `keep` is the floor of the agreement in [0, 1], on the device `profile`.

    It ends after `trials` candidates or `seconds`, at the latest, and at the floor unless it is `thorough`.
    """

    profile: Profile = Profile(name="this")
    keep: float = 0.98
    promise: Promise = Promise()
    trials: int = 24
    seconds: float | None = None
    thorough: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.keep <= 1.0:
            raise SettingsError(f"keep is {self.keep}, but must be a share from 0 to 1")
        if self.trials < 1:
            raise SettingsError(f"trials is {self.trials}, but at least 1 candidate must be built")
        if self.seconds is not None and not self.seconds >= 0:
            raise SettingsError(f"the seconds of search are {self.seconds}, but must be 0 or more")


class Search:
    """One search. `show` is told of each candidate once it is judged, `progress` of the share of one being built, and
    `note` of what could not be built.

    `ceiling` is the most that any expert can agree, as far as that is known.
    """

    def __init__(
        self,
        taught: Material,
        held: Material,
        goal: Goal,
        folder: Path,
        *,
        base: Path | None = None,
        seed: int = 0,
        show: Callable[[Candidate], None] = lambda candidate: None,
        progress: Callable[[Recipe, float], None] = lambda recipe, share: None,
        note: Callable[[str], None] = lambda text: None,
        ceiling: float = 1.0,
    ) -> None:
        self.kitchen = Kitchen(
            taught, folder / "candidates", base=base, held=held, epsilon=goal.promise.epsilon, seed=seed
        )
        self._held = held
        self._goal = goal
        self._rule = rule_of(held.shape)
        self._with_base = base is not None
        self._seed = seed
        self._show = show
        self._progress = progress
        self._note = note
        self._ceiling = ceiling
        judged_by = [self.kitchen.digest, held.digest, goal.promise.epsilon, goal.promise.delta, JUDGED]
        digest = hashlib.sha256(msgspec.json.encode(judged_by)).hexdigest()
        self._book = folder / f"judged-{digest[:16]}.jsonl"
        self._known = _read_book(self._book)
        self._tried: dict[Recipe, Candidate] = {}
        self._failed: dict[Recipe, PuhuiError] = {}

    @property
    def proves(self) -> bool:
        """Whether so many rows judge that a coverage may be proven; else it is what they show."""
        rows, promise = len(self._held.texts), self._goal.promise
        allowed = errors_allowed if is_whole(self._rule) else loss_allowed
        return allowed(rows, promise.epsilon, promise.delta) >= 0

    def run(self) -> Found:
        """Searches; see `Goal` for when it ends. Raises LearningError where nothing at all could be built."""
        started = time.monotonic()
        one_label = isinstance(self._held.shape, Label)
        for recipe in ladder_for(type(self._held.shape), self._goal.profile, with_base=self._with_base):
            if self._is_over(started):
                break
            self._try(recipe)
        while one_label and not self._is_over(started):
            suggested = self._suggestion()
            if suggested is None:
                break
            self._try(suggested)
        if not self._tried:
            raise next(iter(self._failed.values()))
        return self._conclude()

    def _is_over(self, started: float) -> bool:
        goal = self._goal
        if len(self._tried) + len(self._failed) >= goal.trials:
            return True
        if goal.seconds is not None and self._tried and time.monotonic() - started > goal.seconds:
            return True
        return not goal.thorough and any(self._will_do(candidate) for candidate in self._tried.values())

    def _will_do(self, candidate: Candidate) -> bool:
        return not candidate.misses and candidate.agreement >= self._goal.keep

    def _try(self, recipe: Recipe) -> None:
        """Builds and judges a candidate, or reads what an earlier run wrote of it."""
        found = self._known.get(recipe)
        if found is None:
            try:
                cooked = self.kitchen.cook(recipe, lambda share: self._progress(recipe, share))
            except (LearningError, BundleError, MissingExtra) as error:
                self._failed[recipe] = error
                self._note(f"{recipe.name} cannot be built: {error}")
                return
            found = self._judged(recipe, cooked)
            with self._book.open("ab") as file:
                file.write(msgspec.json.encode(found) + b"\n")
        misses = tuple(self._goal.profile.misses(found.footprint.scaled(self._goal.profile)))
        self._tried[recipe] = msgspec.structs.replace(found, misses=misses)
        self._show(self._tried[recipe])

    def _judged(self, recipe: Recipe, cooked: Cooked) -> Candidate:
        said, confidence = cooked.model.predict_many(self._held.texts)
        agrees = agreements(said, self._held.answers, self._rule)
        promise = self._goal.promise
        if self.proves:
            covered = calibrate_threshold(confidence, agrees, epsilon=promise.epsilon, delta=promise.delta).coverage
        else:
            covered = coverage(confidence, 1 - agrees.astype(np.float32), promise.epsilon)
        return Candidate(
            recipe=recipe,
            family=cooked.family,
            agreement=float(agrees.mean()),
            coverage=covered,
            rows=len(agrees),
            footprint=measure_here(cooked.model, self._held.texts),
            training_s=cooked.seconds,
            proven=self.proves,
        )

    def _suggestion(self) -> Recipe | None:
        """What Optuna would try next, knowing all that was tried; None when it has nothing new to say."""
        try:
            import optuna
        except ImportError:
            self._note(str(MissingExtra("The search beyond its first recipes", "workshop")))
            return None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        space = Space(self._goal.profile, with_base=self._with_base)
        # A new study each time, fed with what is known: nothing of Optuna's own has to be kept.
        sampler = optuna.samplers.TPESampler(seed=self._seed + len(self._tried), n_startup_trials=4)
        study = optuna.create_study(directions=["maximize", "minimize", "minimize"], sampler=sampler)
        for candidate in self._tried.values():
            size = candidate.footprint
            over = candidate.misses[0].ratio - 1.0 if candidate.misses else 0.0
            study.add_trial(space.trial_of(candidate.recipe, [candidate.agreement, size.latency_ms, size.bytes], over))
        for _ in range(SUGGESTIONS):
            recipe = space.suggest(study.ask())
            if recipe not in self._tried and recipe not in self._failed:
                return recipe
        return None

    def _conclude(self) -> Found:
        tried = tuple(self._tried.values())
        failed = tuple(Failed(recipe, str(error)) for recipe, error in self._failed.items())
        able = [candidate for candidate in tried if self._will_do(candidate)]
        if able:
            # Ties in bytes and time are broken by what the device runs out of first: time.
            chosen = min(able, key=lambda one: (one.footprint.cpu_s, one.footprint.bytes))
            return Found(tried, chosen, f"the cheapest that keeps {self._goal.keep:.1%}", failed)
        why = _what_it_would_take(tried, self._goal, self._ceiling, whole=is_whole(self._rule))
        return Found(tried, None, why, failed)


def ladder_for(shape: type[Shape], profile: Profile, *, with_base: bool) -> list[Recipe]:
    """The first recipes for answers of a shape on a device, cheapest first. LearningError where it allows none."""
    family = FAMILY_OF[shape]
    found = [
        recipe for recipe in (LADDER if shape is Label else SHAPE_LADDER) if _may(recipe, family, profile, with_base)
    ]
    if found:
        return found
    allowed = f"the target {profile.name!r} allows {', '.join(profile.families)} experts alone"
    if shape is Label:
        raise LearningError(
            f"{allowed}, and none of them can be built here: allow static, or give a pretrained encoder with --base"
        )
    raise LearningError(
        f"{allowed}, and these answers need one of the family {family}: allow it with `families` in a file of your own "
        "for --target, or ask for one of few labels"
    )


def _may(recipe: Recipe, family: str, profile: Profile, with_base: bool) -> bool:
    if isinstance(recipe, CascadeRecipe):
        return with_base and profile.allows("cascade")
    if isinstance(recipe, EncoderRecipe):
        return with_base and profile.allows("encoder")
    return profile.allows(family) and (with_base or not recipe.word_vectors)


def _read_book(book: Path) -> dict[Recipe, Candidate]:
    """What earlier runs judged; a torn last line is left out."""
    book.parent.mkdir(parents=True, exist_ok=True)
    found: dict[Recipe, Candidate] = {}
    if book.exists():
        for line in book.read_bytes().splitlines():
            with contextlib.suppress(msgspec.DecodeError):
                candidate = msgspec.json.decode(line, type=Candidate)
                found[candidate.recipe] = candidate
    return found


def nearest(fitting: Sequence[Candidate]) -> Candidate:
    """Of candidates that the device can hold, the one that agrees most, and of several the cheapest."""
    return max(fitting, key=lambda one: (one.agreement, -one.footprint.cpu_s))


def _what_it_would_take(tried: Sequence[Candidate], goal: Goal, ceiling: float, *, whole: bool) -> str:
    """Why nothing was chosen, in words: what came nearest, and what would have to give.

    `whole`: an answer agrees or not, with nothing between.
    """
    fitting = [candidate for candidate in tried if not candidate.misses]
    if not fitting:
        near = min(tried, key=lambda one: one.misses[0].ratio)
        return (
            f"nothing fits the target {goal.profile.name!r}: the nearest is {near.name} ({near.misses[0]}); it would "
            f"take {near.misses[0].ratio:.2g} times that limit"
        )
    near = nearest(fitting)
    agrees = f"agrees {'in' if whole else 'by'} {near.agreement:.2%} {'of' if whole else 'on the mean over'}"
    said = (
        f"nothing that fits the target {goal.profile.name!r} keeps {goal.keep:.1%}: the nearest is {near.name}, which "
        f"{agrees} {near.rows} held-out requests"
    )
    if ceiling < goal.keep:
        return (
            f"{said}; the big model contradicts itself so often that no expert can keep more than about {ceiling:.1%}: "
            "--accept-nearest makes the nearest all the same"
        )
    better = [one for one in tried if one.misses and one.agreement >= goal.keep]
    if better:
        least = min(better, key=lambda one: one.misses[0].ratio)
        return f"{said}; {least.name} keeps it with {least.agreement:.2%}, but its {least.misses[0]}"
    reached = math.floor(near.agreement * 100) / 100
    return f"{said}; it would take more answers, a stronger base encoder, or --keep {reached:g}"
