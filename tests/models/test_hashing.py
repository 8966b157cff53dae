"""Hashing: against a slow reading of the module's own specification, and its laws for any text."""

from __future__ import annotations

import time
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puhui.models.hashing import (
    BASE,
    CODE_MIX,
    IDEOGRAPH,
    KIND_RANGES,
    LETTER,
    SALT,
    SEPARATOR,
    FeatureOptions,
    features,
)

MASK = 0xFFFFFFFF
ANY_TEXT = st.text(st.characters(), max_size=60)  # lone surrogates included
MIXED_TEXT = st.text("aB é,.!' 余额查询テスト한글𝒜\n", max_size=40)
ASCII_TEXT = st.text(st.characters(max_codepoint=127), max_size=60)  # read by a shorter way
OPTIONS = FeatureOptions(buckets=1 << 18)


def kind_of(code: int) -> int:
    return next((kind for first, end, kind in KIND_RANGES if first <= code < end), LETTER)


def finalised(number: int, buckets: int) -> int:
    number ^= number >> 16
    number = number * 0x85EBCA6B & MASK
    number ^= number >> 13
    number = number * 0xC2B2AE35 & MASK
    return (number ^ number >> 16) % buckets


def slow_features(text: str, options: FeatureOptions) -> tuple[list[int], int]:
    """The specification, one character at a time, as the browser's runtime does it."""
    symbols: list[tuple[int, int]] = []
    for code in map(ord, f" {unicodedata.normalize('NFKC', text).lower()} "):
        kind = kind_of(code)
        if kind == SEPARATOR and symbols and symbols[-1][1] == SEPARATOR:
            continue
        mixed = (32 if kind == SEPARATOR else code) * int(CODE_MIX) & MASK
        symbols.append((mixed ^ mixed >> 15, kind))

    def span(first: int, end: int, salt: int) -> int:
        total = sum(symbols[i][0] * pow(BASE, i - first, 1 << 32) for i in range(first, end))
        return finalised((total + salt * SALT) & MASK, options.buckets)

    words: list[tuple[int, int]] = []
    for i, (_, kind) in enumerate(symbols):
        if kind == LETTER and words and words[-1][1] == i and symbols[i - 1][1] == LETTER:
            words[-1] = (words[-1][0], i + 1)
        elif kind in (LETTER, IDEOGRAPH):
            words.append((i, i + 1))
    if not words:
        return [finalised(SALT, options.buckets)], 1
    runs = [span(words[i][0], words[i + k][1], -1 - k) for k in range(options.words) for i in range(len(words) - k)]
    grams = [
        span(i, i + n, n) for n in range(options.char_min, options.char_max + 1) for i in range(len(symbols) - n + 1)
    ]
    return runs + grams, len(words)


@given(ANY_TEXT | MIXED_TEXT | ASCII_TEXT)
def test_features_are_the_specification(text: str) -> None:
    found = features(text, OPTIONS)
    buckets, words = slow_features(text, OPTIONS)
    assert found.buckets.dtype == np.uint32
    assert (found.buckets.tolist(), found.words) == (buckets, words)


@given(ANY_TEXT, st.integers(1, 20), st.integers(1, 4))
def test_any_text_has_features_within_the_buckets(text: str, log2_buckets: int, words: int) -> None:
    options = FeatureOptions(buckets=1 << log2_buckets, words=words, char_min=1, char_max=3)
    found = features(text, options)
    assert 1 <= found.words <= len(found.buckets)
    assert int(found.buckets.max()) < options.buckets


def test_known_buckets() -> None:
    """Frozen: a change here makes every expert in the field, and the browser's runtime, answer wrongly."""
    assert features("Hi 余额", FeatureOptions(buckets=1 << 16)).buckets.tolist() == [
        47443,
        39408,
        35934,
        62177,
        31553,
        10230,
        49420,
        38590,
        51739,
        3444,
        7325,
        45047,
        24100,
        47429,
        22219,
        45335,
        5508,
    ]


def test_case_width_and_punctuation_do_not_count() -> None:
    plain = features("hello world 1", OPTIONS).buckets
    assert np.array_equal(plain, features("  HELLO,   Ｗｏｒｌｄ… １!? ", OPTIONS).buckets)


def test_every_ideograph_is_a_word() -> None:
    assert features("查余额 now", OPTIONS).words == 4


def test_empty_text_is_one_feature() -> None:
    assert len(features("", OPTIONS).buckets) == 1
    assert np.array_equal(features("", OPTIONS).buckets, features(" !? ", OPTIONS).buckets)


def test_spans_hash_alike_wherever_they_lie() -> None:
    options = FeatureOptions(buckets=1 << 20, words=1, char_min=3, char_max=3)
    one, other = features("cat", options), features("a bird and a cat", options)
    assert set(one.buckets.tolist()) <= set(other.buckets.tolist())


def test_long_texts_cost_no_more_than_the_cap() -> None:
    options = FeatureOptions(max_chars=1000)
    start = time.perf_counter()
    found = features("start " + "ﷺ " * 1_000_000 + "end", options)
    assert time.perf_counter() - start < 1.0
    assert len(found.buckets) < 1002 * 5
    words = FeatureOptions(max_chars=1000, words=1)
    ends = {int(features(word, words).buckets[0]) for word in ("start", "end")}
    assert ends <= set(features("start " + "x" * 5000 + " end", words).buckets.tolist())


@pytest.mark.parametrize("wrong", [{"buckets": 1000}, {"buckets": 1}, {"char_min": 0}, {"char_max": 2}, {"words": 0}])
def test_impossible_options_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"power of two|must satisfy"):
        FeatureOptions(**wrong)
