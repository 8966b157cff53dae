"""One tower of a static expert: from a text's features to logits. The formula is in `static`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from puhui.core.errors import BundleError
from puhui.models.hashing import Features

FloatArray: TypeAlias = npt.NDArray[np.float32]
IntArray: TypeAlias = npt.NDArray[np.intp]

_SMALLEST_NORM = 1e-6  # a text of unknown features has norm 0 and pools to zero
_TYPES: dict[str, tuple[type[np.generic], ...]] = {"slots": (np.uint16, np.uint32), "table": (np.int8,)}


def rows_of(
    found: Features, slots: npt.NDArray[np.uint16] | npt.NDArray[np.uint32], *, words_only: bool
) -> npt.NDArray[np.unsignedinteger[Any]]:
    """As `Tower.rows`: each row once however often the text repeats it, which ranks better than counts."""
    rows = slots.take(found.buckets[: found.words] if words_only else found.buckets)
    rows.sort()
    first = np.ones(len(rows), np.bool_)
    np.not_equal(rows[1:], rows[:-1], first[1:])
    return rows[first]


class Tower(msgspec.Struct, frozen=True, eq=False):
    """Arrays of a tower: b buckets, r rows, k labels.

    `slots` uint16 or uint32 [b]: the row of each bucket, 0 for none. `table` int8 [r, k], row 0 zero. `gain`
    float32 [r] is a feature's weight times its row's int8 scale, `weight` float32 [r] the weight alone; row 0
    of both is 0. `bias` float32 [k]. With `words_only` it reads single words alone: the many character
    n-grams would fall on words by chance.
    """

    slots: npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
    table: npt.NDArray[np.int8]
    gain: FloatArray
    weight: FloatArray
    bias: FloatArray
    words_only: bool = False

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays by name."""
        named = ((name, getattr(self, name)) for name in self.__struct_fields__)
        return {name: array for name, array in named if isinstance(array, np.ndarray)}

    def rows(self, found: Features) -> npt.NDArray[np.unsignedinteger[Any]]:
        """The distinct rows [m] of a text's features, ascending; 0 stands for those that own none."""
        return rows_of(found, self.slots, words_only=self.words_only)

    def logits_one(self, found: Features) -> FloatArray:
        """Logits [k] of one text."""
        rows = self.rows(found)
        weights = self.weight.take(rows)
        # einsum, not @: it never wakes BLAS threads, whose spinning costs more than the product.
        logits: FloatArray = np.einsum("i,ij->j", self.gain.take(rows), self.table.take(rows, axis=0))
        logits /= max(float(weights.dot(weights)) ** 0.5, _SMALLEST_NORM)
        logits += self.bias
        return logits

    def logits_many(self, texts: Sequence[Features]) -> FloatArray:
        """Logits [n, k] of n ≥ 1 texts."""
        found = [self.rows(text) for text in texts]
        firsts = np.cumsum([0, *(len(rows) for rows in found[:-1])])
        rows = np.concatenate(found)
        scaled = self.table.take(rows, axis=0) * self.gain.take(rows)[:, None]
        norms = np.sqrt(np.add.reduceat(self.weight.take(rows) ** 2, firsts))
        logits: FloatArray = np.add.reduceat(scaled, firsts, axis=0)
        logits /= np.maximum(norms, np.float32(_SMALLEST_NORM))[:, None]
        logits += self.bias
        return logits

    def check(self, *, buckets: int, labels: int) -> None:
        """Raises BundleError unless shapes, types and row numbers fit: answering can then not fail."""
        rows = len(self.table) if self.table.ndim else 0
        if not rows:
            raise BundleError(f"table has shape {self.table.shape}; expected rows by labels")
        shapes = {
            "slots": (buckets,),
            "table": (rows, labels),
            "gain": (rows,),
            "weight": (rows,),
            "bias": (labels,),
        }
        for name, array in self.arrays().items():
            types = _TYPES.get(name, (np.float32,))
            if array.shape != shapes[name] or array.dtype not in types:
                found, wanted = f"{array.dtype} {array.shape}", f"{types[0].__name__} {shapes[name]}"
                raise BundleError(f"{name} is {found}; expected {wanted}")
            if not np.isfinite(array).all():
                raise BundleError(f"{name} holds numbers that are not finite")
        if int(self.slots.max()) >= rows:
            raise BundleError(f"slots name row {int(self.slots.max())}, but the table has {rows} rows")
