"""The search on a small job: cheapest first, limits kept, resumed, and honest when nothing will do."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import experts as sample
from puhui.compress.answer_shape import Label, Span
from puhui.compress.profiles import PROFILES, Profile
from puhui.compress.recipe_space import Space
from puhui.compress.recipes import CascadeRecipe, Cooked, EncoderRecipe, Kitchen, Material, Recipe, StaticRecipe
from puhui.compress.search import LADDER, Candidate, Goal, Search, ladder_for
from puhui.core.errors import LearningError, MissingExtra, SettingsError
from puhui.core.settings import Promise

SHAPE = Label(tuple(sample.CLASSES))


def material(count: int, seed: int) -> Material:
    texts = sample.questions(count, seed=seed)
    return Material(texts, [sample.subject_of(text) for text in texts], SHAPE)


TAUGHT, HELD = material(150, 1), material(60, 2)


def search(folder: Path, goal: Goal, shown: list[Candidate] | None = None, held: Material = HELD) -> Search:
    return Search(TAUGHT, held, goal, folder, show=(shown if shown is not None else []).append)


def test_it_ends_at_the_first_that_keeps_the_floor(tmp_path: Path) -> None:
    found = search(tmp_path, Goal(keep=0.9)).run()
    assert [candidate.recipe for candidate in found.tried] == [LADDER[0]]
    assert found.chosen is found.tried[0]
    assert found.chosen.agreement >= 0.9
    assert found.chosen.rows == 60


def test_a_thorough_one_goes_beyond_the_ladder(tmp_path: Path) -> None:
    found = search(tmp_path, Goal(keep=0.9, thorough=True, trials=5)).run()
    recipes = [candidate.recipe for candidate in found.tried]
    assert len(set(recipes)) == 5
    assert recipes[:3] == [recipe for recipe in LADDER if isinstance(recipe, StaticRecipe) and not recipe.word_vectors]
    able = [candidate for candidate in found.tried if candidate.agreement >= 0.9]
    assert found.chosen == min(able, key=lambda one: (one.footprint.cpu_s, one.footprint.bytes))


def test_a_second_run_builds_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    goal = Goal(keep=0.9, thorough=True, trials=4)
    before = search(tmp_path, goal).run()
    monkeypatch.setattr(Kitchen, "_build", lambda *_: pytest.fail("it was built before"))
    assert search(tmp_path, goal).run() == before


def test_what_was_interrupted_goes_on(tmp_path: Path) -> None:
    goal = Goal(keep=0.9, thorough=True, trials=4)
    shown: list[Candidate] = []

    def stop(candidate: Candidate) -> None:
        shown.append(candidate)
        if len(shown) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Search(TAUGHT, HELD, goal, tmp_path, show=stop).run()
    book = next(tmp_path.glob("judged-*.jsonl"))
    book.write_bytes(book.read_bytes()[:-9])  # the end came in the middle of a line
    found = search(tmp_path, goal).run()
    assert [one.recipe for one in found.tried[:2]] == [one.recipe for one in shown]
    assert len(found.tried) == 4


def test_other_rows_are_another_search(tmp_path: Path) -> None:
    goal = Goal(keep=0.9)
    first = search(tmp_path, goal).run()
    shown: list[Candidate] = []
    second = search(tmp_path, goal, shown, held=material(50, 3)).run()
    assert second.tried[0].rows == 50
    assert first.tried[0].rows == 60


@pytest.mark.parametrize("promise", [Promise(0.2, 0.05), Promise(0.02, 0.3)])
def test_another_promise_is_another_coverage(tmp_path: Path, promise: Promise) -> None:
    (first,) = search(tmp_path, Goal(keep=0.9, promise=Promise(0.1, 0.05))).run().tried
    (second,) = search(tmp_path, Goal(keep=0.9, promise=promise)).run().tried
    assert len(list(tmp_path.glob("judged-*.jsonl"))) == 2
    assert (second.recipe, second.agreement) == (first.recipe, first.agreement)


def test_where_too_few_judge_coverage_is_what_they_show(tmp_path: Path) -> None:
    (few,) = search(tmp_path, Goal(keep=0.9)).run().tried  # 60 judge; 149 are needed
    assert not few.proven
    assert few.coverage > 0.5
    (many,) = search(tmp_path, Goal(keep=0.9), held=material(150, 3)).run().tried
    assert many.proven


def test_a_target_that_nothing_meets_says_what_came_nearest(tmp_path: Path) -> None:
    tiny = Profile(name="tiny", bytes=1000)
    found = search(tmp_path, Goal(profile=tiny, keep=0.9, trials=2)).run()
    assert found.chosen is None
    assert "nothing fits the target 'tiny': the nearest is static" in found.why
    assert "times that limit" in found.why


def test_a_floor_that_nothing_keeps_says_what_it_would_take(tmp_path: Path) -> None:
    confused = Material(HELD.texts, ["money", "travel", "food"] * 20, SHAPE)
    found = search(tmp_path, Goal(keep=0.9, trials=2), held=confused).run()
    assert found.chosen is None
    assert "keeps 90.0%: the nearest is static" in found.why
    assert "or --keep 0." in found.why


def test_what_cannot_be_built_is_told_and_the_search_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cook, notes = Kitchen.cook, list[str]()

    def fails(self: Kitchen, recipe: Recipe, *more: object) -> Cooked:
        if recipe == LADDER[0]:
            raise MissingExtra("Training an encoder", "workshop")
        return cook(self, recipe)

    monkeypatch.setattr(Kitchen, "cook", fails)
    found = Search(TAUGHT, HELD, Goal(keep=0.9), tmp_path, note=notes.append).run()
    assert [candidate.recipe for candidate in found.tried] == [LADDER[1]]
    ((recipe, why),) = [(one.recipe, one.why) for one in found.failed]
    assert recipe == LADDER[0]
    assert "needs packages that are not installed" in why
    assert notes == [f"{recipe.name} cannot be built: {why}"]


def test_without_optuna_the_ladder_is_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    notes = list[str]()
    found = Search(TAUGHT, HELD, Goal(keep=0.9, thorough=True), tmp_path, note=notes.append).run()
    assert len(found.tried) == 3
    assert found.chosen is not None
    assert 'pip install "puhui[workshop]"' in notes[0]


def test_families_that_cannot_be_built_here(tmp_path: Path) -> None:
    with pytest.raises(LearningError, match="allows encoder experts alone, and none of them can be built here"):
        search(tmp_path, Goal(profile=Profile(name="odd", families=("encoder",)))).run()
    with pytest.raises(LearningError, match=r"allows static, encoder experts alone, and .* one of the family span"):
        ladder_for(Span, PROFILES["browser"], with_base=True)


def test_nothing_can_be_learned(tmp_path: Path) -> None:
    few = Material(TAUGHT.texts[:10], TAUGHT.answers[:10], SHAPE)
    with pytest.raises(LearningError, match="needs at least 20"):
        Search(few, HELD, Goal(trials=2), tmp_path).run()


@pytest.mark.parametrize("recipe", LADDER)
def test_optuna_knows_every_recipe_of_the_ladder(recipe: StaticRecipe | EncoderRecipe | CascadeRecipe) -> None:
    """A trial made of a recipe suggests that recipe again."""
    import optuna

    space = Space(Profile(name="this"), with_base=True)
    trial = space.trial_of(recipe, [0.9, 1.0, 1.0], 0.0)
    assert space.suggest(optuna.trial.FixedTrial(trial.params)) == recipe


@pytest.mark.parametrize(
    ("given", "why"),
    [({"keep": 1.1}, "keep is 1.1"), ({"trials": 0}, "trials is 0"), ({"seconds": -180.0}, "are -180")],
)
def test_a_goal_that_cannot_be(given: dict[str, float], why: str) -> None:
    with pytest.raises(SettingsError, match=why):
        Goal(**given)  # type: ignore[arg-type]
