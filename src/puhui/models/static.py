"""The static expert: hashed features → an int8 row of logits each → weighted mean → label. NumPy alone.

Method: a linear classifier of TF-IDF features, hashed as in `hashing`. A model is a sum of *towers* that read
the same buckets: one is learned from the answers alone, another may carry what public word vectors say, so
that words which the answers never held still mean something. In a tower every feature that training kept owns
a row; all others point to row 0, which is zero, so that unknown text costs confidence instead of adding noise:

    logits = Σ over towers of  Σ table(f) · gain(f) / √Σ weight(f)²  +  bias

where the inner sums run over the distinct rows f of the text. The division is TF-IDF's: a text's length does
not count. In a tower that reads the words' order they run over the text's words in turn, repeats included, and
take the j-th of w words (j − ½) / w − ½ times: with a minus before the middle, a plus after it. Confidence
comes from the margin, best minus second-best logit: as its `Reliability` says, where it was learned, else p₁ /
(p₁ + p₂) = 1 / (1 + exp(−margin)). It ranks answers better than p₁ does (`bench/static_log.md`): a ranking that
`cascade.guarantee` turns into a promise, not itself a promise.

On disk (format 4, or 3 where no tower reads the order; what the browser's runtime reads too) there are two
files, and never pickle:

`static.json`: `labels`, a list of k strings; `features`, the fields of `hashing.FeatureOptions`; `reads`, for each
tower "all", "words" or "order", what it reads of a text; `format`.

`weights.safetensors`: little-endian arrays. For the towers i = 0, 1, …, with b = `features.buckets`:

    <i>.owners   uint8 [⌈b/8⌉]      bit c mod 8 (from the lowest) of byte ⌊c/8⌋: whether bucket c owns a row; those
                                    that do own the rows 1, 2, … r − 1 in ascending order, all others share row 0
    <i>.table    int8 [r, k]        numbers in [−127, 127], row 0 zero; or
                 uint8 [r, ⌈k/2⌉]   two numbers in [−7, 7] a byte, each plus 8: the even label's in the low four
                                    bits, the odd one's in the high four; after the last label, if k is odd, an 8
    <i>.gain     float32 [r]        weight(f) times the scale of the row's numbers; gain(0) = 0
    <i>.weight   float32 [r]        weight(0) = 0
    <i>.bias     float32 [k]
    reliability.slope   float32 [1]    > 0
    reliability.offset  float32 [k]    confidence = 1 / (1 + exp(−(slope · margin + offset[label])))

A text's distinct rows are counted once however many of its features share them; the norm √Σ weight² is at least
1e-6; of equal logits the first label is the answer. A table of 4 bits is unpacked when it is loaded, so that
answering is the same for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from puhui.core.errors import BundleError
from puhui.models.hashing import FeatureOptions, Features, features
from puhui.models.reliability import Reliability
from puhui.models.tower import FloatArray, Reads, Tower

WEIGHTS_FILE = "weights.safetensors"
CONFIG_FILE = "static.json"
FORMATS = (3, 4)
"""Those that are read; the second has towers that read the words' order."""
RELIABILITY = "reliability"
CHUNK = 64  # texts pooled at once: bounds the memory of a batch, whatever its length


class StaticConfig(msgspec.Struct, frozen=True):
    """What `static.json` holds.

    `reads` says for each tower what it reads. `format` grows when an older reader would answer wrongly.
    """

    labels: tuple[str, ...]
    features: FeatureOptions
    reads: tuple[Reads, ...]
    format: int


class StaticModel:
    """A static expert, ready to answer. Not changed by answering: safe to share between threads."""

    def __init__(
        self,
        labels: Sequence[str],
        options: FeatureOptions,
        towers: Sequence[Tower],
        reliability: Reliability | None = None,
    ) -> None:
        """Raises BundleError where labels, shapes, types or row numbers do not fit each other."""
        self.labels: tuple[str, ...] = tuple(labels)
        self.options = options
        self.towers: tuple[Tower, ...] = tuple(towers)
        if len(self.labels) < 2 or len(set(self.labels)) != len(self.labels):
            raise BundleError(f"{len(self.labels)} labels; a static expert has 2 or more, each once")
        if not self.towers:
            raise BundleError("a static expert has at least one tower, this one has none")
        for tower in self.towers:
            tower.check(buckets=options.buckets, labels=len(self.labels))
        self.reliability = reliability or Reliability(1.0, np.zeros(len(self.labels), np.float32))
        self.reliability.check(labels=len(self.labels))

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights on disk (but for a header of about 1 kB)."""
        return sum(array.nbytes for array in self._arrays().values())

    def predict_one(self, text: str) -> tuple[str, float]:
        """Label and confidence in [0, 1] for any text, the empty one included."""
        found = features(text, self.options)
        logits = self.towers[0].logits_one(found)
        for tower in self.towers[1:]:
            logits += tower.logits_one(found)
        best = int(logits.argmax())
        highest = float(logits[best])
        logits[best] = -np.inf
        return self.labels[best], self.reliability.confidence(highest - float(logits.max()), best)

    def predict_many(self, texts: Sequence[str]) -> tuple[list[str], FloatArray]:
        """Labels [n] and confidences [n] in [0, 1]; as `predict_one`, to rounding."""
        labels: list[str] = []
        confidences = np.empty(len(texts), np.float32)
        for first in range(0, len(texts), CHUNK):
            chunk = slice(first, first + CHUNK)
            margins, numbers = margins_of(self.logits_many(texts[chunk]))
            labels += [self.labels[number] for number in numbers]
            confidences[chunk] = self.reliability.confidences(margins, numbers)
        return labels, confidences

    def logits_many(self, texts: Sequence[str]) -> FloatArray:
        """Logits [n, k] of the labels."""
        return logits_of(self.towers, [features(text, self.options) for text in texts])

    def save(self, folder: Path) -> None:
        """Write `weights.safetensors` and `static.json` into the folder, which is made if need be."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self._arrays(), folder / WEIGHTS_FILE)
        reads = tuple(tower.reads for tower in self.towers)
        config = StaticConfig(self.labels, self.options, reads, FORMATS["order" in reads])
        (folder / CONFIG_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(config), indent=2))

    @classmethod
    def load(cls, folder: Path) -> StaticModel:
        """Read what `save` wrote. Raises BundleError that names the file which is missing or damaged."""
        config = _read_config(folder / CONFIG_FILE)
        path = folder / WEIGHTS_FILE
        try:
            towers, reliability = _parts(load_file(path), config)
            return cls(config.labels, config.features, towers, reliability)
        except FileNotFoundError as error:
            raise BundleError(f"{path} is missing: fetch the expert's bundle again") from error
        except (BundleError, SafetensorError, TypeError, ValueError, IndexError, OSError, KeyError) as error:
            raise BundleError(f"{path} is damaged ({error}): fetch the expert's bundle again") from error

    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        groups = {str(number): tower.stored() for number, tower in enumerate(self.towers)}
        groups[RELIABILITY] = self.reliability.arrays()
        return {f"{group}.{name}": array for group, arrays in groups.items() for name, array in arrays.items()}


def logits_of(towers: Sequence[Tower], texts: Sequence[Features]) -> FloatArray:
    """Logits [n, k] of texts: the sum over the towers."""
    logits = np.empty((len(texts), len(towers[0].bias)), np.float32)
    for first in range(0, len(texts), CHUNK):
        chunk = texts[first : first + CHUNK]
        logits[first : first + CHUNK] = np.sum([tower.logits_many(chunk) for tower in towers], axis=0)
    return logits


def margins_of(logits: FloatArray) -> tuple[FloatArray, npt.NDArray[np.intp]]:
    """Best minus second-best logit [n], and the best label's number [n], of logits [n, k]."""
    ordered = np.partition(logits, -2, axis=1)
    return ordered[:, -1] - ordered[:, -2], logits.argmax(axis=1)


def _parts(arrays: dict[str, npt.NDArray[Any]], config: StaticConfig) -> tuple[list[Tower], Reliability]:
    """Towers and reliability from arrays named `<group>.<array>`; an error where a name is strange or missing."""
    buckets = config.features.buckets
    grouped: dict[str, dict[str, npt.NDArray[Any]]] = {str(number): {} for number in range(len(config.reads))}
    grouped[RELIABILITY] = {}
    for key, array in arrays.items():
        group, _, name = key.partition(".")
        grouped[group][name] = array
    reliability = Reliability.from_arrays(grouped.pop(RELIABILITY))
    towers = [
        Tower.restored(group, buckets=buckets, reads=reads)
        for group, reads in zip(grouped.values(), config.reads, strict=True)
    ]
    return towers, reliability


def _read_config(path: Path) -> StaticConfig:
    try:
        config = msgspec.json.decode(path.read_bytes(), type=StaticConfig)
    except FileNotFoundError as error:
        raise BundleError(f"{path} is missing: fetch the expert's bundle again") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, OSError) as error:
        raise BundleError(f"{path} is damaged ({error}): fetch the expert's bundle again") from error
    if config.format not in FORMATS:
        known = " and ".join(map(str, FORMATS))
        raise BundleError(f"{path} has format {config.format}; this Puhui reads {known}: upgrade puhui")
    return config
