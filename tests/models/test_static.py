"""Static experts: laws for any text, and bundles that are saved, damaged and refused."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from puhui.core.errors import BundleError
from puhui.models.hashing import FeatureOptions, features
from puhui.models.reliability import Reliability
from puhui.models.static import CONFIG_FILE, WEIGHTS_FILE, StaticModel, margins_of
from puhui.models.tower import Reads, Tower

OPTIONS = FeatureOptions(buckets=1 << 10)
LABELS = ("pay", "查询", "other")
TEXTS = st.lists(st.text(st.characters(), max_size=80), max_size=10)


def tower(*, reads: Reads = "all", seed: int = 0, most: int = 127) -> Tower:
    draw = np.random.default_rng(seed)
    rows = 300
    slots = np.zeros(OPTIONS.buckets, np.uint16)
    slots[np.sort(draw.choice(OPTIONS.buckets, rows - 1, replace=False))] = np.arange(1, rows)
    table = draw.integers(-most, most + 1, (rows, len(LABELS))).astype(np.int8)
    weight = draw.random(rows, np.float32)
    weight[0], table[0] = 0.0, 0
    bias = draw.normal(size=len(LABELS)).astype(np.float32)
    return Tower(slots, table, weight * np.float32(0.02), weight, bias, reads)


TRUST = Reliability(0.625, np.array([-1, 0.5, 2], np.float32))
MODEL = StaticModel(LABELS, OPTIONS, [tower(), tower(reads="words", seed=1), tower(reads="order", seed=2)], TRUST)


@given(TEXTS)
def test_any_text_gets_a_label_and_batches_equal_singles(texts: list[str]) -> None:
    answers, confidences = MODEL.predict_many(texts)
    assert len(answers) == len(confidences) == len(texts)
    for text, answer, confidence in zip(texts, answers, confidences, strict=True):
        label, alone = MODEL.predict_one(text)
        assert label in MODEL.labels
        assert 0.0 <= alone <= 1.0
        assert alone == pytest.approx(float(confidence), abs=1e-5)
        if margins_of(MODEL.logits_many([text]))[0][0] > 1e-4:  # below, two labels may tie to rounding
            assert label == answer


def test_batches_larger_than_a_chunk() -> None:
    texts = [f"text {i}" for i in range(200)]
    answers, _ = MODEL.predict_many(texts)
    assert answers == [MODEL.predict_one(text)[0] for text in texts]


def test_the_formula() -> None:
    """One feature known, computed by hand."""
    slots = np.zeros(OPTIONS.buckets, np.uint16)
    slots[features("hello", OPTIONS).buckets[0]] = 1
    table = np.array([[0, 0, 0], [100, -50, -60]], np.int8)
    weight = np.array([0, 2], np.float32)
    one = Tower(slots, table, weight * np.float32(0.01), weight, np.array([0, 0, 0.5], np.float32))
    label, confidence = StaticModel(("a", "b", "c"), OPTIONS, [one]).predict_one("hello")
    # 0.02 · (100, −50, −60) / 2 + bias = (1, −0.5, −0.1), whatever the weight; the third does not count
    assert label == "a"
    assert confidence == pytest.approx(1 / (1 + np.exp(-1.1)), abs=1e-6)


def test_the_formula_of_words_in_order() -> None:
    slots = np.zeros(OPTIONS.buckets, np.uint16)
    for row, bucket in enumerate(sorted(int(features(word, OPTIONS).buckets[0]) for word in ("pay", "book")), 1):
        slots[bucket] = row
    pay = int(slots[features("pay", OPTIONS).buckets[0]])
    table = np.zeros((3, 3), np.int8)
    table[pay], table[3 - pay] = (90, 0, 0), (0, 60, 0)
    weight = np.array([0, 2, 2], np.float32)
    one = Tower(slots, table, weight * np.float32(0.1), weight, np.zeros(3, np.float32), "order")
    model = StaticModel(("a", "b", "c"), OPTIONS, [one])
    # places −3/8, −1/8, 1/8, 3/8; "to" owns no row; weights 2, 2, 2 of the known words
    expected = 0.2 * np.array([90 * (-3 / 8 + 3 / 8), 60 * (1 / 8), 0]) / 12**0.5
    assert model.logits_many(["pay to book pay"])[0] == pytest.approx(expected, abs=1e-5)
    assert model.logits_many(["book to pay"])[0] == pytest.approx(-model.logits_many(["pay to book"])[0], abs=1e-5)
    assert not model.logits_many(["pay"]).any()


@pytest.mark.parametrize(("reads", "written"), [("words", 3), ("order", 4)])
def test_the_format_says_what_a_reader_must_know(tmp_path: Path, reads: Reads, written: int) -> None:
    StaticModel(LABELS, OPTIONS, [tower(), tower(reads=reads, seed=1)]).save(tmp_path)
    assert json.loads((tmp_path / CONFIG_FILE).read_text())["format"] == written
    assert StaticModel.load(tmp_path).towers[1].reads == reads


def test_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    MODEL.save(tmp_path / "deep" / "expert")
    again = StaticModel.load(tmp_path / "deep" / "expert")
    assert again.labels == MODEL.labels
    assert again.options == MODEL.options
    assert again.size_bytes == MODEL.size_bytes
    assert again.reliability.slope == TRUST.slope
    for text in ("", "查询余额", "pay my bill", "\ud800"):
        assert again.predict_one(text) == MODEL.predict_one(text)


def test_numbers_of_four_bits_take_half_a_byte_each_and_answer_the_same(tmp_path: Path) -> None:
    small = StaticModel(LABELS, OPTIONS, [tower(most=7), tower(reads="words", seed=1)])
    small.save(tmp_path)
    stored = load_file(tmp_path / WEIGHTS_FILE)
    assert stored["0.table"].dtype == np.uint8
    assert stored["0.table"].shape == (300, 2)
    assert stored["1.table"].dtype == np.int8
    again = StaticModel.load(tmp_path)
    assert np.array_equal(again.towers[0].table, small.towers[0].table)
    assert small.size_bytes < MODEL.size_bytes
    assert again.predict_one("pay my bill") == small.predict_one("pay my bill")


def test_the_format_on_disk_read_by_hand(tmp_path: Path) -> None:
    """As the module describes it, for those who read it in another language."""
    one = tower(most=7)
    StaticModel(LABELS, OPTIONS, [one], TRUST).save(tmp_path)
    arrays = load_file(tmp_path / WEIGHTS_FILE)
    row_of = {}
    for bucket in range(OPTIONS.buckets):
        if arrays["0.owners"][bucket // 8] >> (bucket % 8) & 1:
            row_of[bucket] = len(row_of) + 1
    rows = sorted({row_of.get(bucket, 0) for bucket in features("pay it", OPTIONS).buckets.tolist()} - {0})
    logits, norm = np.zeros(3), 0.0
    for row in rows:
        low, last = arrays["0.table"][row].tolist()
        logits += arrays["0.gain"][row] * np.array([(low & 15) - 8, (low >> 4) - 8, (last & 15) - 8])
        norm += float(arrays["0.weight"][row]) ** 2
    logits = logits / max(norm**0.5, 1e-6) + arrays["0.bias"]
    assert StaticModel.load(tmp_path).logits_many(["pay it"])[0] == pytest.approx(logits, abs=1e-5)


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        MODEL.save(tmp_path / name)
    for file in (WEIGHTS_FILE, CONFIG_FILE):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize("file", [WEIGHTS_FILE, CONFIG_FILE])
@pytest.mark.parametrize("harm", ["missing", "empty", "half", "garbage", "folder"])
def test_damaged_bundles_are_refused_by_name(tmp_path: Path, file: str, harm: str) -> None:
    MODEL.save(tmp_path)
    whole = (tmp_path / file).read_bytes()
    (tmp_path / file).unlink()
    if harm == "folder":
        (tmp_path / file).mkdir()
    elif harm != "missing":
        parts = {"empty": b"", "half": whole[: len(whole) // 2], "garbage": b"\xff" * 100}
        (tmp_path / file).write_bytes(parts[harm])
    with pytest.raises(BundleError, match=file):
        StaticModel.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("0.owners", np.full(OPTIONS.buckets // 8, 255, np.uint8)),
        ("0.owners", np.zeros(OPTIONS.buckets // 8, np.uint8)),
        ("0.owners", np.zeros(5, np.uint8)),
        ("0.owners", np.zeros(OPTIONS.buckets // 8, np.int8)),
        ("0.table", np.zeros((300, 3), np.float32)),
        ("0.table", np.zeros((0, 3), np.int8)),
        ("0.table", np.zeros((300, 2), np.int8)),
        ("0.table", np.zeros((), np.int8)),
        ("0.table", np.zeros((300, 1), np.uint8)),
        ("0.gain", np.full(300, np.nan, np.float32)),
        ("0.gain", np.ones(300, np.float32)),
        ("0.bias", np.zeros(2, np.float32)),
        ("reliability.slope", np.zeros(1, np.float32)),
        ("reliability.slope", np.ones(2, np.float32)),
        ("reliability.offset", np.zeros(2, np.float32)),
        ("0.surprise", np.zeros(1, np.float32)),
        ("7.bias", np.zeros(3, np.float32)),
        ("bias", np.zeros(3, np.float32)),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, name: str, value: np.ndarray) -> None:
    MODEL.save(tmp_path)
    save_file({**load_file(tmp_path / WEIGHTS_FILE), name: value}, tmp_path / WEIGHTS_FILE)
    with pytest.raises(BundleError, match=WEIGHTS_FILE):
        StaticModel.load(tmp_path)


@pytest.mark.parametrize(
    "change", [{"format": 99}, {"labels": ["pay", "pay", "other"]}, {"labels": ["pay"]}, {"reads": []}]
)
def test_configs_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    MODEL.save(tmp_path)
    config = msgspec.json.decode((tmp_path / CONFIG_FILE).read_bytes())
    (tmp_path / CONFIG_FILE).write_bytes(msgspec.json.encode({**config, **change}))
    with pytest.raises(BundleError):
        StaticModel.load(tmp_path)
