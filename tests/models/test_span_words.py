"""Words where they stand: the kinds of `hashing`, passages found again, and F1 against its definition."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puhui.models.hashing import IDEOGRAPH, KIND_RANGES, SEPARATOR
from puhui.models.span_words import find_passage, find_words, word_f1

ANY = st.text(st.characters(exclude_categories=()), max_size=60)


@given(ANY)
def test_words_and_marks_cover_all_but_white_space(text: str) -> None:
    words = find_words(text)
    covered = [place for word in words for place in range(word.start, word.end)]
    assert covered == sorted(set(covered))
    assert all(text[place].isspace() for place in set(range(len(text))) - set(covered))
    assert all(word.end - word.start == 1 for word in words if word.mark)
    assert find_words(text, 3) == words[:3]


def test_kinds_are_those_of_the_static_expert() -> None:
    """A capital is a letter; full-width punctuation, which NFKC makes ASCII of, is a mark."""
    for first, end, kind in KIND_RANGES:
        for code in range(first, end):
            character = chr(code)
            found = find_words(f"a{character}b")
            if character.isspace() or (character.isascii() and character.isupper()):
                continue
            assert len(found) == 3, hex(code)
            assert found[1].mark == (kind == SEPARATOR), hex(code)
            assert kind in (SEPARATOR, IDEOGRAPH)
    assert [word.mark for word in find_words("ABC，Ä（１２）")] == [False, True, False, True, False, True]


@given(ANY, st.data())
def test_a_passage_of_whole_words_is_found_again(text: str, data: st.DataObject) -> None:
    words = find_words(text)
    if not words:
        assert find_passage(text, text or "x") is None
        return
    first = data.draw(st.integers(0, len(words) - 1))
    last = data.draw(st.integers(first, len(words) - 1))
    answer = text[words[first].start : words[last].end]
    found = find_passage(text, answer)
    assert found is not None
    assert found <= (first, last)  # the first place of all
    assert text[words[found[0]].start : words[found[1]].end] == answer
    assert find_passage(text, answer, most=found[1]) is None or found[1] == 0


@pytest.mark.parametrize(("text", "answer"), [("https", "http"), ("ab", ""), ("", "a"), ("a b", "a  b"), ("Ab", "ab")])
def test_parts_of_words_are_no_passage(text: str, answer: str) -> None:
    assert find_passage(text, answer) is None


@given(st.lists(st.sampled_from(["a", "b", "Straße", "上"])), st.lists(st.sampled_from(["a", "c", "straße", "上"])))
def test_f1_is_the_mean_of_precision_and_recall(mine: list[str], theirs: list[str]) -> None:
    shared = sum((Counter(w.lower() for w in mine) & Counter(w.lower() for w in theirs)).values())
    found = word_f1(" ".join(mine), ", ".join(theirs) + "!")
    if not mine and not theirs:
        assert found == 1.0
    elif not shared:
        assert found == 0.0
    else:
        precision, recall = shared / len(mine), shared / len(theirs)
        assert found == pytest.approx(2 * precision * recall / (precision + recall))
