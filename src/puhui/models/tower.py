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

_SMALLEST_NORM = np.float32(1e-6)  # a text of unknown features has norm 0 and pools to zero
_TYPES: dict[str, tuple[type[np.generic], ...]] = {"slots": (np.uint16, np.uint32), "table": (np.int8,)}


class Tower(msgspec.Struct, frozen=True, eq=False):
    """Arrays of a tower: b buckets, r rows, d dimensions, e hidden units, k labels.

    `slots` uint16 or uint32 [b]: the row of each bucket, 0 for none. `table` int8 [r, d], row 0 zero. `gain`
    float32 [r] is a feature's weight times its row's int8 scale, `weight` float32 [r] the weight alone; row 0
    of both is 0. `head` float32 [d or e, k], `bias` [k]; `hidden` [d, e] and `hidden_bias` [e], or None both.
    With `words_only` it reads single words alone: the many character n-grams would fall on words by chance.
    """

    slots: npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
    table: npt.NDArray[np.int8]
    gain: FloatArray
    weight: FloatArray
    head: FloatArray
    bias: FloatArray
    hidden: FloatArray | None = None
    hidden_bias: FloatArray | None = None
    words_only: bool = False

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays that are there, by name."""
        named = ((name, getattr(self, name)) for name in self.__struct_fields__)
        return {name: array for name, array in named if isinstance(array, np.ndarray)}

    def rows(self, found: Features) -> npt.NDArray[np.unsignedinteger[Any]]:
        """Rows [m] of a text's features, 0 for those that own none."""
        return self.slots.take(found.buckets[: found.words] if self.words_only else found.buckets)

    def logits_one(self, found: Features) -> FloatArray:
        """Logits [k] of one text."""
        rows = self.rows(found)
        rows = rows[rows > 0]
        # einsum, not @: it never wakes BLAS threads, whose spinning costs more than the product.
        pooled = np.einsum("i,ij->j", self.gain.take(rows), self.table.take(rows, axis=0))
        weights = self.weight.take(rows)
        pooled /= max(np.sqrt(np.einsum("i,i->", weights, weights)), _SMALLEST_NORM)
        if self.hidden is not None and self.hidden_bias is not None:
            pooled = np.maximum(np.einsum("j,jk->k", pooled, self.hidden) + self.hidden_bias, 0.0)
        logits: FloatArray = np.einsum("j,jk->k", pooled, self.head) + self.bias
        return logits

    def logits_many(self, texts: Sequence[Features]) -> FloatArray:
        """Logits [n, k] of n ≥ 1 texts."""
        pooled = self.pool_many(texts)
        if self.hidden is not None and self.hidden_bias is not None:
            pooled = np.maximum(pooled @ self.hidden + self.hidden_bias, 0.0)
        logits: FloatArray = pooled @ self.head + self.bias
        return logits

    def pool_many(self, texts: Sequence[Features]) -> FloatArray:
        """Weighted means [n, d] of n ≥ 1 texts."""
        found = [self.rows(text) for text in texts]
        firsts = np.cumsum([0, *(len(rows) for rows in found[:-1])])
        rows = np.concatenate(found)
        scaled = self.table.take(rows, axis=0) * self.gain.take(rows)[:, None]
        norms = np.sqrt(np.add.reduceat(self.weight.take(rows) ** 2, firsts))
        pooled: FloatArray = np.add.reduceat(scaled, firsts, axis=0)
        pooled /= np.maximum(norms, _SMALLEST_NORM)[:, None]
        return pooled

    def check(self, *, buckets: int, labels: int) -> None:
        """Raises BundleError unless shapes, types and row numbers fit: answering can then not fail."""
        if self.table.ndim != 2 or 0 in self.table.shape:
            raise BundleError(f"table has shape {self.table.shape}; expected rows by dimensions")
        if (self.hidden is None) != (self.hidden_bias is None):
            raise BundleError("hidden and hidden_bias come together or not at all")
        rows, dim = self.table.shape
        units = dim if self.hidden_bias is None else self.hidden_bias.size
        shapes = {
            "slots": (buckets,),
            "table": (rows, dim),
            "gain": (rows,),
            "weight": (rows,),
            "head": (units, labels),
            "bias": (labels,),
            "hidden": (dim, units),
            "hidden_bias": (units,),
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
