"""More texts where there are few: the big model says them in other words, or two of them are crossed.

A big model that can write is asked for other ways in which each text may be said, one request a text, by the machinery
that asks for answers (`asking`). For one that cannot write, texts are crossed at a word that they share. Neither knows
an answer: what was made is asked for like any other text, so a wrong paraphrase teaches nothing wrong. It may only be
a text that nobody would have sent.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import msgspec

from puhui.core.errors import SettingsError
from puhui.models.span_words import find_words
from puhui.teachers.answer_book import plain
from puhui.teachers.asking import Asked, Budget, Purse, Show, ask_all
from puhui.teachers.teacher import PLACE, CanWrite, Teacher

PROMPT = (
    "Write {each} different ways in which somebody else might say the following, in its own language. "
    f"One on each line, nothing else.\n\n{PLACE}"
)
TIMES_LONGER = 4
"""No paraphrase is more times as long as its text: such a line is talk about it."""
TRIES = 20
"""Draws for each crossing that is wanted: few texts have few crossings."""

_THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_MARK = re.compile(r"\s*(?:[-*+•‣▪·–—]\s+|\(?\d{1,3}(?:[.):\]]\s+|[、)．）]\s*))")
_QUOTES = {'"': '"', "'": "'", "`": "`", "“": "”", "‘": "’", "„": "“", "«": "»", "「": "」", "**": "**", "*": "*"}


class Paraphrased(msgspec.Struct, frozen=True, kw_only=True):
    """New texts, and what came of asking for them."""

    texts: list[str]
    asked: Asked


def writer(teacher: Teacher, each: int) -> Teacher:
    """The teacher that answers a text with `each` paraphrases of it. SettingsError for one that cannot write."""
    if each < 1:
        raise SettingsError(f"{each} paraphrases of each text were wanted, but it must be 1 or more")
    if not isinstance(teacher, CanWrite):
        raise SettingsError(f"{teacher.name} cannot write paraphrases; cross the texts instead (`recombined`)")
    return teacher.writing(PROMPT.replace("{each}", str(each)))


def paraphrases(
    teacher: Teacher,
    texts: Sequence[str],
    *,
    each: int,
    folder: Path,
    budget: Budget | Purse | None = None,
    progress: Show | None = None,
) -> Paraphrased:
    """Up to `each` paraphrases of every text by a big model that can write; different ones, and none of the texts.

    Asks as `ask_all` does: nothing twice, within the budget, and Ctrl-C loses nothing. Raises what it raises, and
    SettingsError for a teacher that cannot write.
    """
    given = [text for text in dict.fromkeys(map(plain, texts)) if text.strip()]
    asked = ask_all(writer(teacher, each), given, folder=folder, budget=budget, progress=progress)
    found: dict[str, str] = {}
    for text, told in zip(given, asked.told, strict=True):
        for line in () if told is None else lines_of(told.answer, text)[:each]:
            found.setdefault(_heard(line), line)
    for text in given:
        found.pop(_heard(text), None)
    return Paraphrased(texts=list(found.values()), asked=asked)


def lines_of(reply: str, text: str) -> list[str]:
    """The paraphrases of `text` in what a big model wrote, in its order.

    Thoughts, numbers, bullets and quotation marks around a line go. Where some lines have a number or bullet, those
    that have none are talk. Empty lines, repeats, the text itself and lines over 4 times its length are left out.

    >>> lines_of('Sure, here are two:\\n1. "Where is my parcel?"\\n2. Has my parcel been lost', "where's my parcel")
    ['Where is my parcel?', 'Has my parcel been lost']
    """
    lines = _THOUGHT.sub("", reply).splitlines()
    marked = [line[mark.end() :] for line in lines if (mark := _MARK.match(line))]
    bare = [_unquoted(line.strip(), text) for line in marked or lines if not _announces(line, text)]
    found: dict[str, str] = {}
    for line in bare:
        if len(line) <= TIMES_LONGER * len(text):
            found.setdefault(_heard(line), line)
    return [line for heard, line in found.items() if heard not in ("", _heard(text))]


def _announces(line: str, text: str) -> bool:
    """Whether it is a line such as "Here are three:"."""
    return line.rstrip().endswith((":", "：")) and not text.rstrip().endswith((":", "："))


def _unquoted(line: str, text: str) -> str:
    """The line without marks around all of it, unless the text itself begins with them."""
    for opening, closing in _QUOTES.items():
        inner = line[len(opening) : len(line) - len(closing)]
        if line == opening + inner + closing and inner and not text.startswith(opening):
            return _unquoted(inner.strip(), text)
    return line


def _heard(text: str) -> str:
    """What is left of a text where capitals, spaces and the stop at its end do not count."""
    return " ".join(text.casefold().split()).rstrip(" .!?。！？")


def recombined(texts: Sequence[str], *, count: int, seed: int = 0) -> list[str]:
    """Up to `count` new texts: the beginning of one and the end of another, from a word on that both have.

    The same arguments give the same texts. They help where the teacher tells probabilities, and hardly where it tells
    answers alone; real texts help far more (`bench/static_log.md`).

    >>> recombined(["pay my bill today", "is my flight late"], count=9)
    ['is my bill today', 'pay my flight late']
    """
    draw = random.Random(seed)
    places: defaultdict[str, dict[int, int]] = defaultdict(dict)  # word: number of text, and where the word ends
    for number, text in enumerate(texts):
        for word in find_words(text):
            if not word.mark:
                places[text[word.start : word.end].casefold()].setdefault(number, word.end)
    shared: defaultdict[int, list[tuple[int, list[tuple[int, int]]]]] = defaultdict(list)
    for found in places.values():
        if len(found) > 1:
            others = list(found.items())
            for number, end in others:
                shared[number].append((end, others))
    crossable = list(shared)
    known, made = set(texts), dict[str, None]()
    for _ in range(TRIES * count if crossable else 0):
        number = draw.choice(crossable)
        end, others = draw.choice(shared[number])
        other, from_there = draw.choice(others)
        crossed = texts[number][:end] + texts[other][from_there:]
        if crossed not in known:
            made[crossed] = None
        if len(made) == count:
            break
    return list(made)
