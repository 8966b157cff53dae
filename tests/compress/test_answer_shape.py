"""Which shape answers have: found from the answers alone, and none where they are open text."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puhui.cascade.agreement import EXACT, FieldLoss, NumberLoss, SetLoss, SpanLoss, loss_of
from puhui.compress.answer_shape import (
    FEWEST_ANSWERS,
    RARE,
    Field,
    Fields,
    Label,
    LabelSet,
    Number,
    Shape,
    Span,
    closed_set,
    field_texts,
    find_shape,
    rule_of,
)
from puhui.models.label_set import ListForm

CITIES = ("Ulm", "Bad Aibling", "Köln", "Rom", "上海", "Nizza", "Graz", "Bern", "Basel", "Oslo", "Wien", "Lund")
COLOURS = ("red", "green", "blue", "white", "black")


def rows(count: int = 300, seed: int = 0) -> list[tuple[str, str, random.Random]]:
    """Texts with a district of a city in them, the district, and something to draw more with."""
    draw = random.Random(seed)
    cities = [f"{draw.choice(CITIES)} {draw.randrange(60)}" for _ in range(count)]
    return [(f"{n} nights in {city}, please", city, draw) for n, city in enumerate(cities)]


def shape_of(answer: Callable[[str, str, random.Random], str], count: int = 300) -> Shape | None:
    found = [(text, answer(text, city, draw)) for text, city, draw in rows(count)]
    return find_shape([text for text, _ in found], [answer for _, answer in found])


def some_colours(draw: random.Random) -> list[str]:
    return [colour for colour in COLOURS if draw.random() < 0.4]


def test_few_different_answers_are_labels_whatever_they_look_like() -> None:
    for few in (("1", "2", "3", "4", "5"), ("a, b", "b", "a"), ('{"a": 1}', '{"a": 2}')):
        found = shape_of(lambda text, city, draw, few=few: draw.choice(few))
        assert isinstance(found, Label)
        assert set(found.labels) == set(few)
        assert rule_of(found) == EXACT


@pytest.mark.parametrize("name", ["LABEL_{}", "Q{}", "intent {}", "class-{}", "#{}", "第{}类"])
def test_numbers_in_names_are_labels(name: str) -> None:
    found = shape_of(lambda text, city, draw: name.format(draw.randrange(40)), count=1000)
    assert isinstance(found, Label)
    assert len(found.labels) == 40


def test_many_numbers_are_a_range_and_codes_are_labels() -> None:
    stars = shape_of(lambda text, city, draw: f"{draw.randrange(0, 101)} %")
    assert isinstance(stars, Number)
    assert (stars.before, stars.after, stars.tolerance) == ("", " %", 0.0)
    assert 2.0 <= stars.low <= 8.0
    assert 92.0 <= stars.high <= 98.0
    assert rule_of(stars) == NumberLoss(stars.high - stars.low)
    halves = shape_of(lambda text, city, draw: f"{draw.randrange(0, 41) / 2}")
    assert isinstance(halves, Number)
    codes = [str(101 + n * n * 7) for n in range(20)]
    assert isinstance(shape_of(lambda text, city, draw: draw.choice(codes)), Label)
    assert isinstance(shape_of(lambda text, city, draw: f"{draw.random() * 1e6:.2f}"), Number)


@pytest.mark.parametrize(
    ("written", "separator", "form"),
    [
        (json.dumps, None, ListForm("[", ", ", "]", "[]")),
        (lambda colours: json.dumps(colours, separators=(",", ":")), None, ListForm("[", ",", "]", "[]")),
        (lambda colours: json.dumps(colours, indent=2), None, ListForm("[\n  ", ",\n  ", "\n]", "[]")),
        (", ".join, ",", ListForm("", ", ", "", "")),
        ("、".join, "、", ListForm("", "、", "", "")),
        (lambda colours: "\n".join(f"- {colour}" for colour in colours), "\n", ListForm("", "\n", "", "")),
        (lambda colours: " | ".join(colours) or "none", "|", ListForm("", " | ", "", "")),
    ],
    ids=["json", "compact", "indented", "commas", "chinese", "bullets", "none"],
)
def test_lists_of_labels(written: Callable[[list[str]], str], separator: str | None, form: ListForm) -> None:
    found = shape_of(lambda text, city, draw: written(some_colours(draw)))
    assert isinstance(found, LabelSet)
    assert (found.separator, found.form) == (separator, form)
    bare = [label.strip('"- ') for label in found.labels]
    assert [label for label in bare if label in COLOURS] == list(COLOURS)  # in the order in which lists name them
    assert rule_of(found) == SetLoss(separator)
    assert loss_of(written(["red", "blue"]), written(["blue", "red"]), rule_of(found)) == 0.0


def test_passages_of_the_input() -> None:
    assert shape_of(lambda text, city, draw: city) == Span()
    assert shape_of(lambda text, city, draw: city if draw.random() < 0.6 else "(none)") == Span("(none)")
    assert shape_of(lambda text, city, draw: city if draw.random() < 0.6 else "") == Span("")
    assert rule_of(Span()) == SpanLoss()
    # Characters within words are no passage, and few different words are labels.
    assert shape_of(lambda text, city, draw: text[1:4] + str(draw.random())) is None
    assert isinstance(shape_of(lambda text, city, draw: "nights" if draw.random() < 0.6 else "please"), Label)


def record(text: str, city: str, draw: random.Random, **how: object) -> str:
    values = {
        "version": 1,
        "place": {"city": city if draw.random() < 0.7 else None, "kind": draw.choice(COLOURS)},
        "beds": draw.randrange(0, 41),
        "sure": draw.random() < 0.5,
        "colours": some_colours(draw),
    }
    return f"```json\n{json.dumps(values, ensure_ascii=False, **how)}\n```"  # type: ignore[arg-type]


@pytest.mark.parametrize("indent", [None, 2])
def test_records_keep_their_form(indent: int | None) -> None:
    found = shape_of(lambda text, city, draw: record(text, city, draw, indent=indent), count=400)
    assert isinstance(found, Fields)
    kinds = {path: type(field.shape) for path, field in found.fields.items()}
    assert kinds == {"place/city": Span, "place/kind": Label, "beds": Number, "sure": Label, "colours": LabelSet}
    assert found.fields["place/city"] == Field(Span("null"), quoted=True)
    assert set(found.fields["sure"].shape.labels) == {"true", "false"}  # type: ignore[union-attr]
    assert found.form.quoted == (True, True, False, False, False)
    assert isinstance(rule_of(found), FieldLoss)
    # Whatever the big model wrote is written again, byte for byte, from its values.
    for text, city, draw in rows(50, seed=3):
        answer = record(text, city, draw, indent=indent)
        values = field_texts(answer, found.fields)
        assert values is not None
        assert found.form.written(values) == answer


def test_escapes_are_kept() -> None:
    found = shape_of(lambda text, city, draw: json.dumps({"city": city, "n": draw.randrange(60)}))
    assert isinstance(found, Fields)
    assert found.form.escaped
    values = field_texts(json.dumps({"city": "上海", "n": 3}), found.fields)
    assert values == ["上海", "3"]
    assert found.form.written(values) == '{"city": "\\u4e0a\\u6d77", "n": 3}'


def test_wholes_that_are_as_few_as_their_parts_are_labels() -> None:
    country = {city: COLOURS[n % 5] for n, city in enumerate(CITIES)}

    def located(text: str, city: str, draw: random.Random) -> str:
        name = city.rpartition(" ")[0]
        return json.dumps({"city": name[::-1], "country": country[name]})

    found = shape_of(located)
    assert isinstance(found, Label)
    assert len(found.labels) == len(CITIES)
    apart = shape_of(
        lambda *row: json.dumps({"city": row[1].split()[0][::-1], "country": row[2].choice(COLOURS)}), 3_000
    )
    assert isinstance(apart, Fields)
    assert [type(field.shape) for field in apart.fields.values()] == [Label, Label]


def test_a_closed_set_of_passages_is_labels_while_it_is_small() -> None:
    few = shape_of(lambda text, city, draw: city.rpartition(" ")[0])
    assert isinstance(few, Label)
    assert set(few.labels) == set(CITIES)
    assert closed_set([city for _, city, _ in rows(5_000)]) is not None
    assert shape_of(lambda text, city, draw: city, 5_000) == Span()


@pytest.mark.parametrize(
    "answer",
    [
        lambda text, city, draw: f"I would go to {city}, as {draw.random()} of my friends did; {draw.random()}",
        lambda text, city, draw: json.dumps({"why": f"because {draw.random()} of {draw.random()}", "kind": "a"}),
        lambda text, city, draw: json.dumps({f"key {draw.random()}": 1}),
        lambda text, city, draw: json.dumps([draw.random(), draw.random()]),
        lambda text, city, draw: "always the same",
        lambda text, city, draw: '{"always": "the same"}',
        lambda text, city, draw: '{"half": ',
    ],
    ids=["prose", "open field", "open keys", "open list", "one answer", "one record", "half a record"],
)
def test_open_text_has_no_shape(answer: Callable[[str, str, random.Random], str]) -> None:
    assert shape_of(answer) is None


def test_a_few_answers_may_be_otherwise() -> None:
    def mostly(text: str, city: str, draw: random.Random) -> str:
        return f"Sorry, I cannot say: {draw.random()}" if draw.random() < 0.03 else record(text, city, draw)

    found = shape_of(mostly, count=600)
    assert isinstance(found, Fields)
    assert field_texts("Sorry", found.fields) is None


def test_too_few_answers_have_no_shape() -> None:
    for count in (0, 1, FEWEST_ANSWERS - 1):
        assert shape_of(lambda text, city, draw: city, count) is None
        assert shape_of(lambda text, city, draw: str(draw.randrange(50)), count) is None
        assert shape_of(lambda text, city, draw: ", ".join(some_colours(draw)), count) is None


@settings(max_examples=30)
@given(st.lists(st.text(st.characters(exclude_categories=()), max_size=8), min_size=100, max_size=130))
def test_any_answers_are_looked_at_without_failing(answers: list[str]) -> None:
    shape = find_shape(answers, answers)
    if shape is not None:
        assert loss_of(answers[0], answers[0], rule_of(shape)) == 0.0


def test_a_shape_is_plain_json() -> None:
    found = shape_of(record)
    assert found is not None
    assert msgspec.json.decode(msgspec.json.encode(found), type=Shape) == found


@given(st.lists(st.sampled_from(["a", "b ", " b", "c", "d\n"]) | st.text("xyz", max_size=3), max_size=300))
def test_a_closed_set_is_what_was_said_more_than_once(answers: list[str]) -> None:
    labels = closed_set(answers)
    stripped = [answer.strip() for answer in answers]
    once = [answer for answer in set(stripped) if stripped.count(answer) == 1]
    more = {answer for answer in stripped if stripped.count(answer) > 1}
    if labels is None:
        assert len(answers) < FEWEST_ANSWERS or len(once) > RARE * len(answers) or len(more) < 2
    else:
        assert set(labels) == more
        counts = [stripped.count(label) for label in labels]
        assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize(
    "answers",
    [
        [],
        ["a", "b"] * 49 + ["a"],
        ["always the same"] * 200,
        [f"free text {n}" for n in range(500)],
        ["a", "b"] * 100 + [f"rare {n}" for n in range(20)],
        [f"label {n}" for n in range(1001)] * 2,
    ],
    ids=["none", "too few", "one", "open", "too many rare", "too many"],
)
def test_what_is_no_closed_set(answers: list[str]) -> None:
    assert closed_set(answers) is None


def test_rare_answers_are_left_out() -> None:
    assert closed_set(["a", "b"] * 100 + ["odd"]) == ("a", "b")
