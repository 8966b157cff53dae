"""The rules by which answers are compared: their laws, their references, and what no rule can read."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puhui.cascade.agreement import (
    EXACT,
    FieldLoss,
    NumberLoss,
    Rule,
    SetLoss,
    SpanLoss,
    agreements,
    canonical,
    is_whole,
    json_text,
    loss_of,
    split_number,
)
from puhui.cascade.guarantee import calibrate_threshold

RECORD = FieldLoss({"city": SpanLoss(), "beds": NumberLoss(4.0, 0.5), "tags": SetLoss(), "kind": EXACT})
RULES: list[Rule] = [EXACT, SetLoss(), SetLoss(","), NumberLoss(10.0), NumberLoss(3.0, 1.0), SpanLoss(), RECORD]
ANSWERS = (
    st.text(st.characters(exclude_categories=()), max_size=20)
    | st.from_regex(r"[-+]?\d{1,4}(\.\d{1,3})?( km)?", fullmatch=True)
    | st.lists(st.sampled_from(["red", "blue", "green"])).map(", ".join)
    | st.lists(st.sampled_from(["red", "blue", 1, None])).map(json.dumps)
    | st.fixed_dictionaries(
        {"city": st.text("Uulm 世", max_size=6), "beds": st.integers(0, 9) | st.none()},
        optional={
            "tags": st.lists(st.sampled_from("ab")),
            "kind": st.booleans(),
            "more": st.dictionaries(st.text(), st.none()),
        },
    ).map(json.dumps)
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@given(one=ANSWERS, other=ANSWERS)
def test_every_loss_is_one_of_two_answers(rule: Rule, one: str, other: str) -> None:
    loss = loss_of(one, other, rule)
    assert 0.0 <= loss <= 1.0
    assert loss == loss_of(other, one, rule)
    assert loss_of(one, f" {one}\n", rule) == 0.0
    assert loss_of(None, other, rule) == 0.0
    assert loss <= loss_of(one, other)  # no rule is stricter than word for word
    if is_whole(rule):
        assert loss in (0.0, 1.0)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_a_rule_is_plain_json(rule: Rule) -> None:
    written = msgspec.json.encode(rule)
    assert msgspec.json.decode(written, type=Rule) == rule
    assert msgspec.convert(json.loads(written), Rule) == rule


@pytest.mark.parametrize(
    ("rule", "one", "other", "loss"),
    [
        (SetLoss(), '["a", "b"]', '["b","a"]', 0.0),
        (SetLoss(), '["a", "b"]', '["b", "c"]', 2 / 3),
        (SetLoss(), "[]", '["b"]', 1.0),
        (SetLoss(), "[]", "[ ]", 0.0),
        (SetLoss(), '["a"', '["a"]', 1.0),
        (SetLoss(), '"a"', '["a"]', 1.0),
        (SetLoss(","), "a , b", "b,a", 0.0),
        (SetLoss("\n"), "- a\n- b", "- a", 0.5),
        (NumberLoss(10.0), "3", "8", 0.5),
        (NumberLoss(10.0), "3", "99", 1.0),
        (NumberLoss(10.0), "3.0", "3", 0.0),
        (NumberLoss(10.0, 1.0), "3", "4", 0.0),
        (NumberLoss(10.0, 1.0), "3", "5", 0.2),
        (NumberLoss(10.0), "3 km", "3 mi", 1.0),
        (NumberLoss(10.0), "-2 °C", "2 °C", 0.4),
        (NumberLoss(10.0), "three", "3", 1.0),
        (NumberLoss(10.0), "3 or 4", "3", 1.0),
        (NumberLoss(10.0), "9" * 400, "1" * 400, 1.0),
        (SpanLoss(), "the tower", "The Tower.", 0.0),
        (SpanLoss(), "Eiffel tower", "the Eiffel tower", 0.2),
        (SpanLoss(), "none", "Eiffel tower", 1.0),
        (SpanLoss(), "张三", "张四", 0.5),
        (SpanLoss(), "?", "!", 0.0),
        (RECORD, '{"city": "Ulm"}', '```json\n{"city":"Ulm"}\n```', 0.0),
        (RECORD, '{"city": "Bad Ulm", "kind": 1}', '{"kind": 1, "city": "Bad Aibling"}', 0.5),
        (RECORD, '{"city": "Ulm", "kind": 1}', '{"city": "Ulm", "kind": 2}', 1.0),
        (RECORD, '{"city": "Ulm", "kind": "1"}', '{"city": "Ulm", "kind": 1}', 1.0),
        (RECORD, '{"city": "null"}', '{"city": null}', 1.0),
        (RECORD, '{"city": "Ulm"}', '{"city": "Ulm", "kind": 1}', 1.0),
        (RECORD, '{"beds": 2, "tags": ["a", "b"]}', '{"beds": 3, "tags": ["b"]}', 0.5),
        (RECORD, '{"city": "Ulm"', '{"city": "Ulm"}', 1.0),
        (RECORD, "Ulm", '{"city": "Ulm"}', 1.0),
        (FieldLoss({"at/city": SpanLoss()}), '{"at": {"city": "Bad Ulm"}}', '{"at": {"city": "Ulm"}}', 1 / 3),
    ],
)
def test_what_a_rule_says(rule: Rule, one: str, other: str, loss: float) -> None:
    assert loss_of(one, other, rule) == pytest.approx(loss)


@given(st.lists(st.tuples(ANSWERS, ANSWERS), max_size=8), st.sampled_from(RULES))
def test_agreements_are_what_calibration_asks_for(pairs: list[tuple[str, str]], rule: Rule) -> None:
    given_, big = [one for one, _ in pairs], [other for _, other in pairs]
    found = agreements(given_, big, rule)
    assert found.dtype == (np.bool_ if is_whole(rule) else np.float64)
    assert found.tolist() == pytest.approx([1.0 - loss_of(one, other, rule) for one, other in pairs])
    if pairs:
        assert calibrate_threshold(np.ones(len(pairs)), found).rows == len(pairs)


def test_only_rules_of_zero_and_one_prove_by_the_binomial() -> None:
    assert is_whole(EXACT)
    assert is_whole(FieldLoss({"a": EXACT, "b": FieldLoss({"c": EXACT})}))
    assert not is_whole(FieldLoss({"a": EXACT, "b": SpanLoss()}))
    assert not any(map(is_whole, (SetLoss(), NumberLoss(1.0), SpanLoss(), RECORD)))


def test_rows_that_do_not_pair_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        agreements(["a"], ["a", "b"])


@given(st.text(max_size=30))
def test_a_number_is_cut_out_without_losing_anything(text: str) -> None:
    found = split_number(text)
    if found is not None:
        assert "".join(found) == text
        float(found[1])


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3)))
def test_values_become_text_and_are_told_apart(value: object) -> None:
    text = json_text(value)
    assert text == value if isinstance(value, str) else json.loads(text) == value
    assert canonical(text) == canonical(canonical(text))
