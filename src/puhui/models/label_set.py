"""The label-set expert: which of its labels the big model would name, none or several of them.

Two static experts read the text. One gives each label a chance to be named first (it learned that a text with
two labels is half the one and half the other), the other says how many there are. The m likeliest labels are the
answer, with the m that makes

    P(m labels) · pₘ / (pₘ + pₘ₊₁)

greatest; that is the confidence too: how sure the count is, and how clearly the last label that is named stands
above the first that is not, which is the static expert's own measure where there is one label. Labels are
written in one order, in the form in which the big model writes lists.

On disk: `label_set.json`, and static experts in the folders `which` and, unless all sets are of one size, `count`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from puhui.core.errors import BundleError
from puhui.models.config_file import naming, read_config, write_config
from puhui.models.number import softmax
from puhui.models.static import StaticModel

FloatArray: TypeAlias = npt.NDArray[np.float32]

CONFIG_FILE = "label_set.json"
WHICH_FOLDER, COUNT_FOLDER = "which", "count"
FORMAT = 1


class ListForm(msgspec.Struct, frozen=True):
    """How a list is written: what stands before its labels, between them and after them, and a list of none."""

    before: str = ""
    between: str = ", "
    after: str = ""
    empty: str = ""

    def written(self, labels: Sequence[str]) -> str:
        """The list of these labels.

        >>> ListForm('["', '", "', '"]', "[]").written(["a", "b"])
        '["a", "b"]'
        """
        return self.before + self.between.join(labels) + self.after if labels else self.empty


class LabelSetModel:
    """A label-set expert, ready to answer. Not changed by answering: safe to share between threads."""

    labels: tuple[str, ...] = ()

    def __init__(self, which: StaticModel, count: StaticModel | int, *, order: Sequence[str], form: ListForm) -> None:
        """`order` are the labels of `which` as answers list them; the labels of `count` are whole numbers, or it is
        the one number of labels that every answer has. BundleError where they do not fit."""
        self.order = tuple(order)
        if sorted(self.order) != sorted(which.labels):
            raise BundleError(
                f"the order of labels names {len(self.order)}; expected the {len(which.labels)} there are"
            )
        named = count.labels if isinstance(count, StaticModel) else (str(count),)
        if not all(label.isdecimal() and int(label) <= len(self.order) for label in named):
            raise BundleError(f"the numbers of labels are {named}; they must lie between 0 and {len(self.order)}")
        self.form = form
        self._which, self._count = which, count
        self._sizes = np.array([int(label) for label in named], np.intp)
        self._ranks = np.array([self.order.index(label) for label in which.labels], np.intp)

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights on disk."""
        return self._which.size_bytes + (self._count.size_bytes if isinstance(self._count, StaticModel) else 0)

    def predict_one(self, text: str) -> tuple[str, float]:
        """Answer and confidence in [0, 1] for any text, the empty one included."""
        answers, confidences = self.predict_many([text])
        return answers[0], float(confidences[0])

    def predict_many(self, texts: Sequence[str]) -> tuple[list[str], FloatArray]:
        """Answers [n] and confidences [n] in [0, 1]."""
        logits = self._which.logits_many(texts)
        ranked = np.argsort(-logits, axis=1, kind="stable")
        scores = self._count_chances(texts) * _clear(np.take_along_axis(logits, ranked, axis=1), self._sizes)
        best = scores.argmax(axis=1)
        answers = [self._written(row[:size]) for row, size in zip(ranked, self._sizes[best].tolist(), strict=True)]
        return answers, np.take_along_axis(scores, best[:, None], axis=1)[:, 0]

    def save(self, folder: Path) -> None:
        """Write `label_set.json` and the folders of both experts into the folder, which is made if need be."""
        size = self._count if isinstance(self._count, int) else None
        write_config(folder / CONFIG_FILE, _Config(self.order, self.form, size, FORMAT))
        self._which.save(folder / WHICH_FOLDER)
        if isinstance(self._count, StaticModel):
            self._count.save(folder / COUNT_FOLDER)

    @classmethod
    def load(cls, folder: Path) -> LabelSetModel:
        """Read what `save` wrote. Raises BundleError that names the file which is missing or damaged."""
        config = read_config(folder / CONFIG_FILE, _Config, form=FORMAT)
        which = StaticModel.load(folder / WHICH_FOLDER)
        count = StaticModel.load(folder / COUNT_FOLDER) if config.size is None else config.size
        with naming(folder / CONFIG_FILE):
            return cls(which, count, order=config.order, form=config.form)

    def _count_chances(self, texts: Sequence[str]) -> FloatArray:
        """P(m labels) [n, sizes]."""
        if isinstance(self._count, int):
            return np.ones((len(texts), 1), np.float32)
        return softmax(self._count.logits_many(texts))

    def _written(self, numbers: npt.NDArray[np.intp]) -> str:
        return self.form.written([self.order[rank] for rank in sorted(self._ranks[numbers].tolist())])


class _Config(msgspec.Struct, frozen=True):
    order: tuple[str, ...]
    form: ListForm
    size: int | None
    format: int


def _clear(falling: FloatArray, sizes: npt.NDArray[np.intp]) -> FloatArray:
    """pₘ / (pₘ + pₘ₊₁) [n, sizes] of logits [n, k] in falling order; 1 where none or all labels are named."""
    found = np.ones((len(falling), len(sizes)), np.float32)
    for column, size in enumerate(sizes.tolist()):
        if 0 < size < falling.shape[1]:
            found[:, column] = 0.5 + 0.5 * np.tanh(0.5 * (falling[:, size - 1] - falling[:, size]))
    return found
