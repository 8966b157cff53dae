"""The words of a text and where they stand: what a span begins and ends with, and what two spans share.

The kinds of characters are those of `hashing`, so that an ideograph is a word by itself and no segmenter is
needed. What is neither white space nor part of a word is a *mark*: punctuation, one character each. Full-width
punctuation is marks here, which NFKC makes of it there: a span is copied as it stands, so nothing is normalised.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from typing import NamedTuple

from puhui.models.hashing import IDEOGRAPH, KIND_RANGES, SEPARATOR

_FULL_WIDTH_MARKS = ((0xFF01, 0xFF10), (0xFF1A, 0xFF21), (0xFF3B, 0xFF41), (0xFF5B, 0xFF66))
_CAPITALS = (0x41, 0x5B)  # the ranges of `hashing` are of lower case, where these do not occur


def _class(ranges: list[tuple[int, int]]) -> str:
    return "".join(f"\\U{first:08x}-\\U{end - 1:08x}" for first, end in ranges if first < end)


def _ranges(kind: int) -> list[tuple[int, int]]:
    """The ranges of a kind, without ASCII's capitals."""
    found = [(first, end) for first, end, of in KIND_RANGES if of == kind]
    before = [(first, min(end, _CAPITALS[0])) for first, end in found]
    return before + [(max(first, _CAPITALS[1]), end) for first, end in found]


_APART = _class([*_ranges(SEPARATOR), *_FULL_WIDTH_MARKS])
_IDEOGRAPHS = _class(_ranges(IDEOGRAPH))
_WORD = f"[^{_APART}{_IDEOGRAPHS}]+|[{_IDEOGRAPHS}]"
_FIND = re.compile(rf"({_WORD})|\S")


class Word(NamedTuple):
    """A word or mark, text[start:end]."""

    start: int
    end: int
    mark: bool


def find_words(text: str, most: int | None = None) -> list[Word]:
    """The words and marks of a text in order, the first `most` of them.

    >>> ["Pay 5,50 € 给张三。"[word.start : word.end] for word in find_words("Pay 5,50 € 给张三。")]
    ['Pay', '5', ',', '50', '€', '给', '张', '三', '。']
    """
    found: list[Word] = []
    for match in _FIND.finditer(text):
        if len(found) == most:
            break
        found.append(Word(match.start(), match.end(), match.group(1) is None))
    return found


def find_passage(text: str, answer: str, most: int | None = None) -> tuple[int, int] | None:
    """The numbers of the first and last word where whole words of `text` first are `answer`; None if nowhere.

    Among the first `most` words.

    >>> find_passage("to Bad Aibling, please", "Bad Aibling")
    (1, 2)
    """
    at = text.find(answer) if answer else -1
    if at < 0:
        return None
    words = find_words(text, most)
    starts = {word.start: number for number, word in enumerate(words)}
    ends = {word.end: number for number, word in enumerate(words)}
    while at >= 0:
        if at in starts and at + len(answer) in ends:
            return starts[at], ends[at + len(answer)]
        at = text.find(answer, at + 1)
    return None


def word_f1(one: str, other: str) -> float:
    """F1 of the words that two texts share, in [0, 1]; marks, case and order do not count (Rajpurkar et al. 2016).

    Unlike SQuAD's it keeps articles, which only English has. Two texts without a word share all of them.

    >>> word_f1("the Eiffel Tower", "Eiffel tower.")
    0.8
    """
    mine, theirs = _bag(one), _bag(other)
    if not mine and not theirs:
        return 1.0
    return 2.0 * (mine & theirs).total() / (mine.total() + theirs.total())


def _bag(text: str) -> Counter[str]:
    folded = unicodedata.normalize("NFKC", text).lower()
    return Counter(folded[word.start : word.end] for word in find_words(folded) if not word.mark)
