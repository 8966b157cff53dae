"""The record expert: a JSON object whose fields are answered by one expert each.

The big model's form is kept byte for byte: *pieces* are the text around and between the values (keys, spacing, a
code fence, fields that never change), and each field's expert says what stands between two of them. The
confidence is the product of the fields' confidences, as one wrong field makes the record wrong.

On disk: `fields.json`, and one folder a field, `0`, `1`, …, in the order of the fields.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from puhui.core.errors import BundleError
from puhui.models.config_file import naming, read_config, write_config
from puhui.models.family import FAMILIES, ExpertModel, family_class

FloatArray: TypeAlias = npt.NDArray[np.float32]

CONFIG_FILE = "fields.json"
FORMAT = 1
NULL = "null"


class RecordForm(msgspec.Struct, frozen=True):
    """How a record is written: the text around its values, n + 1 pieces for n fields, and which are strings.

    A `quoted` field's text is written as a JSON string, but for `null`; any other as it is. `escaped`: characters
    beyond ASCII are written as escapes.
    """

    pieces: tuple[str, ...]
    quoted: tuple[bool, ...]
    escaped: bool = False

    def written(self, values: Sequence[str]) -> str:
        """The record with these values.

        >>> RecordForm(('{"city": ', ', "beds": ', "}"), (True, False)).written(["Ulm", "3"])
        '{"city": "Ulm", "beds": 3}'
        """
        parts = [self.pieces[0]]
        for value, quoted, piece in zip(values, self.quoted, self.pieces[1:], strict=True):
            plain = not quoted or value == NULL
            parts += (value if plain else json.dumps(value, ensure_ascii=self.escaped), piece)
        return "".join(parts)


class FieldsModel:
    """A record expert, ready to answer. Not changed by answering: safe to share between threads."""

    labels: tuple[str, ...] = ()

    def __init__(self, parts: Sequence[tuple[str, ExpertModel]], form: RecordForm) -> None:
        """`parts` are each field's family and expert, in the order of the record. BundleError where the form has
        another number of fields, or none."""
        if not parts or not len(parts) == len(form.quoted) == len(form.pieces) - 1:
            raise BundleError(
                f"{len(parts)} fields, of which the form writes {len(form.quoted)} between {len(form.pieces)} pieces; "
                "there must be at least one, and one piece more"
            )
        self.parts = tuple(parts)
        self.form = form

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights of all fields on disk."""
        return sum(model.size_bytes for _, model in self.parts)

    def predict_one(self, text: str) -> tuple[str, float]:
        """Record and confidence in [0, 1] for any text, the empty one included."""
        said = [model.predict_one(text) for _, model in self.parts]
        return self.form.written([value for value, _ in said]), float(np.prod([sure for _, sure in said]))

    def predict_many(self, texts: Sequence[str]) -> tuple[list[str], FloatArray]:
        """Records [n] and confidences [n] in [0, 1]; as `predict_one`, to rounding."""
        confidences = np.ones(len(texts), np.float32)
        columns = []
        for _, model in self.parts:
            values, sure = model.predict_many(texts)
            columns.append(values)
            confidences *= sure
        return [self.form.written(values) for values in zip(*columns, strict=True)], confidences

    def save(self, folder: Path) -> None:
        """Write `fields.json` and the folder of each field into the folder, which is made if need be."""
        families = tuple(family for family, _ in self.parts)
        write_config(folder / CONFIG_FILE, _Config(families, self.form, FORMAT))
        for number, (_, model) in enumerate(self.parts):
            model.save(folder / str(number))

    @classmethod
    def load(cls, folder: Path) -> FieldsModel:
        """Read what `save` wrote. Raises BundleError that names the file which is missing or damaged."""
        path = folder / CONFIG_FILE
        config = read_config(path, _Config, form=FORMAT)
        with naming(path):
            if unknown := set(config.families) - (FAMILIES.keys() - {"fields"}):
                raise BundleError(f"{path} names families that no field can be of: {', '.join(sorted(unknown))}")
        parts = [(family, family_class(family).load(folder / str(n))) for n, family in enumerate(config.families)]
        with naming(path):
            return cls(parts, config.form)


class _Config(msgspec.Struct, frozen=True):
    families: tuple[str, ...]
    form: RecordForm
    format: int
