"""An expert for answers of any shape, out of static experts and, for passages, a span expert.

Every shape comes down to labels that `static_training` can learn: a number to the level that it is nearest to, a
set to its labels in equal parts and their count, a record to its fields. Answers that are not of the shape are
left out, and so are labels that were said once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import msgspec
import numpy as np

from puhui.cascade.agreement import canonical, split_number
from puhui.compress.answer_shape import Fields, Label, LabelSet, Number, Shape, Span, field_texts, read_items
from puhui.compress.span_training import distill_span
from puhui.compress.static_training import StaticOptions, distill_static
from puhui.compress.word_vectors import WordVectors
from puhui.core.errors import LearningError
from puhui.models.family import ExpertModel
from puhui.models.fields import FieldsModel
from puhui.models.label_set import LabelSetModel
from puhui.models.number import NumberModel
from puhui.models.static import StaticModel

Progress: TypeAlias = Callable[[float], None]
MOST_LEVELS = 64
"""Different numbers that a number expert tells apart."""
FAMILY_OF: dict[type[Shape], str] = {
    Label: "static",
    LabelSet: "label_set",
    Number: "number",
    Span: "span",
    Fields: "fields",
}
"""The family of the expert that `train_shape` makes for a shape."""


class ShapeOptions(msgspec.Struct, frozen=True):
    """How the static experts within are learned: their own options, word vectors, and folds for confidence (as in
    `distill_static`, for labels alone)."""

    static: StaticOptions = StaticOptions()
    word_vectors: WordVectors | None = None
    calibrated: int = 0

    def static_expert(
        self,
        texts: Sequence[str],
        answers: Sequence[str],
        probabilities: Sequence[Mapping[str, float]] | None = None,
        *,
        calibrated: int = 0,
        progress: Progress | None = None,
    ) -> StaticModel:
        """A static expert with these options."""
        return distill_static(
            texts,
            answers,
            options=self.static,
            probabilities=probabilities,
            word_vectors=self.word_vectors,
            calibrated=calibrated,
            progress=progress,
        )


def train_shape(
    shape: Shape,
    texts: Sequence[str],
    answers: Sequence[str],
    *,
    probabilities: Sequence[Mapping[str, float]] | None = None,
    options: ShapeOptions | None = None,
    progress: Progress | None = None,
) -> ExpertModel:
    """An expert that answers in the shape, learned from `answers[i]` to `texts[i]`; `FAMILY_OF` names its family.

    `probabilities` as in `distill_static`; they are of whole answers, so only labels learn from them. `progress` is
    called with shares in [0, 1]. Raises LearningError where too few answers are of the shape, and MissingExtra
    without SciPy.
    """
    if len(texts) != len(answers):
        raise LearningError(f"{len(texts)} texts and {len(answers)} answers: give one each")
    said, chosen, report = [canonical(answer) for answer in answers], options or ShapeOptions(), progress or _silent
    match shape:
        case Label():
            return _label_expert(shape, texts, said, probabilities, chosen, report)
        case LabelSet():
            return _set_expert(shape, texts, said, chosen, report)
        case Number():
            return _number_expert(shape, texts, said, chosen, report)
        case Span():
            return distill_span(texts, said, nothing=shape.nothing, progress=report)
        case Fields():
            return _record_expert(shape, texts, said, chosen, report)


def _label_expert(
    shape: Label,
    texts: Sequence[str],
    answers: Sequence[str],
    probabilities: Sequence[Mapping[str, float]] | None,
    options: ShapeOptions,
    progress: Progress,
) -> StaticModel:
    labels = set(shape.labels)
    kept = [row for row, answer in enumerate(answers) if answer in labels]
    told = None if probabilities is None else [probabilities[row] for row in kept]
    return options.static_expert(
        [texts[row] for row in kept],
        [answers[row] for row in kept],
        told,
        calibrated=options.calibrated,
        progress=progress,
    )


def _number_expert(
    shape: Number, texts: Sequence[str], answers: Sequence[str], options: ShapeOptions, progress: Progress
) -> NumberModel:
    rows = [
        (text, float(found[1]), answer)
        for text, answer in zip(texts, answers, strict=True)
        if (found := split_number(answer)) and (found[0], found[2]) == (shape.before, shape.after)
    ]
    values = np.array([value for _, value, _ in rows])
    levels = np.unique(values)
    if len(levels) > MOST_LEVELS:  # the middles of ranges with equally many answers
        levels = np.unique(np.quantile(values, (np.arange(MOST_LEVELS) + 0.5) / MOST_LEVELS, method="nearest"))
    written: dict[float, str] = {}  # each number as the big model wrote it most often
    for (value, answer), _ in Counter((value, answer) for _, value, answer in rows).most_common():
        written.setdefault(value, answer)
    nearest = [written[levels[np.abs(levels - value).argmin()]] for value in values.tolist()]
    model = options.static_expert([text for text, _, _ in rows], nearest, progress=progress)
    numbers = {answer: value for value, answer in written.items()}
    width = shape.high - shape.low
    return NumberModel(model, [numbers[label] for label in model.labels], width=width, tolerance=shape.tolerance)


def _set_expert(
    shape: LabelSet, texts: Sequence[str], answers: Sequence[str], options: ShapeOptions, progress: Progress
) -> LabelSetModel:
    known = set(shape.labels)
    rows = []
    for text, answer in zip(texts, answers, strict=True):
        items = read_items(answer, shape.separator)
        if items is not None:
            labels = [answer[start:end] for start, end in items]
            if known.issuperset(labels):
                rows.append((text, labels))
    # The equal parts of a set are counts, not a big model's odds: softening them would only blur them.
    plain = msgspec.structs.replace(options, static=msgspec.structs.replace(options.static, temperature=1.0))
    which = _which(rows, plain, lambda share: progress(0.8 * share))
    often = Counter(len(labels) for _, labels in rows)
    sizes = [(text, str(len(labels))) for text, labels in rows if often[len(labels)] > 1]
    count: StaticModel | int = len(rows[0][1])
    if len({size for _, size in sizes}) > 1:
        count = options.static_expert([text for text, _ in sizes], [size for _, size in sizes])
    progress(1.0)
    order = [label for label in shape.labels if label in which.labels]
    return LabelSetModel(which, count, order=order, form=shape.form)


def _which(rows: Sequence[tuple[str, list[str]]], options: ShapeOptions, progress: Progress) -> StaticModel:
    """Learns of each text its labels in equal parts.

    A static expert knows the labels that are some row's answer, so each label is made that of one row, the rarest
    labels first. One that finds no row left is not learned.
    """
    rows = [(text, labels) for text, labels in rows if labels]
    holding: dict[str, list[int]] = {}
    for row, (_, labels) in enumerate(rows):
        for label in labels:
            holding.setdefault(label, []).append(row)
    answers: dict[int, str] = {}
    for label in sorted(holding, key=lambda label: (len(holding[label]), label)):
        free = next((row for row in holding[label] if row not in answers), None)
        if free is not None:
            answers[free] = label
    learned = set(answers.values())
    kept = [(row, named) for row, (_, labels) in enumerate(rows) if (named := [x for x in labels if x in learned])]
    return options.static_expert(
        [rows[row][0] for row, _ in kept],
        [answers.get(row, named[0]) for row, named in kept],
        [dict.fromkeys(named, 1.0 / len(named)) for _, named in kept],
        progress=progress,
    )


def _record_expert(
    shape: Fields, texts: Sequence[str], answers: Sequence[str], options: ShapeOptions, progress: Progress
) -> FieldsModel:
    records = [
        (text, values)
        for text, answer in zip(texts, answers, strict=True)
        if (values := field_texts(answer, shape.fields)) is not None
    ]
    asked, parts = [text for text, _ in records], list[tuple[str, ExpertModel]]()
    for number, (path, field) in enumerate(shape.fields.items()):
        values = [values[number] for _, values in records]
        share = 1.0 / len(shape.fields)

        def report(done: float, first: float = number * share, share: float = share) -> None:
            progress(first + done * share)

        try:
            model = train_shape(field.shape, asked, values, options=options, progress=report)
        except LearningError as error:
            raise LearningError(f"the field {path!r} cannot be learned: {error}") from error
        parts.append((FAMILY_OF[type(field.shape)], model))
    return FieldsModel(parts, shape.form)


def _silent(share: float) -> None:
    """Where nobody watches."""
