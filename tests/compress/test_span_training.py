"""Span experts learn where to look, in two scripts, and say so where there is nothing to learn."""

from __future__ import annotations

import random

import pytest

from puhui.compress.span_training import SpanFit, distill_span
from puhui.core.errors import LearningError

NAMES = ("Anna", "Bo", "Li Wei", "Dr. Ada M. Hall", "O'Neill", "Zoë-Marie", "Kim", "van der Berg", "Ng", "Ruth")
PATTERNS = {
    "en": (
        "please call {} before {}",
        "{} wants to talk to {} at noon",
        "a letter for {} from {}",
        "no one was here {} {}",
    ),
    "zh": ("请给{}打电话", "{}想找你", "有一封{}的信", "今天没有人来"),
}


def rows(count: int, seed: int, language: str) -> tuple[list[str], list[str]]:
    """Who is the first person in the text; in the last pattern there is no one."""
    draw, texts, answers = random.Random(seed), [], []
    for _ in range(count):
        number = draw.randrange(4)
        if language == "zh":
            name = "".join(draw.sample("张王李赵伟芳娜敏静强磊军洋勇艳杰", draw.choice((2, 3))))
            texts.append(PATTERNS["zh"][number].format(name) + draw.choice(("。", "！", "")))
        else:
            name, other = (f"{draw.choice(NAMES)}{draw.choice(('', ' II', ' Sr'))}" for _ in range(2))
            nobody = ("x", str(draw.randrange(99)))
            texts.append(PATTERNS["en"][number].format(*(nobody if number == 3 else (name, other))))
        answers.append("nobody" if number == 3 else name)
    return texts, answers


@pytest.mark.parametrize("language", ["en", "zh"])
def test_it_finds_passages_in_two_scripts(language: str) -> None:
    model = distill_span(*rows(300, 1, language), nothing="nobody")
    texts, answers = rows(300, 2, language)
    said, confidence = model.predict_many(texts)
    right = [one == other for one, other in zip(said, answers, strict=True)]
    assert sum(right) > 0.95 * len(right)
    wrong = [float(sure) for sure, fine in zip(confidence, right, strict=True) if not fine]
    assert not wrong or max(wrong) < 0.999
    assert model.options.nothing == "nobody"


def test_without_nothing_there_is_always_a_passage() -> None:
    texts, answers = rows(200, 3, "en")
    model = distill_span(texts, answers)
    assert all(answer in text for text, answer in zip(texts, model.predict_many(texts)[0], strict=True))
    assert model.predict_one("") == ("", 0.0)
    assert model.predict_one("?")[0] == "?"


def test_answers_that_are_not_in_their_text_teach_nothing() -> None:
    texts, answers = rows(200, 4, "en")
    strange = [*answers, *["somebody else"] * 50]
    model = distill_span([*texts, *texts[:50]], strange, nothing="nobody")
    clean = distill_span(texts, answers, nothing="nobody")
    assert model.predict_many(texts)[0] == clean.predict_many(texts)[0]


def test_long_texts_and_the_words_beyond() -> None:
    filler = "word " * 3_000
    texts, answers = rows(60, 5, "en")
    model = distill_span([*texts, filler + texts[0]], [*answers, answers[0]], nothing="nobody")
    assert model.predict_one(filler)[1] <= 1.0


def test_a_heavier_penalty_is_less_sure() -> None:
    texts, answers = rows(150, 6, "en")
    light, heavy = (distill_span(texts, answers, fit=SpanFit(penalty=penalty)) for penalty in (1e-5, 1e-1))
    assert heavy.predict_many(texts)[1].mean() < light.predict_many(texts)[1].mean()


@pytest.mark.parametrize(
    ("texts", "answers", "says"),
    [
        (["a"], [], "1 texts and 0 answers"),
        (["a b"] * 19, ["a"] * 19, "19 of 19 answers are copied"),
        (["a b"] * 50, ["c"] * 50, "0 of 50 answers are copied"),
        (["a b"] * 50, ["none"] * 50, "0 of 50 answers are copied"),
    ],
)
def test_what_cannot_be_learned_is_said(texts: list[str], answers: list[str], says: str) -> None:
    with pytest.raises(LearningError, match=says):
        distill_span(texts, answers, nothing="none")
