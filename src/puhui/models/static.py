"""The static expert: hashed features → an int8 row of logits each → weighted mean → label. NumPy alone.

Method: a linear classifier of TF-IDF features, hashed as in `hashing`. A model is a sum of *towers* that read
the same buckets: one is learned from the answers alone, another may carry what public word vectors say, so
that words which the answers never held still mean something. In a tower every feature that training kept owns
a row; all others point to row 0, which is zero, so that unknown text costs confidence instead of adding noise:

    logits = Σ over towers of  Σ table(f) · gain(f) / √Σ weight(f)²  +  bias

where the inner sums run over the distinct rows f of the text. The division is TF-IDF's: a text's length does
not count. Confidence is p₁ / (p₁ + p₂), the best label against the second best alone, which is
1 / (1 + exp(second − best logit)) and lies in [0.5, 1]. It ranks answers better than p₁ does
(`bench/static_log.md`): a ranking that `cascade.guarantee` turns into a promise, not itself a promise.

On disk: `weights.safetensors` (arrays named `<tower>.<array>`) and `static.json`. Never pickle.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from puhui.core.errors import BundleError
from puhui.models.hashing import FeatureOptions, features
from puhui.models.tower import FloatArray, Tower

WEIGHTS_FILE = "weights.safetensors"
CONFIG_FILE = "static.json"
FORMAT = 2
CHUNK = 64  # texts pooled at once: bounds the memory of a batch, whatever its length


class StaticConfig(msgspec.Struct, frozen=True):
    """What `static.json` holds.

    `reads` says for each tower which features it reads. `format` grows when an older reader would answer
    wrongly.
    """

    labels: tuple[str, ...]
    features: FeatureOptions
    reads: tuple[Literal["all", "words"], ...]
    format: int = FORMAT


class StaticModel:
    """A static expert, ready to answer. Not changed by answering: safe to share between threads."""

    def __init__(self, labels: Sequence[str], options: FeatureOptions, towers: Sequence[Tower]) -> None:
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

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights, in memory and (but for a header of about 1 kB) on disk."""
        return sum(array.nbytes for tower in self.towers for array in tower.arrays().values())

    def predict_one(self, text: str) -> tuple[str, float]:
        """Label and confidence in [0.5, 1] for any text, the empty one included."""
        found = features(text, self.options)
        logits = self.towers[0].logits_one(found)
        for tower in self.towers[1:]:
            logits += tower.logits_one(found)
        best = int(logits.argmax())
        highest = float(logits[best])
        logits[best] = -np.inf
        return self.labels[best], 1.0 / (1.0 + math.exp(float(logits.max()) - highest))

    def predict_many(self, texts: Sequence[str]) -> tuple[list[str], FloatArray]:
        """Labels [n] and confidences [n] in [0.5, 1]; as `predict_one`, to rounding."""
        labels: list[str] = []
        confidences = np.empty(len(texts), np.float32)
        for first in range(0, len(texts), CHUNK):
            chunk = slice(first, first + CHUNK)
            found = [features(text, self.options) for text in texts[chunk]]
            logits = np.sum([tower.logits_many(found) for tower in self.towers], axis=0)
            labels += [self.labels[number] for number in logits.argmax(axis=1)]
            second, best = np.partition(logits, -2, axis=1)[:, -2:].T
            confidences[chunk] = 1.0 / (1.0 + np.exp(second - best))
        return labels, confidences

    def save(self, folder: Path) -> None:
        """Write `weights.safetensors` and `static.json` into the folder, which is made if need be."""
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {f"{i}.{name}": a for i, t in enumerate(self.towers) for name, a in t.arrays().items()}
        save_file(arrays, folder / WEIGHTS_FILE)
        config = StaticConfig(
            labels=self.labels,
            features=self.options,
            reads=tuple("words" if tower.words_only else "all" for tower in self.towers),
        )
        (folder / CONFIG_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(config), indent=2))

    @classmethod
    def load(cls, folder: Path) -> StaticModel:
        """Read what `save` wrote. Raises BundleError that names the file which is missing or damaged."""
        config = _read_config(folder / CONFIG_FILE)
        path = folder / WEIGHTS_FILE
        try:
            return cls(config.labels, config.features, _towers(load_file(path), config))
        except FileNotFoundError as error:
            raise BundleError(f"{path} is missing: fetch the expert's bundle again") from error
        except (BundleError, SafetensorError, TypeError, ValueError, IndexError, OSError) as error:
            raise BundleError(f"{path} is damaged ({error}): fetch the expert's bundle again") from error


def _towers(arrays: dict[str, npt.NDArray[Any]], config: StaticConfig) -> list[Tower]:
    """Towers from arrays named `<tower>.<array>`; an error where a name is strange or missing."""
    grouped: list[dict[str, npt.NDArray[Any]]] = [{} for _ in config.reads]
    for key, array in arrays.items():
        number, _, name = key.partition(".")
        grouped[int(number)][name] = array
    return [Tower(**g, words_only=r == "words") for g, r in zip(grouped, config.reads, strict=True)]


def _read_config(path: Path) -> StaticConfig:
    try:
        config = msgspec.json.decode(path.read_bytes(), type=StaticConfig)
    except FileNotFoundError as error:
        raise BundleError(f"{path} is missing: fetch the expert's bundle again") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, OSError) as error:
        raise BundleError(f"{path} is damaged ({error}): fetch the expert's bundle again") from error
    if config.format != FORMAT:
        raise BundleError(f"{path} has format {config.format}; this Puhui reads {FORMAT}: upgrade puhui")
    return config
