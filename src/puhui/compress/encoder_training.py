"""An encoder expert from a big model's answers: layers of a pretrained encoder, fitted, tuned, exported, in int8.

Nothing is drawn at the start. What the layers say is mapped onto a teacher's vectors by ridge regression, and the
head is a logistic regression (`logistic`) on those vectors, so that the student answers well before it is tuned
(`encoder_tuning`). With few answers that is where it stays: the state that does best on held-out answers is kept,
the first one included.

The teacher's vectors are the big model's hidden states where they can be had; else those of the whole encoder that
the layers were taken from, which is at hand and needs no answers, so that unlabelled texts teach too (as TinyBERT,
Jiao et al. 2020, and MiniLM itself). Confidence is learned on the held-out answers, from the exported file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from puhui.compress.encoder_student import Student
from puhui.compress.encoder_tuning import Material, Tuning, tune
from puhui.compress.lessons import Lessons
from puhui.compress.logistic import fit_logistic
from puhui.compress.reliability_fit import fit_reliability
from puhui.core.errors import LearningError, MissingExtra
from puhui.models.onnx_encoder import EncoderModel, MatrixNote
from puhui.models.static import margins_of
from puhui.quantisation.onnx_export import Batch, check_export
from puhui.quantisation.precision import Target
from puhui.quantisation.quantise import quantise

FloatArray: TypeAlias = npt.NDArray[np.float32]
Progress: TypeAlias = Callable[[float], None]

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
MOST_HELD = 1500
MOST_HEARD = 1000
"""Texts by which neurons are chosen."""
CHECKED_TEXTS = 150
TOLERANCE = 2e-3
"""Of the float32 file's logits against the tuned network's, on real texts."""
BITS = {"int8": 8, "weights": 8, "float16": 16, "float32": 32}
"""Of a matrix on disk, by its form."""
COSINES = (0.99, 0.997, 0.999)
"""Mean cosine of the int8 file's vectors with the tuned network's that `quantise` is asked for: the first that does."""
LEAST_SAME = 0.97
"""Held-out texts that the int8 file must answer as the tuned network does: below, it is refused. A student of few
answers holds many labels to be as good as even, and needs a finer file."""


class EncoderOptions(msgspec.Struct, frozen=True):
    """How an encoder expert is built.

    `layers` of the base are kept, in this order; None: all; and of their feed-forward neurons the share `inner`.
    `max_tokens` of a text are read. `common_tokens` are
    kept beside those of the texts (`token_pruning`). Tuning ends after `epochs`, or where `most_work` is done, in
    texts times layers: a thousand take about two seconds of one core. With 0 epochs the fitted start is the result.
    `inverse_penalty` is C of the head's start. `threads` are for training alone: an expert answers on one.
    """

    layers: tuple[int, ...] | None = (0, 1, 2)
    inner: float = 1.0
    max_tokens: int = 128
    common_tokens: int = 10_000
    epochs: int = 4
    most_work: int = 200_000
    learning_rate: float = 3e-4
    batch: int = 32
    hidden_share: float = 10.0
    inverse_penalty: float = 10.0
    head_steps: int = 100
    precision: Literal["int8", "float32"] = "int8"
    threads: int = 1

    @property
    def tuning(self) -> Tuning:
        """The part that `encoder_tuning` reads."""
        return Tuning(self.epochs, self.most_work, self.learning_rate, self.batch, self.hidden_share)


def distill_encoder(
    texts: Sequence[str],
    answers: Sequence[str],
    *,
    base: Path,
    options: EncoderOptions | None = None,
    probabilities: Sequence[Mapping[str, float]] | None = None,
    vectors: npt.NDArray[np.floating[Any]] | None = None,
    unlabelled: Sequence[str] = (),
    progress: Progress | None = None,
    seed: int = 0,
) -> EncoderModel:
    """Learn to answer as the big model did: `answers[i]` to `texts[i]`.

    `base` is a Hugging Face folder. `probabilities[i]` maps answers to the big model's probabilities, as far as it
    told them; they are used instead of the answers. `vectors` [n, e] are its hidden states of the texts; without
    them the whole base's are used, and of the `unlabelled` texts too. A part of the texts is held out: it chooses
    the best state and teaches the confidence. `progress` is called with shares in [0, 1]. The same arguments give
    the same model on the same machine.

    Raises LearningError for fewer than 20 answers or 2 different ones, lengths that differ, layers that the base
    has not, or an exported file that departs from what was trained; BundleError for a folder without an encoder;
    MissingExtra without PyTorch, transformers or SciPy.
    """
    lessons = Lessons.of(texts, answers, probabilities)
    if vectors is not None and len(vectors) != len(texts):
        raise LearningError(f"{len(texts)} texts and {len(vectors)} vectors: give one each, or none")
    chosen, report = options or EncoderOptions(), progress or (lambda share: None)
    with _threads(chosen.threads):
        student = Student.open(base, chosen.max_tokens)
        student.keep_tokens([*texts, *unlabelled], chosen.common_tokens)
        more = () if vectors is not None else unlabelled
        material = _material(student, lessons, vectors, more, lambda share: report(0.2 * share))
        if chosen.layers is not None:
            student.keep_layers(chosen.layers)
        if chosen.inner < 1.0:
            student.keep_inner(chosen.inner, material.rows[:MOST_HEARD])
        rows, held_rows = lessons.split(_held(len(texts)), seed)
        known, held = material.part(rows), material.part(held_rows)
        taught = material.part(np.concatenate([rows, np.arange(len(texts), len(material.rows))]))
        _start(student, known, taught, held, chosen)
        report(0.3)
        tune(student, taught, held, chosen.tuning, seed=seed, progress=lambda share: report(0.3 + 0.6 * share))
        model = _exported(student, lessons, held_rows, held, taught, chosen)
    report(1.0)
    return model


def _held(rows: int) -> int:
    """How many of the answers are held out: a tenth, but a fifth where that is few."""
    return min(MOST_HELD, max(rows // 10, min(rows // 5, 100)))


def _material(
    student: Student,
    lessons: Lessons,
    vectors: npt.NDArray[np.floating[Any]] | None,
    unlabelled: Sequence[str],
    progress: Progress,
) -> Material:
    """The lessons' texts and, after them, the unlabelled; the student is still the whole base."""
    rows = student.read([*lessons.texts, *unlabelled])
    wanted = np.zeros((len(rows), len(lessons.labels)), np.float32)
    wanted[: len(lessons.texts)] = lessons.wanted
    teacher = student.pooled_many(rows, progress) if vectors is None else np.asarray(vectors, np.float32)
    return Material(rows, wanted, teacher / np.maximum(np.linalg.norm(teacher, axis=1, keepdims=True), 1e-12))


def _start(student: Student, known: Material, taught: Material, held: Material, options: EncoderOptions) -> None:
    """Projection and head before any tuning; `known` are the rows of `taught` that have an answer."""
    states, held_states = student.pooled_many(taught.rows), student.pooled_many(held.rows)
    weight, bias = _ridge(states, taught.teacher, held_states, held.teacher)
    student.projection = _linear(weight, bias)
    mapped: FloatArray = states[: len(known.rows)] @ weight + bias
    mapped /= np.maximum(np.linalg.norm(mapped, axis=1, keepdims=True), 1e-12)

    def kernel(given: FloatArray) -> FloatArray:
        product: FloatArray = mapped @ (mapped.T @ given) + given.sum(axis=0)  # the bias is a feature that is 1
        return product

    penalty = 1.0 / (2.0 * options.inverse_penalty * len(mapped))
    fitted = fit_logistic(kernel, known.wanted, penalty=penalty, steps=options.head_steps)
    student.head = _linear(mapped.T @ fitted, fitted.sum(axis=0))


def _ridge(
    states: FloatArray, teacher: FloatArray, held_states: FloatArray, held_teacher: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Weight [d, e] and bias [e] of states [n, d] on the teacher's vectors [n, e], at the best held-out cosine."""
    mean, target = states.mean(axis=0), teacher.mean(axis=0)
    centred = (states - mean).astype(np.float64)
    squares, mixed = centred.T @ centred, centred.T @ (teacher - target)
    level = float(np.trace(squares)) / len(squares)
    fits = []
    for ridge in RIDGES:
        weight = np.linalg.solve(squares + ridge * level * np.eye(len(squares)), mixed).astype(np.float32)
        bias = (target - mean @ weight).astype(np.float32)
        mapped = held_states @ weight + bias
        lengths = np.maximum(np.linalg.norm(mapped, axis=1), 1e-12)
        fits.append((float(np.mean((mapped * held_teacher).sum(axis=1) / lengths)), weight, bias))
    _, weight, bias = max(fits, key=lambda fit: fit[0])
    return weight, bias


def _linear(weight: FloatArray, bias: FloatArray) -> Any:
    """A torch.nn.Linear of a weight [d, e] and a bias [e]."""
    import torch
    from torch import nn

    made = nn.Linear(*weight.shape)
    with torch.no_grad():
        made.weight.copy_(torch.from_numpy(np.ascontiguousarray(weight.T)))
        made.bias.copy_(torch.from_numpy(bias))
    return made


def _exported(
    student: Student,
    lessons: Lessons,
    held_rows: npt.NDArray[np.intp],
    held: Material,
    taught: Material,
    options: EncoderOptions,
) -> EncoderModel:
    """The student as a file that was run on real texts, with a confidence learned on the held-out answers."""
    texts = [lessons.texts[row] for row in held_rows.tolist()]
    trained = student.logits_many(held.rows).argmax(axis=1)
    checked = (*held.rows, *taught.rows)[:CHECKED_TEXTS]
    batches = [(np.array([row]), np.ones((1, len(row)), np.int64)) for row in checked]
    with tempfile.TemporaryDirectory(prefix="puhui-encoder-") as folder:
        path = Path(folder) / "float.onnx"
        check_export(path, student.export(path), batches, tolerance=TOLERANCE)
        kept: tuple[MatrixNote, ...]
        for cosine in COSINES if options.precision == "int8" else (1.0,):
            onnx, kept = path.read_bytes(), ()
            if options.precision == "int8":
                onnx, kept = _in_eight_bits(path, batches, cosine)
            model = EncoderModel(lessons.labels, onnx, student.tokenizer, max_tokens=student.max_tokens)
            margins, numbers = margins_of(model.logits_many(texts))
            same = float(np.mean(numbers == trained))
            if same >= LEAST_SAME:
                break
        else:
            raise LearningError(
                f"in {options.precision} the encoder answers only {same:.1%} of held-out texts as it was trained to; "
                f'{LEAST_SAME:.0%} are needed: train it with precision="float32"'
            )
    right = numbers == lessons.numbers[held_rows]
    reliability = fit_reliability(margins, numbers, right, len(lessons.labels))
    return EncoderModel(
        lessons.labels,
        onnx,
        student.tokenizer,
        max_tokens=student.max_tokens,
        reliability=reliability,
        precision=kept,
    )


def _in_eight_bits(path: Path, batches: Sequence[Batch], cosine: float) -> tuple[bytes, tuple[MatrixNote, ...]]:
    """The file, made small, and what became of its matrices."""
    small = path.with_name("int8.onnx")
    target = Target(cosine=cosine, alone=True)  # as `EncoderModel` runs them
    report = quantise(path, small, batches=batches, target=target)
    return small.read_bytes(), tuple(
        MatrixNote(one.name, BITS[one.form], one.harm, str(one)) for one in report.matrices
    )


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """PyTorch on so many threads, as repeatable results need, and afterwards on as many as before."""
    try:
        import torch
    except ImportError as error:
        raise MissingExtra("Training an encoder", "workshop") from error
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
