"""What the card says of an expert's matrices."""

from __future__ import annotations

import itertools

import pytest

import experts as sample
from puhui.compress.precision_kept import kept_of
from puhui.compress.static_training import coarser, distill_static


def test_tables_of_eight_bits_say_what_four_would_change() -> None:
    texts = sample.questions(300)
    model = distill_static(texts, [sample.subject_of(text) for text in texts])
    odd = [f"{one} {two}" for one, two in itertools.pairwise(texts)]  # two subjects: near to a tie
    (kept,) = kept_of(model, odd)
    assert (kept.name, kept.bits) == ("table of n-grams", 8)
    said, other = model.predict_many(odd)[0], coarser(model).predict_many(odd)[0]
    assert kept.sensitivity == pytest.approx(sum(a != b for a, b in zip(said, other, strict=True)) / len(odd))
    (four,) = kept_of(coarser(model), odd)
    assert (four.bits, four.sensitivity) == (4, None)
