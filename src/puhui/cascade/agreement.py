"""When two answers are the same answer, and how far apart they are where not.

A *rule* says how a task's answers are compared: word for word, as sets, as numbers, as passages copied from the
input, or field by field. It follows from the shape of the big model's answers (`compress.answer_shape`), travels
with the expert, and is plain JSON. Every loss lies in [0, 1], is 0 for answers that are the same text, and does
not depend on which of the two answers came from whom.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from puhui.cascade.json_text import read_leaves
from puhui.models.span_words import word_f1

NOT_TEXT = "(not text)"
"""What experience holds where the big model's answer was no text (a tool call, say): no expert says so."""

_ONE_NUMBER = re.compile(r"(\D*?)([-+]?\d+(?:\.\d+)?)(\D*)", re.ASCII)


class Exact(msgspec.Struct, frozen=True, tag="exact"):
    """The loss is 0 for the same text and 1 for any other."""


class SetLoss(msgspec.Struct, frozen=True, tag="set"):
    """1 − |A ∩ B| / |A ∪ B| (Jaccard 1912) of the labels in the answers; their order does not count.

    `separator` stands between labels; None: the answer is a JSON list.
    """

    separator: str | None = None


class NumberLoss(msgspec.Struct, frozen=True, tag="number"):
    """0 for numbers at most `tolerance` apart, else their distance over `width`, at most 1.

    `width` > 0 is the distance at which an answer is as wrong as it can be. What stands around the numbers, a
    unit say, must be the same.
    """

    width: float
    tolerance: float = 0.0


class SpanLoss(msgspec.Struct, frozen=True, tag="span"):
    """1 − F1 of the words that the answers share."""


class FieldLoss(msgspec.Struct, frozen=True, tag="fields"):
    """The greatest loss among the fields of two JSON objects, which must have the same fields.

    `fields` is by path (`address/city`); a field without a rule must be the same. What stands around the
    objects, their spacing and the order of their fields do not count. It is the greatest and not the mean, as a
    record is used as a whole, and a mean would promise less with every field that is always right.
    """

    fields: dict[str, Rule]


Rule: TypeAlias = Exact | SetLoss | NumberLoss | SpanLoss | FieldLoss
EXACT = Exact()


def canonical(answer: str) -> str:
    """The form in which answers are compared: white space around them does not count, all else does.

    >>> canonical(" glue\\n")
    'glue'
    """
    return answer.strip()


def loss_of(given: str | None, big: str, rule: Rule = EXACT) -> float:
    """The loss of one request, in [0, 1]: 0 if the user got what the big model says, 1 if nothing of it.

    None means that the expert was not sure and the user got the big model's own answer: no loss. An answer that
    the rule cannot read (half a JSON object, say) agrees with nothing but itself.

    >>> loss_of("glue", "glue "), loss_of("glue", "iot"), loss_of(None, "iot")
    (0.0, 1.0, 0.0)
    >>> loss_of("red, blue", "blue, green, red", SetLoss(","))
    0.33333333333333337
    >>> loss_of('{"city": "Ulm", "beds": 3}', '{"beds": 2, "city": "Ulm"}', FieldLoss({"beds": NumberLoss(4.0)}))
    0.25
    """
    if given is None or canonical(given) == canonical(big):
        return 0.0
    return _distance(canonical(given), canonical(big), rule)


def is_whole(rule: Rule) -> bool:
    """Whether the rule's loss is 0 or 1 by its nature: then the exact binomial proves more of the same rows."""
    return isinstance(rule, Exact) or (isinstance(rule, FieldLoss) and all(map(is_whole, rule.fields.values())))


def agreements(
    given: Sequence[str], big: Sequence[str], rule: Rule = EXACT
) -> npt.NDArray[np.bool_] | npt.NDArray[np.float64]:
    """1 − loss of each pair (n,), of the type that `guarantee.calibrate_threshold` asks for.

    That is bool where a loss is 0 or 1 by its nature, else float64 in [0, 1].
    """
    found = np.array([1.0 - loss_of(one, other, rule) for one, other in zip(given, big, strict=True)], np.float64)
    return found == 1.0 if is_whole(rule) else found


def labels_in(answer: str, separator: str | None) -> list[str] | None:
    """The labels of an answer that is a set of them, as `SetLoss` reads it; None where it is none."""
    if separator is not None:
        return [label for label in map(canonical, answer.split(separator)) if label]
    try:
        values = json.loads(answer)
    except (ValueError, RecursionError):
        return None
    return [json_text(value) for value in values] if isinstance(values, list) else None


def split_number(answer: str) -> tuple[str, str, str] | None:
    """What stands before an answer's only number, the number, and what stands after it; None if it has not one.

    >>> split_number("about 12.50 €"), split_number("3 or 4")
    (('about ', '12.50', ' €'), None)
    """
    found = _ONE_NUMBER.fullmatch(answer)
    return None if found is None else (found[1], found[2], found[3])


def json_text(value: Any) -> str:
    """A value of JSON as the text that rules compare: a string's own text, any other value as compact JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _distance(given: str, big: str, rule: Rule) -> float:
    """The loss of two different texts."""
    match rule:
        case SetLoss(separator):
            return _set_distance(labels_in(given, separator), labels_in(big, separator))
        case NumberLoss():
            return _number_distance(split_number(given), split_number(big), rule)
        case SpanLoss():
            return 1.0 - word_f1(given, big)
        case FieldLoss(fields):
            return _field_distance(given, big, fields)
        case _:
            return 1.0


def _set_distance(given: list[str] | None, big: list[str] | None) -> float:
    if given is None or big is None:
        return 1.0
    either = set(given) | set(big)
    return 1.0 - len(set(given) & set(big)) / len(either) if either else 0.0


def _number_distance(given: tuple[str, str, str] | None, big: tuple[str, str, str] | None, rule: NumberLoss) -> float:
    if given is None or big is None or given[::2] != big[::2]:
        return 1.0
    apart = abs(float(given[1]) - float(big[1]))
    if math.isnan(apart):  # two numbers beyond a float's range
        return 1.0
    return 0.0 if apart <= rule.tolerance else min(1.0, apart / rule.width)


def _field_distance(given: str, big: str, rules: dict[str, Rule]) -> float:
    mine, theirs = read_leaves(given), read_leaves(big)
    if mine is None or theirs is None:
        return 1.0
    values, wanted = ({leaf.path: leaf.value for leaf in leaves} for leaves in (mine, theirs))
    if values.keys() != wanted.keys():
        return 1.0
    return max((_value_loss(values[path], wanted[path], rules.get(path, EXACT)) for path in values), default=0.0)


def _value_loss(given: Any, big: Any, rule: Rule) -> float:
    if isinstance(given, str) != isinstance(big, str):  # "5" is not 5, nor "null" null
        return 1.0
    return loss_of(json_text(given), json_text(big), rule)
