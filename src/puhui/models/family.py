"""What every family of experts is, and where each is found.

A family is a class with these five members; nothing else of the project knows how it answers. Adding one is a
line in `FAMILIES`: bundles, the guarantee, the learning loop, the workshop's search and the contract tests
(`tests/models/test_families.py`) find it there.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from puhui.core.errors import BundleError

FloatArray: TypeAlias = npt.NDArray[np.float32]

FAMILIES = {
    "static": "puhui.models.static:StaticModel",
    "encoder": "puhui.models.onnx_encoder:EncoderModel",
    "cascade": "puhui.models.expert_cascade:CascadeModel",
    "number": "puhui.models.number:NumberModel",
    "label_set": "puhui.models.label_set:LabelSetModel",
    "fields": "puhui.models.fields:FieldsModel",
    "span": "puhui.models.span:SpanModel",
}
"""Name on the card → where its class is; imported when first needed, as some are heavy. Cheapest first."""


class ExpertModel(Protocol):
    """A small model that answers one task. Not changed by answering: safe to share between threads."""

    labels: tuple[str, ...]
    """The answers it can give, each once; empty where they are no closed set."""

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights on disk."""
        ...

    def predict_one(self, text: str) -> tuple[str, float]:
        """Answer and confidence in [0, 1] for any text, the empty one included."""
        ...

    def predict_many(self, texts: Sequence[str]) -> tuple[list[str], FloatArray]:
        """Answers [n] and confidences [n]; as `predict_one`, to rounding."""
        ...

    def save(self, folder: Path) -> None:
        """Writes its files into the folder, which is made if need be; never pickle."""
        ...

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads what `save` wrote. Raises BundleError that names the file which is missing or damaged."""
        ...


def family_class(family: str) -> type[ExpertModel]:
    """The class of a family. BundleError for a name that this Puhui does not know."""
    place = FAMILIES.get(family)
    if place is None:
        raise BundleError(f"the family {family!r} is unknown here; known are {', '.join(FAMILIES)}: upgrade puhui")
    module, _, name = place.partition(":")
    found: type[ExpertModel] = getattr(importlib.import_module(module), name)
    return found
