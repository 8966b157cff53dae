"""What answers tell before more of them are paid for: that they are none of the labels, or fit no expert there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from puhui.cascade.agreement import canonical, split_number
from puhui.cascade.json_text import read_leaves
from puhui.compress.answer_shape import (
    FEWEST_ASKED_FOR,
    SEPARATORS,
    Fields,
    Label,
    LabelSet,
    Number,
    Shape,
    Span,
    find_shape,
    may_be_name,
    read_items,
)
from puhui.compress.profiles import Profile
from puhui.compress.recipes import Material
from puhui.compress.search import ladder_for
from puhui.core.errors import LearningError
from puhui.models.span_words import find_passage
from puhui.teachers.teacher import Told

SHOWN, MOST_SEEN = 200, 500
FEWEST_SEEN = 6
"""So many answers that all differ are hardly drawn from the ten labels that may look like anything."""
IN_WORDS: dict[type[Shape], str] = {
    LabelSet: "sets of labels",
    Number: "numbers",
    Span: "passages of the texts",
    Fields: "JSON objects",
}


class Allowed:
    """The answers that are allowed: `labels`, or any where there are none."""

    def __init__(self, labels: Collection[str]) -> None:
        self._labels = tuple(map(canonical, labels))
        self._known = frozenset(self._labels)

    def __contains__(self, answer: str) -> bool:
        return not self._known or canonical(answer) in self._known

    def check(self, answers: Sequence[str]) -> list[str]:
        """What is to be said of answers that are none of the labels. LearningError where most are."""
        outside = [answer for answer in answers if answer not in self]
        if not outside:
            return []
        said = (
            f"{len(outside):,} of {len(answers):,} answers are none of the labels "
            f"({', '.join(self._labels):.{SHOWN}}), such as {outside[0]!r:.{SHOWN}}"
        )
        if 2 * len(outside) > len(answers):
            raise LearningError(
                f"{said}. Say in the prompt (--prompt) that it is to answer with one of them and nothing else, or give "
                "the labels (--labels) as the big model writes them"
            )
        return [f"{said}: nothing is learned of these, and they count against an expert that is sure there"]

    def taught_by(self, material: Material, least: int = 0) -> Material:
        """The rows that may teach. The others still judge and calibrate: such requests will come.

        LearningError where fewer than `least` are left.
        """
        rows = [row for row, answer in enumerate(material.answers) if answer in self]
        if len(rows) < least:
            raise LearningError(
                f"only {len(rows)} of the {len(material.answers)} answers that may teach are among the labels "
                f"({', '.join(self._labels):.{SHOWN}}); it takes {least}"
            )
        return material if len(rows) == len(material.answers) else material.pick(rows)


def look_at(
    told: Mapping[str, Told], allowed: Allowed, profile: Profile, *, labels: bool, note: Callable[[str], None]
) -> None:
    """Looks at the first answers, by text. LearningError where most are not allowed; a note where they look like
    what the device allows no expert for, unless it is known that they are `labels`."""
    allowed.check([one.answer for one in told.values()])
    if labels or any(one.probabilities is not None for one in told.values()):
        return
    seen = list(told.items())[:MOST_SEEN]
    kind = looks_like([text for text, _ in seen], [one.answer for _, one in seen])
    if kind is None:
        return
    try:
        ladder_for(kind, profile, with_base=True)
    except LearningError as error:
        note(f"The first answers look like {IN_WORDS[kind]}. If the others do too, no expert comes of them: {error}.")


def looks_like(texts: Sequence[str], answers: Sequence[str]) -> type[Shape] | None:
    """What a few answers seem to be: None for labels, for open text, or where so few do not tell.

    >>> looks_like([""] * 8, [f"{n} km" for n in range(8)]).__name__
    'Number'
    """
    said = [canonical(answer) for answer in answers]
    if len(said) >= FEWEST_ASKED_FOR:
        found = find_shape(texts, said, fewest=FEWEST_ASKED_FOR)
        return None if found is None or isinstance(found, Label) else type(found)
    if not FEWEST_SEEN <= len(said) == len(set(said)):
        return None
    if all(keys := [{leaf.path for leaf in read_leaves(answer) or ()} for answer in said]):
        return Fields if all(each == keys[0] for each in keys) else None
    if all(find_passage(text, answer) is not None for text, answer in zip(texts, said, strict=True)):
        return Span
    around = {found and (found[0], found[2]) for found in map(split_number, said)}
    if len(around) == 1 and (same := around.pop()) is not None and not may_be_name(same[0]):
        return Number
    return LabelSet if any(_are_sets(said, separator) for separator in (None, *SEPARATORS)) else None


def _are_sets(answers: Sequence[str], separator: str | None) -> bool:
    """Whether they are lists, most of several labels, and the same labels come again and again."""
    lists = [[answer[start:end] for start, end in read_items(answer, separator) or ()] for answer in answers]
    items = [item for each in lists for item in each]
    return all(lists) and len(items) >= 1.5 * len(lists) and 2 * len(set(items)) <= len(items)
