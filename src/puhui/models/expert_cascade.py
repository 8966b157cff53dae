"""Experts in a row, the cheapest first: the first that is sure enough answers, the last one always does.

    answer = that of the first expert i with confidence ≥ threshold[i], else the last one's

Confidences of experts compare, as each estimates the chance that the big model would agree. So a cascade is an
expert like any other, with one confidence for one answer: the guarantee is proven for the whole of it at once, and
it spends one ε, however many experts there are and whatever their thresholds (FrugalGPT, Chen et al. 2023, asks
models in such a row; the inner thresholds here choose who answers, and none of them promises anything).

On disk: a folder for each step, written by the step's own family, and `cascade.json`. Never pickle.
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
from puhui.models.family import ExpertModel, FloatArray, family_class

IntArray: TypeAlias = npt.NDArray[np.intp]

CONFIG_FILE = "cascade.json"
FORMAT = 1
FAMILY = "cascade"


class StepConfig(msgspec.Struct, frozen=True):
    """One step: its family, its folder, and the confidence from which on it answers (the last: always)."""

    family: str
    folder: str
    threshold: float


class CascadeConfig(msgspec.Struct, frozen=True):
    """What `cascade.json` holds. `format` grows when an older reader would answer wrongly."""

    steps: tuple[StepConfig, ...]
    format: int = FORMAT


class CascadeModel:
    """Experts in a row, ready to answer. Not changed by answering: safe to share between threads."""

    def __init__(self, families: Sequence[str], steps: Sequence[ExpertModel], thresholds: Sequence[float]) -> None:
        """`families` [m] name those of the `steps` [m], cheapest first; `thresholds` [m − 1] are of all but the last.

        Raises BundleError for fewer than two steps, or numbers of them that do not fit each other.
        """
        if len(steps) < 2 or not len(families) == len(steps) == len(thresholds) + 1:
            found = f"{len(steps)} steps, {len(families)} families, {len(thresholds)} thresholds"
            raise BundleError(f"{found}; a cascade has 2 steps or more, each of a family, and one threshold less")
        if not np.isfinite(thresholds).all():
            raise BundleError(f"thresholds are {tuple(thresholds)}; they must be finite numbers")
        self.families, self.steps = tuple(families), tuple(steps)
        self.thresholds = tuple(float(threshold) for threshold in thresholds)
        self.labels: tuple[str, ...] = tuple(dict.fromkeys(label for step in steps for label in step.labels))

    @property
    def size_bytes(self) -> int:
        """Bytes of all steps."""
        return sum(step.size_bytes for step in self.steps)

    def predict_one(self, text: str) -> tuple[str, float]:
        """Answer and confidence in [0, 1] for any text, the empty one included."""
        for step, threshold in zip(self.steps, self.thresholds, strict=False):
            answer, confidence = step.predict_one(text)
            if confidence >= threshold:
                return answer, confidence
        return self.steps[-1].predict_one(text)

    def predict_many(self, texts: Sequence[str]) -> tuple[list[str], FloatArray]:
        """Answers [n] and confidences [n] in [0, 1]; as `predict_one`, to rounding."""
        answers, confidences, _ = self.predict_steps_many(texts)
        return answers, confidences

    def predict_steps_many(self, texts: Sequence[str]) -> tuple[list[str], FloatArray, IntArray]:
        """As `predict_many`, and the number [n] of the step that answered each."""
        answers, confidences, by = [""] * len(texts), np.zeros(len(texts), np.float32), np.zeros(len(texts), np.intp)
        left = np.arange(len(texts))
        for number, step in enumerate(self.steps):
            said, sure = step.predict_many([texts[row] for row in left.tolist()])
            confidences[left], by[left] = sure, number
            for row, answer in zip(left.tolist(), said, strict=True):
                answers[row] = answer
            if number < len(self.thresholds):
                left = left[sure < self.thresholds[number]]
        return answers, confidences, by

    def save(self, folder: Path) -> None:
        """Write `cascade.json` and a folder for each step into the folder, which is made if need be."""
        steps = []
        for number, (family, step) in enumerate(zip(self.families, self.steps, strict=True)):
            place = f"{number}-{family}"
            step.save(folder / place)
            steps.append(StepConfig(family, place, (*self.thresholds, 0.0)[number]))
        write_config(folder / CONFIG_FILE, CascadeConfig(tuple(steps)))

    @classmethod
    def load(cls, folder: Path) -> CascadeModel:
        """Read what `save` wrote. Raises BundleError that names the file which is missing or damaged."""
        path = folder / CONFIG_FILE
        config = read_config(path, CascadeConfig, form=FORMAT)
        for step in config.steps:
            if Path(step.folder).name != step.folder or step.folder in ("", ".", ".."):
                raise BundleError(f"{path} names a folder outside itself: {step.folder!r}")
            if step.family == FAMILY:
                raise BundleError(f"{path} holds a cascade in a cascade: write its steps in one row")
        families = [step.family for step in config.steps]
        steps = [family_class(step.family).load(folder / step.folder) for step in config.steps]
        with naming(path):
            return cls(families, steps, [step.threshold for step in config.steps[:-1]])
