"""What kind of answers a big model gives to a task: seen from the answers alone, without a setting.

A *shape* says what an expert has to be able to say, and from it follows the rule by which its answers are
compared (`cascade.agreement`): labels from a closed set, several of them at once, numbers in a range, passages
copied from the input, or a JSON object with fields of such kinds. Everything else is open text: no task.

Kinds overlap, and what promises more is preferred. Few different answers are labels, whatever they look like:
agreement on them is exact. Whole records and sets count as labels as well where there are hardly more of them
than there are parts (a field that follows from another adds nothing). Many different numbers are a range where
they fill it, and labels where they are codes: `LABEL_7` is a name. Numbers alone, 0 to 39 say, may be either; who
knows that they are labels need not look for a shape.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import TypeAlias, TypeVar

import msgspec
import numpy as np

from puhui.cascade.agreement import (
    EXACT,
    FieldLoss,
    NumberLoss,
    Rule,
    SetLoss,
    SpanLoss,
    canonical,
    split_number,
)
from puhui.cascade.json_text import Leaf, read_leaves, read_list
from puhui.models.fields import NULL, RecordForm
from puhui.models.label_set import ListForm
from puhui.models.span_words import find_passage

T = TypeVar("T")

MOST_LABELS = 1000
FEWEST_ANSWERS = 100
FEWEST_ASKED_FOR = 50
"""Where somebody says that there is a task, fewer show its kind: a wrong guess would teach badly, not prove wrongly."""
RARE = 0.05
"""Share of answers that may be unlike all others and are left to the big model."""
FEW_LABELS = 10
"""So few different answers are labels, whatever they look like."""
FEW_PASSAGES = 25
"""A closed set of passages is labels up to twice as many: linear experts learn them well, and promise more."""
FEWEST_LISTS = 0.05
"""Share of answers that must name several labels for them to be sets."""
SEPARATORS = ("\n", ";", "|", ",", "、", "，", "；")
FILLED = 0.5
"""Share of a range's steps that must have been said for its numbers to be one, not codes."""
BEFORE_CODES = ("_", "-", "#")
"""A number after one of these, or after a letter, is a name's: LABEL_7, Q7, intent 7."""


class Label(msgspec.Struct, frozen=True, tag="label"):
    """One of a closed set, most frequent first."""

    labels: tuple[str, ...]


class LabelSet(msgspec.Struct, frozen=True, tag="label_set"):
    """None or several of a closed set, as a list.

    `labels` are in the order in which lists name them, written as they are there (a JSON string with its
    quotation marks). `separator` as in `SetLoss`.
    """

    labels: tuple[str, ...]
    separator: str | None
    form: ListForm


class Number(msgspec.Struct, frozen=True, tag="number"):
    """A number, with the same text before and after it in every answer.

    `low` and `high` are the 5th and 95th percentile: their distance is how far apart two answers are that agree
    in nothing. `tolerance` is how far apart two are that are the same.
    """

    low: float
    high: float
    before: str = ""
    after: str = ""
    tolerance: float = 0.0


class Span(msgspec.Struct, frozen=True, tag="span"):
    """Words copied from the input, or `nothing` where there are none to copy (None: there always are)."""

    nothing: str | None = None


class Field(msgspec.Struct, frozen=True):
    """The shape of a field's values. `quoted`: they are strings (or null), whose own text the shape is of; else
    it is of their JSON."""

    shape: Shape
    quoted: bool


class Fields(msgspec.Struct, frozen=True, tag="fields"):
    """A JSON object that always has the same keys: its fields by path, in order, without those that never change."""

    fields: dict[str, Field]
    form: RecordForm


Shape: TypeAlias = Label | LabelSet | Number | Span | Fields


def find_shape(texts: Sequence[str], answers: Sequence[str], *, fewest: int = FEWEST_ANSWERS) -> Shape | None:
    """The shape of the big model's answers, `answers[i]` to `texts[i]`; None for open text, fewer than `fewest`, or one
    answer to all.

    >>> rows = [(f"{n} nights in {city}", city) for city in ("Ulm", "Köln") for n in range(90)]
    >>> find_shape(*zip(*rows))
    Label(labels=('Ulm', 'Köln'))
    >>> find_shape([""] * 300, [f"{n % 41} km" for n in range(300)])
    Number(low=1.0, high=38.0, before='', after=' km', tolerance=0.0)
    """
    if len(answers) < fewest:
        return None
    said = [canonical(answer) for answer in answers]
    if len(set(said)) == 1:
        return None
    labels = closed_set(said, fewest=fewest)
    if labels is not None and len(labels) <= FEW_LABELS:
        return Label(labels)
    found = (
        find_fields(texts, said, fewest=fewest)
        or _span(texts, said)
        or _number(said, labels)
        or _label_set(said, fewest=fewest)
    )
    if labels is not None and (found is None or len(labels) <= 2 * _most_labels(found)):
        return Label(labels)
    return found


def rule_of(shape: Shape) -> Rule:
    """How answers of this shape are compared; it goes with the expert."""
    match shape:
        case LabelSet():
            return SetLoss(shape.separator)
        case Number():
            return NumberLoss(shape.high - shape.low, shape.tolerance)
        case Span():
            return SpanLoss()
        case Fields():
            return FieldLoss({path: rule_of(field.shape) for path, field in shape.fields.items()})
        case _:
            return EXACT


def closed_set(answers: Sequence[str], *, fewest: int = FEWEST_ANSWERS) -> tuple[str, ...] | None:
    """The labels that the answers are drawn from, most frequent first; None when they form no closed set.

    Good and Turing (Good 1953): the chance that the next answer is one never seen is about the share of
    answers seen only once. The set counts as closed when that is at most 5 %, over at least `fewest` answers.
    Answers seen once are left out: an expert cannot learn them, and leaves them to the big model.

    >>> closed_set(["spam", "ham"] * 60)
    ('spam', 'ham')
    """
    if len(answers) < fewest:
        return None
    counts = Counter(canonical(answer) for answer in answers)
    once = sum(count == 1 for count in counts.values())
    labels = tuple(label for label, count in counts.most_common() if count > 1)
    if once > RARE * len(answers) or not 2 <= len(labels) <= MOST_LABELS:
        return None
    return labels


def field_texts(answer: str, fields: dict[str, Field]) -> list[str] | None:
    """What each field's expert would have to say for this answer, in order; None where a field is missing."""
    leaves = {leaf.path: leaf for leaf in read_leaves(answer) or ()}
    if not fields.keys() <= leaves.keys():
        return None
    return [_field_text(answer, leaves[path], quoted=field.quoted) for path, field in fields.items()]


def _field_text(answer: str, leaf: Leaf, *, quoted: bool) -> str:
    if quoted and leaf.value is not None:
        return str(leaf.value)
    return answer[leaf.start : leaf.end]


def _most_labels(shape: Shape) -> int:
    """The labels of the part that has most; 0 where one has none, as numbers have not: the whole is no label then."""
    match shape:
        case Label(labels) | LabelSet(labels):
            return len(labels)
        case Span():
            return FEW_PASSAGES
        case Fields(fields):
            parts = [_most_labels(field.shape) for field in fields.values()]
            return max(parts) if min(parts) else 0
        case _:
            return 0


def find_fields(texts: Sequence[str], answers: Sequence[str], *, fewest: int = FEWEST_ANSWERS) -> Fields | None:
    """The fields of answers that are JSON objects with the same keys; None where they are not, or one is open text."""
    records = [(text, answer, read_leaves(answer)) for text, answer in zip(texts, answers, strict=True)]
    keys = _commonest(tuple(leaf.path for leaf in leaves) for _, _, leaves in records if leaves)
    if not keys:
        return None
    kept = [
        (text, answer, {leaf.path: leaf for leaf in leaves})
        for text, answer, leaves in records
        if leaves and {leaf.path for leaf in leaves} == set(keys)
    ]
    if len(kept) < (1.0 - RARE) * len(answers):
        return None
    form = _commonest(_around(answer, list(leaves.values())) for _, answer, leaves in kept if tuple(leaves) == keys)
    if form is None:
        return None
    pieces, fields = [form[0]], dict[str, Field]()
    for path, piece in zip(keys, form[1:], strict=True):
        column = [(answer, leaves[path]) for _, answer, leaves in kept]
        constant = _constant([answer[leaf.start : leaf.end] for answer, leaf in column])
        if constant is not None:
            pieces[-1] += constant + piece
            continue
        quoted = _is_quoted([leaf for _, leaf in column])
        values = [_field_text(answer, leaf, quoted=quoted) for answer, leaf in column]
        shape = find_shape([text for text, _, _ in kept], values, fewest=fewest)
        if shape is None or isinstance(shape, Fields):
            return None
        fields[path] = Field(shape, quoted)
        pieces.append(piece)
    escaped = any(_is_escaped(answer, leaf) for _, answer, leaves in kept for leaf in leaves.values())
    quoted_fields = tuple(field.quoted for field in fields.values())
    return Fields(fields, RecordForm(tuple(pieces), quoted_fields, escaped)) if fields else None


def _around(answer: str, leaves: Sequence[Leaf]) -> tuple[str, ...]:
    """The text around the values."""
    starts = [*(leaf.start for leaf in leaves), len(answer)]
    return tuple(answer[end:start] for end, start in zip([0, *(leaf.end for leaf in leaves)], starts, strict=True))


def _constant(values: Sequence[str]) -> str | None:
    """The only value that was said more than once, where hardly any other was said at all."""
    counts = Counter(values)
    value, often = counts.most_common(1)[0]
    return value if often >= (1.0 - RARE) * len(values) and len(values) - often == len(counts) - 1 else None


def _is_quoted(leaves: Sequence[Leaf]) -> bool:
    """Whether the values are strings; null may be among them, if no string is written so."""
    strings = [leaf.value for leaf in leaves if isinstance(leaf.value, str)]
    others = [leaf.value for leaf in leaves if not isinstance(leaf.value, str)]
    return bool(strings) and all(value is None for value in others) and not (others and NULL in strings)


def _is_escaped(answer: str, leaf: Leaf) -> bool:
    return isinstance(leaf.value, str) and not leaf.value.isascii() and answer[leaf.start : leaf.end].isascii()


def _number(answers: Sequence[str], labels: tuple[str, ...] | None) -> Number | None:
    split = [found for answer in answers if (found := split_number(answer))]
    around = _commonest((before, after) for before, _, after in split)
    values = np.array([float(number) for before, number, after in split if (before, after) == around])
    if len(values) < (1.0 - RARE) * len(answers) or around is None:
        return None
    low, high = np.quantile(values, [RARE, 1.0 - RARE]).tolist()
    if not 0.0 < high - low < np.inf:
        return None
    may_be_codes = labels is not None or len(answers) < FEWEST_ANSWERS
    if may_be_codes and may_be_name(around[0]):
        return None
    if labels is not None:  # do they fill their range?
        said = np.unique(values[(values >= low) & (values <= high)])
        if len(said) < FILLED * ((high - low) / np.diff(said).min() + 1.0):
            return None
    return Number(low, high, *around)


def may_be_name(before: str) -> bool:
    """Whether a number after this text may be part of a name."""
    last = before.rstrip()[-1:]
    return last.isalpha() or last in BEFORE_CODES


def _label_set(answers: Sequence[str], *, fewest: int) -> LabelSet | None:
    for separator in (None, *SEPARATORS):
        if sum((separator or "[") in answer for answer in answers) < FEWEST_LISTS * len(answers):
            continue
        lists = [(answer, items) for answer in answers if (items := read_items(answer, separator)) is not None]
        several = [(answer, items) for answer, items in lists if len(items) > 1]
        if len(lists) < (1.0 - RARE) * len(answers) or len(several) < FEWEST_LISTS * len(answers):
            continue
        labels = [[answer[start:end] for start, end in items] for answer, items in lists]
        twice = sum(len(set(each)) < len(each) for each in labels)
        if twice > RARE * len(labels) or closed_set(list(itertools.chain(*labels)), fewest=fewest) is None:
            continue
        before, between, after = _commonest(
            (answer[: items[0][0]], answer[items[0][1] : items[1][0]], answer[items[-1][1] :])
            for answer, items in several
        ) or ("", ", ", "")
        empty = _commonest(answer for answer, items in lists if not items) or ""
        return LabelSet(_in_order(labels), separator, ListForm(before, between, after, empty))
    return None


def read_items(answer: str, separator: str | None) -> list[tuple[int, int]] | None:
    """Where each label of a list begins and ends; None where the answer is no list."""
    if separator is None:
        return read_list(answer)
    places, at = [], 0
    for part in answer.split(separator):
        begin = at + len(part) - len(part.lstrip())
        if part.strip():
            places.append((begin, begin + len(part.strip())))
        at += len(part) + len(separator)
    return places


def _in_order(lists: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """The labels that were said more than once, by their mean place in a list, from 0 for first to 1 for last."""
    counts: Counter[str] = Counter()
    places: defaultdict[str, float] = defaultdict(float)
    for each in lists:
        counts.update(each)
        for place, label in enumerate(each):
            places[label] += (place + 0.5) / len(each)
    kept = [label for label, count in counts.items() if count > 1]
    return tuple(sorted(kept, key=lambda label: (places[label] / counts[label], label)))


def _span(texts: Sequence[str], answers: Sequence[str]) -> Span | None:
    copied, others = Counter[str](), Counter[str]()
    for text, answer in zip(texts, answers, strict=True):
        found = find_passage(text, answer) is not None
        (copied if found else others)[answer] += 1
    nothing, often = others.most_common(1)[0] if others else ("", 0)
    if len(copied) <= FEW_LABELS or copied.total() < FEWEST_LISTS * len(answers):
        return None
    if copied.total() + often < (1.0 - RARE) * len(answers):
        return None
    return Span(nothing if often > 1 else None)


def _commonest(values: Iterable[T]) -> T | None:
    """The value that there is most of; None where there is none."""
    return next((value for value, _ in Counter(values).most_common(1)), None)
