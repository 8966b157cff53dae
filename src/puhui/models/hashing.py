"""Text to bucket numbers: the features of a static expert, the same in Python and in a browser.

Method (feature hashing, Weinberger et al. 2009; the sub-word idea is fastText's, Bojanowski et al. 2017):

1. The text is cut to `max_chars` (its beginning and its end), put into NFKC and lower case, and bounded by
   one space at each side. Its code points are an array of uint32; lone surrogates stay as they are.
2. Every code point is one of three kinds: a separator, a letter (or digit), or an ideograph, which is a
   word by itself, so that Chinese and Japanese get word features without a segmenter.
3. One prefix sum H of code · Pʲ modulo 2³² hashes every span [a, b) with one subtraction and one product,
   (H[b] − H[a]) · P⁻ᵃ: a polynomial hash that does not depend on where the span lies.
4. Spans are character n-grams (across words, separators collapsed into one space) and runs of words. Each
   length has its own salt; murmur3's finaliser (Appleby, public domain) mixes; the low bits are the bucket.

All arithmetic is uint32 with wrap-around: in JavaScript `Math.imul`, `+ | 0` and `>>>` give the same bits.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

BucketArray: TypeAlias = npt.NDArray[np.uint32]
Places: TypeAlias = npt.NDArray[np.intp]

BASE = 0x9E3779B1
"""P, an odd number, so that it has an inverse modulo 2³²."""
BASE_INVERSE = pow(BASE, -1, 1 << 32)
CODE_MIX = np.array(0x85EBCA6B, np.uint32)
"""Code points are spread over 32 bits before they are summed, as neighbours in an alphabet differ little."""
MIX_1, MIX_2 = np.array(0x85EBCA6B, np.uint32), np.array(0xC2B2AE35, np.uint32)
SALT = 0x632BE5AB

SEPARATOR, LETTER, IDEOGRAPH = 0, 1, 2
# Code points from, to (exclusive), kind. What no range names is a letter; after NFKC, full-width
# punctuation has become ASCII. JavaScript carries the same table.
KIND_RANGES = (
    (0x0000, 0x0030, SEPARATOR),
    (0x003A, 0x0061, SEPARATOR),
    (0x007B, 0x00AA, SEPARATOR),
    (0x00AB, 0x00B5, SEPARATOR),
    (0x00B6, 0x00C0, SEPARATOR),
    (0x2000, 0x2070, SEPARATOR),
    (0x3000, 0x3005, SEPARATOR),
    (0x3008, 0x3021, SEPARATOR),
    (0x3040, 0x3100, IDEOGRAPH),
    (0x3400, 0xA000, IDEOGRAPH),
    (0xF900, 0xFB00, IDEOGRAPH),
)
# Arrays without a dimension: NumPy is a third faster with them than with its scalars.
_13, _15, _16 = np.array(13, np.uint32), np.array(15, np.uint32), np.array(16, np.uint32)
_SPACE = np.uint32(0x20)
LAST_KIND = 0xFFFF  # all code points above share its kind, LETTER: rare ideographs live off their n-grams


class FeatureOptions(msgspec.Struct, frozen=True):
    """What is counted in a text. `buckets` is a power of two; n-gram ranges are inclusive.

    `char_min` to `char_max` are lengths in characters, `words` the longest run of words. `max_chars` bounds
    the cost of long texts: of a longer text the first and the last half as many characters are read.
    """

    buckets: int = 1 << 16
    char_min: int = 3
    char_max: int = 5
    words: int = 2
    max_chars: int = 2048

    def __post_init__(self) -> None:
        if self.buckets < 2 or self.buckets & (self.buckets - 1):
            raise ValueError(f"buckets is {self.buckets}; it must be a power of two, 2 or more")
        if not (1 <= self.char_min <= self.char_max and self.words >= 1 and self.max_chars >= 2):
            raise ValueError(f"feature options must satisfy 1 ≤ char_min ≤ char_max, words ≥ 1: {self}")


class Features(NamedTuple):
    """Buckets of a text's features, uint32 [m], m ≥ 1, repeats kept; single words are the first `words`."""

    buckets: BucketArray
    words: int


def features(text: str, options: FeatureOptions) -> Features:
    """Features of any text: words, runs of words, then character n-grams, each 0 ≤ bucket < `buckets`.

    There is at least one: of a text without a word it is the feature "no words", which counts as a word.

    >>> found = features("Turn on the light", FeatureOptions(buckets=1 << 10))
    >>> found.words, bool((found.buckets < 1 << 10).all())
    (4, True)
    """
    codes, starts, ends = _read(text, options.max_chars)
    n, words = len(codes), len(starts)
    if words == 0:
        return Features(_mixed(np.array([SALT], np.uint32), options.buckets), 1)
    powers, inverses = _powers(n)
    prefix = np.zeros(n + 1, np.uint32)
    np.add.accumulate(codes * powers, 0, np.uint32, prefix[1:])
    before, shift, after = prefix.take(starts), inverses.take(starts), prefix.take(ends)
    spans = [
        (after[k:] - before[: words - k]) * shift[: words - k] + _salt(-1 - k) for k in range(min(options.words, words))
    ]
    spans += [
        (prefix[length:] - prefix[:-length]) * inverses[: n + 1 - length] + _salt(length)
        for length in range(options.char_min, min(options.char_max, n) + 1)
    ]
    return Features(_mixed(np.concatenate(spans), options.buckets), words)


def _read(text: str, max_chars: int) -> tuple[BucketArray, Places, Places]:
    """Mixed code points [n]; first and one-past-last positions of the words, both [w].

    Separators are one space, one of them at each side.
    """
    if text.isascii():  # most texts, at half the time: separators are spaces and words lie between them
        words = _cut(text, max_chars).encode().translate(_PLAIN).split()
        codes = np.frombuffer(b" ".join([b"", *words, b""]), np.uint8)
        spaces = (codes == 0x20).nonzero()[0]
        return _MIXED_ASCII.take(codes), spaces[:-1] + 1, spaces[1:]
    mixed, kinds = _normalised(text, max_chars)
    before, here = kinds[:-1], kinds[1:]
    # Letters side by side are the only neighbours that no word boundary parts.
    boundary = (before != LETTER) | (here != LETTER)
    starts = (boundary & (here != SEPARATOR)).nonzero()[0] + 1
    return mixed, starts, (boundary & (before != SEPARATOR)).nonzero()[0] + 1


def _normalised(text: str, max_chars: int) -> tuple[BucketArray, npt.NDArray[np.uint8]]:
    """Mixed code points and their kinds, both [n], of any text."""
    text = unicodedata.normalize("NFKC", _cut(text, max_chars)).lower()
    codes = np.frombuffer(f" {_cut(text, max_chars)} ".encode("utf-32-le", "surrogatepass"), np.uint32)
    kinds = _KINDS.take(codes, mode="clip")
    mixed = _spread(np.where(kinds == SEPARATOR, _SPACE, codes))
    doubled = (kinds[1:] | kinds[:-1]) == SEPARATOR
    if doubled.any():  # a separator after a separator goes
        keep = np.concatenate([[True], ~doubled])
        kinds, mixed = kinds[keep], mixed[keep]
    return mixed, kinds


def _spread(codes: BucketArray) -> BucketArray:
    mixed = codes * CODE_MIX
    mixed ^= mixed >> _15
    return mixed


def _cut(text: str, max_chars: int) -> str:
    if len(text) <= max_chars:
        return text
    return text[: max_chars - max_chars // 2] + text[-(max_chars // 2) :]


@lru_cache(maxsize=64)
def _salt(span: int) -> BucketArray:
    return np.array(span * SALT & 0xFFFFFFFF, np.uint32)


@lru_cache(maxsize=64)
def _mask(buckets: int) -> BucketArray:
    return np.array(buckets - 1, np.uint32)


def _mixed(hashes: BucketArray, buckets: int) -> BucketArray:
    hashes ^= hashes >> _16
    hashes *= MIX_1
    hashes ^= hashes >> _13
    hashes *= MIX_2
    hashes ^= hashes >> _16
    hashes &= _mask(buckets)
    return hashes


def _powers(n: int) -> tuple[BucketArray, BucketArray]:
    """Pʲ for j < n and P⁻ʲ for j ≤ n, modulo 2³²."""
    size = 1 << max(10, n.bit_length())
    powers, inverses = _power_tables(size)
    return powers[:n], inverses[: n + 1]


@lru_cache(maxsize=16)
def _power_tables(size: int) -> tuple[BucketArray, BucketArray]:
    def table(base: int) -> BucketArray:
        factors = np.full(size, base, np.uint32)
        factors[0] = 1
        return np.multiply.accumulate(factors, dtype=np.uint32)

    return table(BASE), table(BASE_INVERSE)


def _kind_table() -> npt.NDArray[np.uint8]:
    kinds = np.full(LAST_KIND + 1, LETTER, np.uint8)
    for first, end, kind in KIND_RANGES:
        kinds[first:end] = kind
    return kinds


_KINDS = _kind_table()
_MIXED_ASCII = _spread(np.arange(128, dtype=np.uint32))
_PLAIN = bytes(ord(chr(code).lower()) if _KINDS[ord(chr(code).lower())] == LETTER else 0x20 for code in range(128))
_PLAIN += bytes(128)  # what is not ASCII is never looked up
