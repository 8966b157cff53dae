"""Experts of every shape: found, learned, and right about texts that they have not seen."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from puhui.cascade.agreement import agreements
from puhui.cascade.guarantee import calibrate_threshold
from puhui.compress.answer_shape import Fields, Label, LabelSet, Number, Shape, Span, find_shape, rule_of
from puhui.compress.shape_training import FAMILY_OF, MOST_LEVELS, ShapeOptions, train_shape
from puhui.compress.static_training import StaticOptions
from puhui.core.errors import LearningError
from puhui.models.family import FAMILIES, ExpertModel, family_class
from puhui.models.hashing import FeatureOptions
from puhui.models.number import NumberModel

SMALL = ShapeOptions(static=StaticOptions(features=FeatureOptions(buckets=1 << 14)))
DISHES = {"soup": 4, "salad": 6, "pizza": 9, "pasta": 11, "steak": 24, "lobster": 40, "bread": 2, "rice": 3, "cake": 5}
DISHES |= {"fish": 17, "curry": 13, "tea": 1}
PLACES = ("kitchen", "garden", "hall", "cellar", "Zimmer 7", "二楼")


class Order:
    """A text that orders dishes to a place, and what is in it."""

    def __init__(self, draw: random.Random) -> None:
        self.dishes = sorted(draw.sample(list(DISHES), draw.choice((0, 1, 1, 2, 3))))
        self.table = f"{draw.choice(PLACES)} {draw.randrange(100, 999)}"
        self.seated = draw.random() < 0.8
        named = " and ".join(f"the {dish}" for dish in draw.sample(self.dishes, len(self.dishes))) or "nothing"
        place = f" for table <{self.table}>" if self.seated else ""
        self.text = f"{draw.choice(('I want', 'bring me', 'please'))} {named}{place} {draw.choice(('now', 'soon', ''))}"

    @property
    def price(self) -> int:
        return sum(DISHES[dish] for dish in self.dishes)


ANSWERS: dict[type[Shape], Callable[[Order], str]] = {
    Label: lambda order: "none" if not order.dishes else order.dishes[0].upper(),
    LabelSet: lambda order: json.dumps(order.dishes),
    Number: lambda order: f"{order.price}.00 €",
    Span: lambda order: order.table if order.seated else "no table",
    Fields: lambda order: json.dumps(
        {"dishes": order.dishes, "table": order.table if order.seated else None, "many": len(order.dishes) > 1}
    ),
}
LEAST = {Label: 0.9, LabelSet: 0.9, Number: 0.85, Span: 0.97, Fields: 0.85}


def orders(count: int, seed: int) -> list[Order]:
    draw = random.Random(seed)
    return [Order(draw) for _ in range(count)]


@pytest.fixture(scope="module", params=list(ANSWERS), ids=lambda kind: kind.__name__)
def learned(request: pytest.FixtureRequest) -> tuple[type[Shape], Shape, ExpertModel]:
    kind = request.param
    lessons = orders(600, seed=1)
    texts, answers = [order.text for order in lessons], [ANSWERS[kind](order) for order in lessons]
    shape = find_shape(texts, answers)
    assert isinstance(shape, kind)
    return kind, shape, train_shape(shape, texts, answers, options=SMALL)


def test_it_agrees_on_texts_it_has_not_seen(learned: tuple[type[Shape], Shape, ExpertModel]) -> None:
    kind, shape, model = learned
    fresh = orders(600, seed=2)
    said, confidence = model.predict_many([order.text for order in fresh])
    agreement = agreements(said, [ANSWERS[kind](order) for order in fresh], rule_of(shape))
    assert agreement.mean() > LEAST[kind]
    # Confidence ranks: of the surer half, less is wrong than of the other.
    surer = np.argsort(-confidence)[:300]
    assert agreement[surer].mean() >= agreement.mean()
    assert calibrate_threshold(confidence, agreement, epsilon=0.05).coverage > 0.4


def test_it_is_of_the_family_on_the_card(learned: tuple[type[Shape], Shape, ExpertModel], tmp_path: Path) -> None:
    kind, _, model = learned
    assert family_class(FAMILY_OF[kind]) is type(model)
    model.save(tmp_path)
    again = family_class(FAMILY_OF[kind]).load(tmp_path)
    for text in ("", "bring me the tea for table <hall 123>", "请给我 soup \ud800"):
        assert again.predict_one(text) == model.predict_one(text)


def test_the_same_answers_give_the_same_expert_bit_for_bit(tmp_path: Path) -> None:
    lessons = orders(120, seed=4)
    texts = [order.text for order in lessons]
    for kind, answer in ANSWERS.items():
        answers = [answer(order) for order in lessons]
        shape = find_shape(texts, answers)
        assert shape is not None
        for name in ("a", "b"):
            train_shape(shape, texts, answers, options=SMALL).save(tmp_path / kind.__name__ / name)
        for file in (tmp_path / kind.__name__ / "a").rglob("*.*"):
            other = tmp_path / kind.__name__ / "b" / file.relative_to(tmp_path / kind.__name__ / "a")
            assert file.read_bytes() == other.read_bytes(), file


def test_every_shape_has_a_family() -> None:
    assert set(FAMILY_OF) == set(ANSWERS)
    assert set(FAMILY_OF.values()) <= FAMILIES.keys()


def test_answers_are_written_as_the_big_model_writes_them(learned: tuple[type[Shape], Shape, ExpertModel]) -> None:
    kind, _, model = learned
    for order in orders(100, seed=5):
        answer, confidence = model.predict_one(order.text)
        if kind is LabelSet or kind is Fields:
            assert json.dumps(json.loads(answer)) == answer
        elif kind is Number:
            assert answer.endswith(".00 €")
        elif kind is Span:
            assert answer == "no table" or answer in order.text
        assert 0.0 <= confidence <= 1.0


def test_progress_ends_at_one(learned: tuple[type[Shape], Shape, ExpertModel]) -> None:
    kind, shape, _ = learned
    lessons, told = orders(200, seed=6), list[float]()
    train_shape(
        shape, [o.text for o in lessons], [ANSWERS[kind](o) for o in lessons], options=SMALL, progress=told.append
    )
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1.0)
    assert all(0.0 <= share <= 1.0 + 1e-9 for share in told)


def test_very_many_numbers_share_levels() -> None:
    draw = random.Random(0)
    values = [draw.random() * 1000 for _ in range(400)]
    texts = [f"{'low' if value < 300 else 'middle' if value < 700 else 'high'} {draw.random()}" for value in values]
    answers = [f"{value:.3f}" for value in values]
    shape = find_shape(texts, answers)
    assert isinstance(shape, Number)
    model = train_shape(shape, texts, answers, options=SMALL)
    assert isinstance(model, NumberModel)
    assert len(model.labels) <= MOST_LEVELS
    assert set(model.labels) <= set(answers)
    assert float(model.predict_one("low")[0]) < 300 < float(model.predict_one("middle")[0]) < 700
    assert model.predict_one("high")[1] < 0.95  # it cannot know where in the upper third


def test_soft_answers_teach_labels() -> None:
    lessons = orders(100, seed=7)
    texts, answers = [o.text for o in lessons], [ANSWERS[Label](o) for o in lessons]
    told = [{answer: 0.6, "TEA": 0.4} for answer in answers]
    shape = Label(tuple(sorted(set(answers))))
    hard, soft = (train_shape(shape, texts, answers, probabilities=p, options=SMALL) for p in (None, told))
    assert soft.predict_many(texts)[1].mean() < hard.predict_many(texts)[1].mean()


def test_too_few_answers_are_refused(learned: tuple[type[Shape], Shape, ExpertModel]) -> None:
    kind, shape, _ = learned
    few = orders(8, seed=8)
    with pytest.raises(LearningError):
        train_shape(shape, [order.text for order in few], [ANSWERS[kind](order) for order in few], options=SMALL)
    with pytest.raises(LearningError, match="1 texts and 0 answers"):
        train_shape(shape, ["one"], [], options=SMALL)


def test_a_field_that_cannot_be_learned_is_named() -> None:
    lessons = orders(200, seed=9)
    texts, answers = [o.text for o in lessons], [ANSWERS[Fields](o) for o in lessons]
    shape = find_shape(texts, answers)
    assert shape is not None
    seated = [row for row, order in enumerate(lessons) if not order.seated]
    with pytest.raises(LearningError, match="the field 'table' cannot be learned"):
        train_shape(shape, [texts[row] for row in seated], [answers[row] for row in seated], options=SMALL)
