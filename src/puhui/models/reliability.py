"""How far an expert's margin can be trusted, label by label.

The margin, best minus second-best logit, ranks a linear expert's answers; but the same margin means more for
one label than for another. So a logistic model of the margin, with an offset for each label, estimates the
chance that the big model would give the same answer (Platt 1999, with offsets):

    confidence = 1 / (1 + exp(−(slope · margin + offset[label])))

With slope 1 and offsets 0 that is p₁ / (p₁ + p₂). It is an estimate, not a promise: `cascade.guarantee` makes
one of it. `compress.reliability_fit` learns it from answers that the expert had not seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from puhui.core.errors import BundleError

FloatArray: TypeAlias = npt.NDArray[np.float32]


class Reliability(msgspec.Struct, frozen=True, eq=False):
    """From a margin ≥ 0 and a label's number to a confidence in [0, 1]. `offset` is float32 [labels]."""

    slope: float
    offset: FloatArray

    def confidence(self, margin: float, number: int) -> float:
        """Confidence of one answer."""
        # tanh, as exp overflows: 1 / (1 + exp(−x)) = (1 + tanh(x / 2)) / 2.
        return 0.5 + 0.5 * math.tanh(0.5 * (self.slope * margin + float(self.offset[number])))

    def confidences(self, margins: FloatArray, numbers: npt.NDArray[np.intp]) -> FloatArray:
        """Confidences [n] of answers with margins [n] and label numbers [n]; as `confidence`, to rounding."""
        raised: FloatArray = np.tanh(0.5 * (self.slope * margins.astype(np.float64) + self.offset[numbers]))
        return (0.5 + 0.5 * raised).astype(np.float32)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """`slope` float32 [1] and `offset` float32 [labels], as they are stored."""
        return {"slope": np.array([self.slope], np.float32), "offset": self.offset}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Reliability:
        """What `arrays` gave. Raises KeyError, ValueError or TypeError where it did not."""
        return cls(arrays["slope"].item(), arrays["offset"])

    def check(self, *, labels: int) -> None:
        """Raises BundleError unless there is one finite offset a label and the slope is positive and finite."""
        if not 0.0 < self.slope < math.inf:
            raise BundleError(f"reliability's slope is {self.slope:g}; it must be positive, or the ranking turns round")
        offset = self.offset
        if offset.shape != (labels,) or offset.dtype != np.float32 or not np.isfinite(offset).all():
            raise BundleError(
                f"reliability's offset is {offset.dtype} {offset.shape}; expected finite float32 {labels}"
            )
