"""What `bench.static` asks the big model, kept in a work folder: nothing is asked twice, across runs.

Vectors are kept in pieces of a thousand texts as they come, so that an interrupted run goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from puhui.compress.word_vectors import WordVectors, words_of
from puhui.models.encoder import EncoderClassifier, SentenceEncoder, fit_head

FloatArray = npt.NDArray[np.float32]
Advance = Callable[[float], None]
"""Called with the share of a part that is done, in [0, 1]."""
PIECE = 1000


class Split:
    """Texts, true labels and the big model's answers and probabilities of one split."""

    def __init__(self, texts: list[str], truth: list[str]) -> None:
        self.texts, self.truth = texts, truth
        self.answers: list[str] = []
        self.probabilities: list[dict[str, float]] = []

    def first(self, rows: int) -> Split:
        """The first rows alone."""
        some = Split(self.texts[:rows], self.truth[:rows])
        some.answers, some.probabilities = self.answers[:rows], self.probabilities[:rows]
        return some


def read_splits(data: Path, seed: int) -> dict[str, Split]:
    """CLINC150's train, val and test texts in scope; train is mixed, so that its first few are of all classes."""
    rows = json.loads((data / "data_full.json").read_text())
    splits = {name: Split(*map(list, zip(*rows[name], strict=True))) for name in ("train", "val", "test")}
    order = np.random.default_rng(seed).permutation(len(splits["train"].texts)).tolist()
    train = splits["train"]
    splits["train"] = Split([train.texts[i] for i in order], [train.truth[i] for i in order])
    return splits


class Shelf:
    """The big model and what it has said so far. The encoder is loaded when something is missing."""

    def __init__(self, work: Path, encoder_folder: Path) -> None:
        self._work = work
        self._folder = encoder_folder
        self._loaded: SentenceEncoder | None = None
        work.mkdir(parents=True, exist_ok=True)

    @property
    def encoder(self) -> SentenceEncoder:
        """The big model's body."""
        if self._loaded is None:
            self._loaded = SentenceEncoder(self._folder)
        return self._loaded

    def vectors(self, texts: Sequence[str], advance: Advance) -> FloatArray:
        """The encoder's vectors [n, d] of the texts."""
        pieces = []
        for first in range(0, len(texts), PIECE):
            advance(first / len(texts))
            pieces.append(self._piece(texts[first : first + PIECE]))
        return np.concatenate(pieces)

    def _piece(self, texts: Sequence[str]) -> FloatArray:
        name = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:24]
        place = self._work / "vectors" / f"{name}.npy"
        if not place.exists():
            place.parent.mkdir(exist_ok=True)
            draft = place.with_suffix(".draft.npy")
            np.save(draft, self.encoder.encode(texts))
            draft.rename(place)
        vectors: FloatArray = np.load(place)
        return vectors

    def answer(self, splits: dict[str, Split], advance: Advance) -> EncoderClassifier:
        """Fills in the big model's answers and probabilities; returns it, its head fitted to train's true labels."""
        train = splits["train"]
        vectors = {}
        texts = sum(len(split.texts) for split in splits.values())
        done = 0
        for name, split in splits.items():
            vectors[name] = self.vectors(
                split.texts, _part(advance, 0.8 * done / texts, 0.8 * len(split.texts) / texts)
            )
            done += len(split.texts)
        head = self._work / "head"
        if not head.exists():
            fitted = EncoderClassifier(self.encoder, *fit_head(vectors["train"], train.truth))
            fitted.save_head(self._work / "head.draft")
            (self._work / "head.draft").rename(head)
        big = EncoderClassifier.load(self._folder, head)
        for name, split in splits.items():
            numbers, probabilities = big.predict_vectors(vectors[name])
            split.answers = [big.labels[i] for i in numbers]
            split.probabilities = [dict(zip(big.labels, row.tolist(), strict=True)) for row in probabilities]
        return big

    def words(self, texts: Sequence[str], advance: Advance) -> tuple[WordVectors, float]:
        """Vectors of the texts' words and of the encoder's own vocabulary, and the seconds that they took."""
        return self._kept_words(
            "alone", texts, lambda words: WordVectors.learn(words, lambda each: self.vectors(each, advance))
        )

    def words_in_context(self, texts: Sequence[str]) -> tuple[WordVectors, float]:
        """The same words as the texts use them, and the seconds that they took."""
        return self._kept_words(
            "in context", texts, lambda words: WordVectors.learn_in_context(words, texts, self.encoder)
        )

    def _kept_words(
        self, name: str, texts: Sequence[str], learn: Callable[[Sequence[str]], WordVectors]
    ) -> tuple[WordVectors, float]:
        place, noted = self._work / f"words {name}.safetensors", self._work / f"words {name}.json"
        if not noted.exists():
            words = (*words_of(texts), *self.encoder.words)
            started = time.perf_counter()
            learn(words).save(place)
            noted.write_text(json.dumps({"seconds": time.perf_counter() - started}))
        return WordVectors.load(place), float(json.loads(noted.read_text())["seconds"])


def model2vec_table(shelf: Shelf, folder: Path, advance: Advance) -> tuple[Callable[[Sequence[str]], FloatArray], int]:
    """model2vec's `StaticModel.encode` over MiniLM's token table, and the table's bytes.

    Its own `distill` needs packages that pull transformers down, so its published recipe is followed here:
    the encoder's output for each token of the vocabulary alone, 256 principal components, weights
    1e-4 / (1e-4 + p) with Zipf's p of the token's rank. `distill` itself gave 0.929 in `static_log.md`.
    """
    from model2vec import StaticModel as Model2Vec
    from tokenizers import Tokenizer

    tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    vocabulary = tokenizer.get_vocab()
    tokens = [t for t in sorted(vocabulary, key=vocabulary.__getitem__) if not t.startswith("[")]
    learned = WordVectors.learn(
        [f"{i} {t}" for i, t in enumerate(tokens)],
        lambda named: shelf.vectors([name.split(" ", 1)[1].removeprefix("##") for name in named], advance),
    )
    shares = 1.0 / np.arange(2, len(tokens) + 2)
    weights = 1e-4 / (1e-4 + shares / shares.sum())
    vectors = np.zeros((len(vocabulary), learned.vectors.shape[1]), np.float32)
    vectors[[vocabulary[t] for t in tokens]] = learned.vectors * weights[:, None]
    model = Model2Vec(vectors, tokenizer, normalize=True)
    return lambda texts: np.asarray(model.encode(list(texts)), np.float32), vectors.nbytes


def _part(advance: Advance, done: float, share: float) -> Advance:
    return lambda part: advance(done + share * part)
