"""Experts that are made of static ones: their formulas, their forms, and files that do not fit each other."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puhui.core.errors import BundleError
from puhui.models.fields import FieldsModel, RecordForm
from puhui.models.hashing import FeatureOptions
from puhui.models.label_set import LabelSetModel, ListForm
from puhui.models.number import NumberModel
from puhui.models.static import StaticModel
from puhui.models.tower import Tower

OPTIONS = FeatureOptions(buckets=1 << 8)


def constant(labels: tuple[str, ...], chances: list[float]) -> StaticModel:
    """A static expert that gives every text these chances."""
    bias = np.log(np.array(chances, np.float32))
    table, weight = np.zeros((1, len(labels)), np.int8), np.zeros(1, np.float32)
    return StaticModel(labels, OPTIONS, [Tower(np.zeros(OPTIONS.buckets, np.uint16), table, weight, weight, bias)])


LEVELS = constant(("0 €", "10 €", "100 €"), [0.4, 0.35, 0.25])


def test_a_number_is_the_one_with_the_least_loss_to_expect() -> None:
    """0 € is likeliest; 10 € is never far wrong. Expected losses at width 100, by hand."""
    model = NumberModel(LEVELS, [0.0, 10.0, 100.0], width=100.0, tolerance=0.0)
    answer, confidence = model.predict_one("what is it")
    assert answer == "10 €"
    assert confidence == pytest.approx(1 - (0.4 * 0.1 + 0.25 * 0.9))
    # What is within the tolerance is no loss: then 0 and 10 are one.
    close = NumberModel(LEVELS, [0.0, 10.0, 100.0], width=100.0, tolerance=10.0)
    assert close.predict_one("")[1] == pytest.approx(1 - 0.25 * 0.9)


@given(st.lists(st.floats(0.01, 1.0), min_size=3, max_size=3), st.floats(1.0, 1000.0))
def test_a_number_is_the_weighted_median_where_no_loss_is_cut(chances: list[float], width: float) -> None:
    model = NumberModel(constant(("1", "2", "4"), chances), [1.0, 2.0, 4.0], width=3.0 + width, tolerance=0.0)
    shares = np.cumsum(np.array(chances) / sum(chances))
    if np.abs(shares - 0.5).min() > 1e-3:  # else two numbers tie
        assert model.predict_one("")[0] == ("1", "2", "4")[int(np.searchsorted(shares, 0.5))]


@pytest.mark.parametrize(
    ("counts", "answer", "confidence"),
    [([0.1, 0.6, 0.3], "a", 0.6 * 5 / 8), ([0.1, 0.3, 0.6], "a + b", 0.6 * 3 / 5), ([0.8, 0.1, 0.1], "-", 0.8)],
)
def test_a_set_is_the_likeliest_count_of_the_likeliest_labels(
    counts: list[float], answer: str, confidence: float
) -> None:
    which = constant(("c", "b", "a"), [0.2, 0.3, 0.5])
    form = ListForm(between=" + ", empty="-")
    model = LabelSetModel(which, constant(("0", "1", "2"), counts), order=("a", "b", "c"), form=form)
    found, sure = model.predict_one("anything")
    assert (found, sure) == (answer, pytest.approx(confidence))


def test_sets_of_one_size_need_no_count(tmp_path: Path) -> None:
    model = LabelSetModel(
        constant(("c", "b", "a"), [0.2, 0.3, 0.5]), 2, order=("b", "a", "c"), form=ListForm("[", ",", "]")
    )
    assert model.predict_one("x") == ("[b,a]", pytest.approx(3 / 5))
    model.save(tmp_path)
    assert not (tmp_path / "count").exists()
    assert LabelSetModel.load(tmp_path).predict_one("x") == model.predict_one("x")
    everything = LabelSetModel(constant(("b", "a"), [0.9, 0.1]), 2, order=("a", "b"), form=ListForm())
    assert everything.predict_one("") == ("a, b", 1.0)


@given(st.lists(st.text(max_size=6), min_size=1, max_size=3), st.booleans(), st.sampled_from([None, 1]))
def test_a_record_is_written_as_json_writes_it(values: list[str], escaped: bool, indent: int | None) -> None:
    values = [value for value in values if value != "null"]
    keys = [f"k{number}" for number in range(len(values))]
    marks = {key: f"\x00{number}\x00" for number, key in enumerate(keys)}
    text = json.dumps(marks, indent=indent)
    pieces = [text]
    for mark in marks.values():
        pieces[-1:] = pieces[-1].split(json.dumps(mark))
    form = RecordForm(tuple(pieces), (True,) * len(values), escaped)
    assert form.written(values) == json.dumps(dict(zip(keys, values, strict=True)), indent=indent, ensure_ascii=escaped)


def test_a_record_is_as_sure_as_all_its_fields() -> None:
    form = RecordForm(("<", "|", ">"), (False, True))
    model = FieldsModel(
        [("static", constant(("a", "b"), [0.8, 0.2])), ("static", constant(("x", "null"), [0.3, 0.7]))], form
    )
    assert model.predict_one("") == ("<a|null>", pytest.approx(0.8 * 0.7))
    assert model.predict_many(["", "x"])[0] == ["<a|null>"] * 2
    assert model.predict_many([])[0] == []


def test_parts_that_do_not_fit_are_refused() -> None:
    ab = constant(("a", "b"), [0.5, 0.5])
    for numbers, width, tolerance in (
        ([1.0], 1.0, 0.0),
        ([1.0, np.nan], 1.0, 0.0),
        ([1.0, 2.0], 0.0, 0.0),
        ([1, 2], 1, -1),
    ):
        with pytest.raises(BundleError):
            NumberModel(ab, numbers, width=width, tolerance=tolerance)
    for count, order in ((1, ("a",)), (1, ("a", "c")), (3, ("a", "b")), (ab, ("a", "b"))):
        with pytest.raises(BundleError):
            LabelSetModel(ab, count, order=order, form=ListForm())
    for parts, form in (([], RecordForm(("",), ())), ([("static", ab)], RecordForm(("",), (True,)))):
        with pytest.raises(BundleError, match="fields"):
            FieldsModel(parts, form)


@pytest.mark.parametrize("family", [["fields"], ["pickle"], ["static", "static"]])
def test_records_of_strange_families_are_refused(tmp_path: Path, family: list[str]) -> None:
    FieldsModel([("static", constant(("a", "b"), [0.5, 0.5]))], RecordForm(("", ""), (True,))).save(tmp_path)
    config = msgspec.json.decode((tmp_path / "fields.json").read_bytes())
    (tmp_path / "fields.json").write_bytes(msgspec.json.encode({**config, "families": family}))
    with pytest.raises(BundleError, match=r"fields\.json|static\.json"):
        FieldsModel.load(tmp_path)


def test_another_format_asks_for_an_upgrade(tmp_path: Path) -> None:
    NumberModel(LEVELS, [0.0, 10.0, 100.0], width=50.0, tolerance=0.0).save(tmp_path)
    config = msgspec.json.decode((tmp_path / "number.json").read_bytes())
    (tmp_path / "number.json").write_bytes(msgspec.json.encode({**config, "format": 2}))
    with pytest.raises(BundleError, match=r"number\.json has format 2; this Puhui reads 1: upgrade"):
        NumberModel.load(tmp_path)
