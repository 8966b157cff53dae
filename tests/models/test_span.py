"""Span experts: what their chances are, what they copy, and files that are refused."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from puhui.core.errors import BundleError
from puhui.models.span import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    SpanModel,
    SpanOptions,
    first_features,
    last_features,
    nothing_features,
    read_words,
)
from puhui.models.span_words import find_words

OPTIONS = SpanOptions(longest=4, nothing="none", buckets=1 << 10, most_words=50)


def model(options: SpanOptions = OPTIONS, seed: int = 0) -> SpanModel:
    first, last = np.random.default_rng(seed).normal(size=(2, options.buckets)).astype(np.float16)
    return SpanModel(options, first, last)


MODEL, ALWAYS = model(), model(msgspec.structs.replace(OPTIONS, nothing=None))


@given(st.text(st.characters(exclude_categories=()), max_size=80))
def test_any_text_gets_whole_words_of_it_or_nothing(text: str) -> None:
    for each in (MODEL, ALWAYS):
        answer, chance = each.predict_one(text)
        assert 0.0 <= chance <= 1.0
        words = find_words(text, OPTIONS.most_words)
        passages = {
            text[first.start : last.end]
            for place, first in enumerate(words)
            for last in words[place : place + OPTIONS.longest]
        }
        assert answer in passages | {each.options.nothing or ""}
        if each.options.nothing is None and words:
            assert answer in passages
            assert chance > 0.0


def test_chances_of_all_passages_sum_to_one() -> None:
    """The formula, by the book: one choice of a first word (or nothing), one of a last word."""
    text = "ship the red box to Ulm"
    reading = read_words(text, OPTIONS)
    stored = MODEL._stored
    first, last = (stored[name].astype(np.float64) for name in ("first", "last"))
    scores = [first[row].sum() for row in first_features(reading, OPTIONS)]
    nothing = nothing_features(reading, OPTIONS)
    scores.append(first[nothing].sum() / math.sqrt(len(nothing)))
    begin = np.exp(scores) / np.exp(scores).sum()
    chances = {"none": begin[-1]}
    for place in range(len(reading.words)):
        ends = np.exp([last[row].sum() for row in last_features(reading, place, OPTIONS)])
        for step, share in enumerate(ends / ends.sum()):
            passage = text[reading.words[place].start : reading.words[place + step].end]
            chances[passage] = chances.get(passage, 0.0) + begin[place] * share
    assert sum(chances.values()) == pytest.approx(1.0)
    answer, chance = MODEL.predict_one(text)
    assert answer == max(chances, key=chances.__getitem__)
    assert chance == pytest.approx(chances[answer], abs=1e-5)


def test_words_beyond_the_most_are_not_looked_at() -> None:
    text = " ".join(f"w{n}" for n in range(200))
    assert MODEL.predict_one(text)[0] in {"none", *text.split()[:50]} or len(MODEL.predict_one(text)[0].split()) <= 4
    assert len(read_words(text, OPTIONS).words) == 50


def test_the_same_word_elsewhere_has_other_features() -> None:
    reading = read_words("pay Bob and pay Bob", OPTIONS)
    rows = first_features(reading, OPTIONS)
    assert not np.array_equal(rows[1], rows[4])
    assert len(set(rows[1]) & set(rows[4])) >= 3  # the word itself, its shape, the word before
    assert len(last_features(reading, 1, OPTIONS)) == 4
    assert len(last_features(reading, 4, OPTIONS)) == 1


@pytest.mark.parametrize(
    "array",
    [np.zeros(5, np.float16), np.zeros(1 << 10, np.float32), np.full(1 << 10, np.nan, np.float16)],
    ids=["shape", "type", "nan"],
)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, array: np.ndarray) -> None:
    MODEL.save(tmp_path)
    save_file({"first": array, "last": np.zeros(1 << 10, np.float16)}, tmp_path / WEIGHTS_FILE)
    with pytest.raises(BundleError, match=WEIGHTS_FILE):
        SpanModel.load(tmp_path)


@pytest.mark.parametrize(
    "change", [{"format": 9}, {"options": {"longest": 0}}, {"options": {"longest": 2, "buckets": 3}}, {"options": 1}]
)
def test_configs_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    MODEL.save(tmp_path)
    config = msgspec.json.decode((tmp_path / CONFIG_FILE).read_bytes())
    (tmp_path / CONFIG_FILE).write_bytes(msgspec.json.encode({**config, **change}))
    with pytest.raises(BundleError, match=CONFIG_FILE):
        SpanModel.load(tmp_path)
