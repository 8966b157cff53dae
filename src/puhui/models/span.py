"""The span expert: finds the passage of the input that the big model would copy out. NumPy alone.

Method: two log-linear models that choose among the words of a text (conditional logit, McFadden 1974), one for
the first word of the passage, one for its last word given the first:

    P(passage i … j) = P(first = i) · P(last = j | first = i)

so that the confidence is a chance over all passages of the text, and over "nothing there" where the big model
says so. A word is known by hashed features of itself and its neighbours (the word, its shape, its beginning and
end, pairs of words, its place in the text), the last word also by its distance from the first and by what stands
around both, such as a pair of quotation marks. Weights are looked up by hash and summed. The answer is cut out of
the input as it stands there: not a character is changed.

On disk: `span.safetensors` and `span.json`. Never pickle.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from puhui.core.errors import BundleError
from puhui.models.config_file import naming, read_config, write_config
from puhui.models.hashing import MIX_1, MIX_2
from puhui.models.span_words import Word, find_words

FloatArray: TypeAlias = npt.NDArray[np.float32]
BucketArray: TypeAlias = npt.NDArray[np.uint32]

WEIGHTS_FILE = "span.safetensors"
CONFIG_FILE = "span.json"
FORMAT = 1
STARTS_TRIED = 4
"""First words whose passages are looked at: the likeliest ones."""

_WORD, _SHAPE, _HEAD, _TAIL = range(4)  # the columns of a word's attributes
_REACH = 3  # neighbours on each side that are looked at
_SINGLE = (
    *((_WORD, offset) for offset in range(-_REACH, _REACH + 1)),
    *((_SHAPE, offset) for offset in range(-2, 3)),
    *((_TAIL, offset) for offset in (-1, 0, 1)),
    (_HEAD, 0),
)
_PAIRS = ((-2, -1), (-1, 0), (0, 1), (1, 2), (-1, 1))
_FAR = 15  # distances and places from here on are one
_15, _13 = np.array(15, np.uint32), np.array(13, np.uint32)
_EDGE = np.uint32(0x45444745)
_NONE = 0x4E4F4E45


class SpanOptions(msgspec.Struct, frozen=True):
    """How a text is read. `buckets` is a power of two, `longest` the words of the longest passage, `most_words`
    how many words of a text are looked at; `nothing` is the answer where no passage is the one (None: there is
    always one)."""

    longest: int
    nothing: str | None = None
    buckets: int = 1 << 16
    most_words: int = 2048

    def __post_init__(self) -> None:
        if self.buckets < 2 or self.buckets & (self.buckets - 1) or self.longest < 1 or self.most_words < 1:
            raise ValueError(f"span options need a power of two as buckets and lengths of 1 or more: {self}")


class Reading(NamedTuple):
    """The words of a text, and their attributes uint32 [words + 2 · _REACH, 4], edges included."""

    words: list[Word]
    attributes: BucketArray


def read_words(text: str, options: SpanOptions) -> Reading:
    """What both models look at."""
    words = find_words(text, options.most_words)
    attributes = np.full((len(words) + 2 * _REACH, 4), _EDGE)
    if words:
        attributes[_REACH:-_REACH] = [_attributes(text[word.start : word.end]) for word in words]
    return Reading(words, attributes)


def first_features(reading: Reading, options: SpanOptions) -> BucketArray:
    """Buckets [words, f] of each word as the first of the passage."""
    return _buckets([*_window(reading, 0, len(reading.words)), *_places(len(reading.words))], 1, options)


def last_features(reading: Reading, first: int, options: SpanOptions) -> BucketArray:
    """Buckets [m, f] of the words `first`, `first` + 1, … as the last of the passage that begins at `first`."""
    end = min(len(reading.words), first + options.longest)
    steps = np.minimum(np.arange(end - first), _FAR).astype(np.uint32)
    here = reading.attributes[_REACH + first : _REACH + end]
    after = reading.attributes[_REACH + first + 1 : _REACH + end + 1]
    before, begin = reading.attributes[_REACH + first - 1], reading.attributes[_REACH + first]
    related = [
        steps,
        _mix(here[:, _SHAPE], steps),
        _mix(after[:, _WORD], steps),
        _mix(after[:, _WORD], begin[_WORD]),
        _mix(after[:, _WORD], before[_WORD]),
        _mix(after[:, _SHAPE], begin[_SHAPE]),
        _mix(here[:, _WORD], before[_WORD]),
    ]
    return _buckets([*_window(reading, first, end), *related], 2, options)


def nothing_features(reading: Reading, options: SpanOptions) -> BucketArray:
    """Buckets [f] of a text as one without the passage: its different words, and that there is a text at all."""
    words = np.unique(reading.attributes[_REACH : len(reading.words) + _REACH, _WORD])
    return _buckets([np.append(words, np.uint32(_NONE))], 3, options)[:, 0]


class SpanModel:
    """A span expert, ready to answer. Not changed by answering: safe to share between threads."""

    labels: tuple[str, ...] = ()

    def __init__(self, options: SpanOptions, first: npt.NDArray[np.float16], last: npt.NDArray[np.float16]) -> None:
        """`first` and `last` are weights float16 [buckets]. Raises BundleError where they do not fit."""
        for name, array in (("first", first), ("last", last)):
            if array.shape != (options.buckets,) or array.dtype != np.float16 or not np.isfinite(array).all():
                raise BundleError(f"{name} is {array.dtype} {array.shape}; expected finite float16 {options.buckets}")
        self.options = options
        self._stored = {"first": first, "last": last}
        self._first, self._last = first.astype(np.float32), last.astype(np.float32)

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights on disk."""
        return sum(array.nbytes for array in self._stored.values())

    def predict_one(self, text: str) -> tuple[str, float]:
        """The passage and its chance, for any text. Without a word to copy: no answer, at confidence 0."""
        reading = read_words(text, self.options)
        chances = self._first_chances(reading)
        if not len(chances):
            return "", 0.0
        found: dict[str, float] = {}  # a passage that occurs twice is one answer
        for place in np.argsort(-chances, kind="stable")[:STARTS_TRIED].tolist():
            if chances[place] <= max(found.values(), default=0.0):
                break
            if place == len(reading.words):
                answer, chance = self.options.nothing or "", float(chances[place])
            else:
                last = _softmax(self._last[last_features(reading, place, self.options)].sum(axis=1))
                best = int(last.argmax())
                answer = text[reading.words[place].start : reading.words[place + best].end]
                chance = float(chances[place] * last[best])
            found[answer] = found.get(answer, 0.0) + chance
        answer = max(found, key=found.__getitem__)
        return answer, min(1.0, found[answer])

    def predict_many(self, texts: Sequence[str]) -> tuple[list[str], FloatArray]:
        """Passages [n] and their chances [n]; as `predict_one`."""
        said = [self.predict_one(text) for text in texts]
        return [answer for answer, _ in said], np.array([chance for _, chance in said], np.float32)

    def save(self, folder: Path) -> None:
        """Write `span.safetensors` and `span.json` into the folder, which is made if need be."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self._stored, folder / WEIGHTS_FILE)
        write_config(folder / CONFIG_FILE, _Config(self.options, FORMAT))

    @classmethod
    def load(cls, folder: Path) -> SpanModel:
        """Read what `save` wrote. Raises BundleError that names the file which is missing or damaged."""
        config = read_config(folder / CONFIG_FILE, _Config, form=FORMAT)
        with naming(folder / WEIGHTS_FILE):
            return cls(config.options, **load_file(folder / WEIGHTS_FILE))

    def _first_chances(self, reading: Reading) -> FloatArray:
        """P(first = i) [words]; one more, of nothing, where that is an answer."""
        scores = self._first[first_features(reading, self.options)].sum(axis=1)
        if self.options.nothing is not None:
            found = nothing_features(reading, self.options)
            scores = np.append(scores, self._first[found].sum() * nothing_share(found))
        return _softmax(scores)


def nothing_share(found: BucketArray) -> np.float32:
    """What each feature of `nothing_features` counts: long texts shall not weigh more than short ones."""
    return np.float32(len(found) ** -0.5)


class _Config(msgspec.Struct, frozen=True):
    options: SpanOptions
    format: int


def _softmax(scores: FloatArray) -> FloatArray:
    raised: FloatArray = np.exp(scores - scores.max(initial=-np.inf))
    raised /= raised.sum()
    return raised


@lru_cache(maxsize=1 << 14)
def _attributes(word: str) -> tuple[int, int, int, int]:
    small = word.lower()
    return _hash(small), _hash(_shape(word)), _hash(small[:3]), _hash(small[-3:])


def _hash(text: str) -> int:
    return zlib.crc32(text.encode("utf-8", "surrogatepass"))


def _shape(word: str) -> str:
    """How a word is written: its kinds of characters, repeats left out, and the length of a number."""
    if word.isdigit():
        return f"9{len(word)}"
    if word.islower():
        return "x"
    kinds = "".join("X" if c.isupper() else "x" if c.islower() else "9" if c.isdigit() else c for c in word[:16])
    return "".join(kind for at, kind in enumerate(kinds) if at == 0 or kind != kinds[at - 1])


def _window(reading: Reading, first: int, end: int) -> list[BucketArray]:
    """The features [end − first] of the words in [first, end): each of its own kind, not yet told apart."""

    def at(attribute: int, offset: int) -> BucketArray:
        return reading.attributes[_REACH + first + offset : _REACH + end + offset, attribute]

    pairs = (_mix(at(_WORD, one), at(_WORD, other)) for one, other in _PAIRS)
    return [*(at(*single) for single in _SINGLE), *pairs, np.full(end - first, _EDGE)]


def _places(words: int) -> list[BucketArray]:
    """Each word's place [words] from the beginning and from the end."""
    places = np.arange(words)
    return [np.minimum(each, _FAR).astype(np.uint32) for each in (places, places[::-1])]


def _mix(one: BucketArray, other: BucketArray | np.uint32) -> BucketArray:
    mixed = one * MIX_1
    mixed ^= mixed >> _15
    mixed += other
    mixed *= MIX_2
    return mixed ^ (mixed >> _13)


def _buckets(kinds: Sequence[BucketArray], model: int, options: SpanOptions) -> BucketArray:
    """Buckets [n, kinds] of features [n] of each kind, told apart by their kind and by the model that asks."""
    salts = (np.arange(len(kinds), dtype=np.uint32) + np.uint32(1000 * model)) * MIX_2
    return _mix(np.stack(kinds, axis=1), salts) & np.uint32(options.buckets - 1)
