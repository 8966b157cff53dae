"""One tower of a static expert: from a text's features to logits. Formula and file format are in `static`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from puhui.core.errors import BundleError
from puhui.models.hashing import Features

FloatArray: TypeAlias = npt.NDArray[np.float32]
Slots: TypeAlias = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
Reads: TypeAlias = Literal["all", "words", "order"]
"""What a tower reads of a text: all features, its single words, or where in it each of its words stands."""

_SMALLEST_NORM = 1e-6  # a text of unknown features has norm 0 and pools to zero
_FOUR_BITS = 7  # numbers of 4 bits lie in [−7, 7]
_STORED = ("owners", "table", "gain", "weight", "bias")
_TYPES: dict[str, tuple[type[np.generic], ...]] = {"slots": (np.uint16, np.uint32), "table": (np.int8,)}


class Read(NamedTuple):
    """Rows [m] that a tower adds up, and how often it takes each [m]; without `times`, once."""

    rows: npt.NDArray[np.unsignedinteger[Any]]
    times: FloatArray | None

    def scaled(self, numbers: FloatArray) -> FloatArray:
        """Numbers of the rows [m], as often as they are taken."""
        return numbers if self.times is None else numbers * self.times


def read(found: Features, slots: Slots, reads: Reads) -> Read:
    """What a tower reads of a text: see `static`. Row 0 stands for features that own none.

    Distinct rows are in ascending order, each once however often the text repeats it, which ranks better than
    counts; words in their order are as they come.
    """
    if reads == "order":
        return Read(slots.take(found.buckets[: found.words]), _places(found.words))
    rows = slots.take(found.buckets[: found.words] if reads == "words" else found.buckets)
    rows.sort()
    first = np.ones(len(rows), np.bool_)
    np.not_equal(rows[1:], rows[:-1], first[1:])
    return Read(rows[first], None)


@lru_cache(maxsize=64)
def _places(words: int) -> FloatArray:
    """Where each of so many words stands, from just above −½, the beginning, to just below ½, the end."""
    return ((np.arange(words) + 0.5) / words - 0.5).astype(np.float32)


def narrowed(slots: npt.NDArray[np.uint32], *, rows: int) -> Slots:
    """The same numbers in two bytes each where that many rows allow it: twice as many fit a cache."""
    return slots.astype(np.uint16) if rows <= 1 << 16 else slots


class Tower(msgspec.Struct, frozen=True, eq=False):
    """Arrays of a tower: b buckets, r rows, k labels.

    `slots` uint16 or uint32 [b]: the row of each bucket, 0 for none; the buckets that own one own the rows
    1, 2, … r − 1 in ascending order. `table` int8 [r, k], row 0 zero. `gain`
    float32 [r] is a feature's weight times its row's int8 scale, `weight` float32 [r] the weight alone; row 0
    of both is 0. `bias` float32 [k]. A tower of words does not read all: the many character n-grams would fall
    on words by chance.
    """

    slots: Slots
    table: npt.NDArray[np.int8]
    gain: FloatArray
    weight: FloatArray
    bias: FloatArray
    reads: Reads = "all"

    def stored(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays as they lie on disk, by name: see `static`."""
        table = self.table if np.abs(self.table).max() > _FOUR_BITS else _packed(self.table)
        arrays = (np.packbits(self.slots > 0, bitorder="little"), table, self.gain, self.weight, self.bias)
        return dict(zip(_STORED, arrays, strict=True))

    @classmethod
    def restored(cls, arrays: Mapping[str, npt.NDArray[Any]], *, buckets: int, reads: Reads) -> Tower:
        """The tower that `stored` gave. Raises BundleError for other names or a table of another type."""
        if set(arrays) != set(_STORED):
            raise BundleError(f"a tower has {', '.join(sorted(arrays))}; expected {', '.join(_STORED)}")
        owners, table, gain, weight, bias = (arrays[name] for name in _STORED)
        if owners.dtype != np.uint8 or owners.shape != (-(-buckets // 8),):
            raise BundleError(f"owners is {owners.dtype} {owners.shape}; expected uint8, one bit for each of {buckets}")
        if table.ndim != 2 or table.dtype not in (np.int8, np.uint8):
            raise BundleError(f"table is {table.dtype} {table.shape}; expected int8 or uint8, rows by labels")
        if table.dtype == np.uint8:
            table = _unpacked(table, bias.size)
        owned = np.unpackbits(owners, count=buckets, bitorder="little").astype(np.bool_)
        slots = np.zeros(buckets, np.uint32)
        slots[owned] = np.arange(1, np.count_nonzero(owned) + 1)
        return cls(narrowed(slots, rows=len(table)), table, gain, weight, bias, reads)

    def logits_one(self, found: Features) -> FloatArray:
        """Logits [k] of one text."""
        of_text = read(found, self.slots, self.reads)
        weights, gains = self.weight.take(of_text.rows), of_text.scaled(self.gain.take(of_text.rows))
        # einsum, not @: it never wakes BLAS threads, whose spinning costs more than the product.
        logits: FloatArray = np.einsum("i,ij->j", gains, self.table.take(of_text.rows, axis=0))
        logits /= max(float(weights.dot(weights)) ** 0.5, _SMALLEST_NORM)
        logits += self.bias
        return logits

    def logits_many(self, texts: Sequence[Features]) -> FloatArray:
        """Logits [n, k] of n ≥ 1 texts."""
        found = [read(text, self.slots, self.reads) for text in texts]
        firsts = np.cumsum([0, *(len(each.rows) for each in found[:-1])])
        rows = np.concatenate([each.rows for each in found])
        gains = np.concatenate([each.scaled(self.gain.take(each.rows)) for each in found])
        norms = np.sqrt(np.add.reduceat(self.weight.take(rows) ** 2, firsts))
        logits: FloatArray = np.add.reduceat(self.table.take(rows, axis=0) * gains[:, None], firsts, axis=0)
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
        for name, shape in shapes.items():
            array = getattr(self, name)
            types = _TYPES.get(name, (np.float32,))
            if array.shape != shape or array.dtype not in types:
                found, wanted = f"{array.dtype} {array.shape}", f"{types[0].__name__} {shape}"
                raise BundleError(f"{name} is {found}; expected {wanted}")
            if not np.isfinite(array).all():
                raise BundleError(f"{name} holds numbers that are not finite")
        if self.gain[0] or self.weight[0]:
            raise BundleError(
                f"row 0 has gain {self.gain[0]:g} and weight {self.weight[0]:g}; expected 0: it is nobody's"
            )
        owned = self.slots[self.slots > 0]
        if len(owned) != rows - 1 or not np.array_equal(owned, np.arange(1, rows)):
            raise BundleError(f"{len(owned)} buckets own rows; expected {rows - 1}, in the order of the rows")


def _packed(table: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Numbers of 4 bits [r, k] two a byte [r, ⌈k/2⌉], each plus 8, even columns in the low half."""
    raised = np.pad(table + np.int8(8), ((0, 0), (0, table.shape[1] % 2)), constant_values=8).astype(np.uint8)
    both: npt.NDArray[np.uint8] = raised[:, 0::2] | raised[:, 1::2] << np.uint8(4)
    return both


def _unpacked(packed: npt.NDArray[np.uint8], columns: int) -> npt.NDArray[np.int8]:
    """The first `columns` of what was `_packed`."""
    table = np.empty((len(packed), 2 * packed.shape[1]), np.int8)
    table[:, 0::2], table[:, 1::2] = packed & 15, packed >> 4
    table -= 8
    return np.ascontiguousarray(table[:, :columns])
