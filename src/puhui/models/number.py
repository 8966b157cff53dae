"""The number expert: the number that the big model would say, chosen for the least loss to be expected.

A static expert gives each *level* a chance. Levels are numbers that the big model has said, written as it wrote
them: all of them where they are few, else the medians of equally common ranges. The loss between two of them is
that of `cascade.agreement.NumberLoss`: 0 within the tolerance, else distance over width, at most 1. The answer is
the level whose expected loss is least (a weighted median, as long as no loss is cut at 1), and the confidence is
one minus that loss. So a text that might be a 3 or a 4 of 100 is answered with more confidence than one that
might be a 3 or a 90.

On disk: `number.json`, and the static expert in the folder `levels`.
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
from puhui.models.static import StaticModel

FloatArray: TypeAlias = npt.NDArray[np.float32]

CONFIG_FILE = "number.json"
LEVELS_FOLDER = "levels"
FORMAT = 1


class NumberModel:
    """A number expert, ready to answer. Not changed by answering: safe to share between threads."""

    def __init__(self, levels: StaticModel, numbers: Sequence[float], *, width: float, tolerance: float) -> None:
        """`numbers` are what the labels of `levels` say. BundleError where they do not fit, or `width` ≤ 0."""
        self.numbers = tuple(numbers)
        values = np.array(self.numbers, np.float64)
        if values.shape != (len(levels.labels),) or not np.isfinite(values).all():
            raise BundleError(f"{len(self.numbers)} numbers for {len(levels.labels)} levels; each needs a finite one")
        if not (0.0 < width < np.inf and 0.0 <= tolerance < np.inf):
            raise BundleError(f"the width is {width} and the tolerance {tolerance}; they must be > 0 and ≥ 0")
        self.labels = levels.labels
        self.width, self.tolerance = width, tolerance
        self._levels = levels
        apart = np.abs(values[:, None] - values[None, :])
        self._losses = np.where(apart <= tolerance, 0.0, np.minimum(apart / width, 1.0)).astype(np.float32)

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights on disk."""
        return self._levels.size_bytes

    def predict_one(self, text: str) -> tuple[str, float]:
        """Answer and confidence in [0, 1] for any text, the empty one included."""
        answers, confidences = self.predict_many([text])
        return answers[0], float(confidences[0])

    def predict_many(self, texts: Sequence[str]) -> tuple[list[str], FloatArray]:
        """Answers [n] and confidences [n] in [0, 1]."""
        expected = softmax(self._levels.logits_many(texts)) @ self._losses
        best = expected.argmin(axis=1)
        confidences = 1.0 - np.take_along_axis(expected, best[:, None], axis=1)[:, 0]
        return [self.labels[number] for number in best.tolist()], np.clip(confidences, 0.0, 1.0)

    def save(self, folder: Path) -> None:
        """Write `number.json` and the folder `levels` into the folder, which is made if need be."""
        write_config(folder / CONFIG_FILE, _Config(self.numbers, self.width, self.tolerance, FORMAT))
        self._levels.save(folder / LEVELS_FOLDER)

    @classmethod
    def load(cls, folder: Path) -> NumberModel:
        """Read what `save` wrote. Raises BundleError that names the file which is missing or damaged."""
        config = read_config(folder / CONFIG_FILE, _Config, form=FORMAT)
        levels = StaticModel.load(folder / LEVELS_FOLDER)
        with naming(folder / CONFIG_FILE):
            return cls(levels, config.numbers, width=config.width, tolerance=config.tolerance)


class _Config(msgspec.Struct, frozen=True):
    numbers: tuple[float, ...]
    width: float
    tolerance: float
    format: int


def softmax(logits: FloatArray) -> FloatArray:
    """Chances [n, k] of logits [n, k]."""
    raised: FloatArray = np.exp(logits - logits.max(axis=1, keepdims=True))
    raised /= raised.sum(axis=1, keepdims=True)
    return raised
