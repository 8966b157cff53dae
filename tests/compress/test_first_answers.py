"""What is seen of the first answers, before all others are paid for."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from puhui.compress.answer_shape import Fields, Label, LabelSet, Number, Shape, Span
from puhui.compress.first_answers import Allowed, look_at, looks_like
from puhui.compress.profiles import PROFILES
from puhui.compress.recipes import Material
from puhui.core.errors import LearningError
from puhui.teachers.teacher import Told

TEXTS = [f"{number} nights in town {number}, please" for number in range(60)]


@pytest.mark.parametrize("count", [8, 60])
@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (lambda n: f"{n} km", Number),
        (lambda n: f"town {n}", Span),
        (lambda n: json.dumps({"town": f"town {n}", "nights": n}), Fields),
        (lambda n: "ab"[n % 2], None),
        (lambda n: "word " * (n + 1), None),
        (lambda n: f"LABEL_{n % 30}", None),
        (lambda n: "" if n else "{}", None),
    ],
)
def test_a_kind_that_few_answers_show(count: int, answer: Callable[[int], str], kind: type[Shape] | None) -> None:
    assert looks_like(TEXTS[:count], [answer(number) for number in range(count)]) is kind


def test_sets_of_labels() -> None:
    said = ["a, b", "b, c", "a, c", "a, b, c", "b, a", "c, a, b", "c, b", "c, a"]
    assert looks_like(TEXTS[:8], said) is LabelSet
    assert looks_like(TEXTS[:8], [json.dumps(each.split(", ")) for each in said]) is LabelSet
    assert looks_like(TEXTS[:8], [f"one {n}, two {n * n}" for n in range(20, 28)]) is None
    assert looks_like([], []) is None


def test_a_kind_that_the_target_cannot_run_is_noted() -> None:
    told = {text: Told(answer=f"{number} km") for number, text in enumerate(TEXTS[:8])}
    for target, labels, count in (("browser", False, 1), ("browser", True, 0), ("phone", False, 0)):
        notes: list[str] = []
        look_at(told, Allowed(()), PROFILES[target], labels=labels, note=notes.append)
        assert len(notes) == count
        assert all("look like numbers" in note and "'browser' allows static, encoder" in note for note in notes)


def test_answers_that_are_none_of_the_labels() -> None:
    allowed = Allowed(("yes ", "no"))
    assert " yes" in allowed
    assert "Yes" not in allowed
    assert allowed.check(["yes", "no"]) == Allowed(()).check(["anything"]) == []
    (said,) = allowed.check(["yes", "no", "maybe"])
    assert said.startswith("1 of 3 answers are none of the labels (yes, no), such as 'maybe'")
    with pytest.raises(LearningError, match=r"2 of 3 answers are none of the labels \(yes, no\), such as 'Yes\.'"):
        allowed.check(["Yes.", "no", "maybe"])


def test_too_few_that_may_teach_are_told() -> None:
    answers = ["a"] * 5 + ["other"] * 4
    material = Material([f"text {number}" for number in range(9)], answers, Label(("a", "b")))
    with pytest.raises(LearningError, match=r"only 5 of the 9 answers .* \(a, b\); it takes 20"):
        Allowed(["a", "b"]).taught_by(material, 20)
    assert len(Allowed(["a", "b"]).taught_by(material).texts) == 5
