"""A static expert from a big model's answers: features chosen, towers trained, rounded to int8.

The answers are all it needs: hard ones, which is what an API gives. Probabilities, where the big model tells
them, and public word vectors, where a table for the language is at hand, each make it better; `bench/static`
shows by how much.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import numpy.typing as npt

from puhui.core.errors import LearningError
from puhui.models.hashing import FeatureOptions, Features, features
from puhui.models.static import StaticModel
from puhui.models.tower import Tower

if TYPE_CHECKING:
    from puhui.compress.static_nets import Bags, TowerNet, TowerOptions
    from puhui.compress.word_vectors import WordVectors

FloatArray = npt.NDArray[np.float32]
LEAST_ANSWERS = 20


class StaticOptions(msgspec.Struct, frozen=True):
    """How a static expert is built.

    `dim` and `hidden` are sizes of the n-gram tower's vectors and of the word tower's hidden layer. A feature
    found in fewer than `min_count` texts (below 2,000 answers: 1) owns no row, and at most `max_rows` do. A
    feature's weight is its inverse document frequency to the power `idf_power`.
    """

    features: FeatureOptions = FeatureOptions(buckets=1 << 18)
    dim: int = 128
    hidden: int = 256
    min_count: int = 2
    max_rows: int = 60_000
    idf_power: float = 0.5
    epochs: int = 12
    word_epochs: int = 15


class _Task(msgspec.Struct, frozen=True, eq=False):
    """One distillation: features of each text, targets (class numbers or probabilities), labels, options."""

    texts: list[Features]
    targets: npt.NDArray[np.int64] | FloatArray
    labels: tuple[str, ...]
    options: StaticOptions
    seed: int


def distill_static(
    texts: Sequence[str],
    answers: Sequence[str],
    *,
    options: StaticOptions | None = None,
    probabilities: Sequence[Mapping[str, float]] | None = None,
    word_vectors: WordVectors | None = None,
    progress: Callable[[float], None] | None = None,
    seed: int = 0,
) -> StaticModel:
    """Learn to answer as the big model did: `answers[i]` to `texts[i]`.

    `probabilities[i]` maps answers to the big model's probabilities, as far as it told them; they are used
    instead of the answers. `word_vectors` add a tower that knows words which the texts never held.
    `progress` is called with shares in [0, 1]. The same arguments give the same model on the same machine.

    Raises LearningError for fewer than 20 answers or 2 different ones, or lengths that differ, and
    MissingExtra without PyTorch.
    """
    labels = _checked_labels(texts, answers, probabilities)
    report = progress or (lambda share: None)
    chosen = options or StaticOptions()
    task = _Task(
        texts=[features(text, chosen.features) for text in texts],
        targets=_targets(answers, probabilities, labels),
        labels=labels,
        options=chosen,
        seed=seed,
    )
    if word_vectors is None:
        towers = [_ngram_tower(task, report)]
    else:
        towers = [
            _ngram_tower(task, lambda share: report(0.8 * share)),
            _word_tower(task, word_vectors, lambda share: report(0.8 + 0.2 * share)),
        ]
    return StaticModel(labels, chosen.features, [_scaled(tower, 1 / len(towers)) for tower in towers])


def _checked_labels(
    texts: Sequence[str], answers: Sequence[str], probabilities: Sequence[Mapping[str, float]] | None
) -> tuple[str, ...]:
    given = len(texts) if probabilities is None else len(probabilities)
    if not len(texts) == len(answers) == given:
        raise LearningError(
            f"{len(texts)} texts, {len(answers)} answers, {given} probabilities: give one each"
        )
    labels = tuple(sorted(set(answers)))
    if len(labels) < 2:
        raise LearningError(f"the {len(answers)} answers are all alike; an expert needs 2 different ones")
    if len(answers) < LEAST_ANSWERS:
        raise LearningError(f"{len(answers)} answers; learning needs at least {LEAST_ANSWERS}: wait for more")
    return labels


def _targets(
    answers: Sequence[str], probabilities: Sequence[Mapping[str, float]] | None, labels: tuple[str, ...]
) -> npt.NDArray[np.int64] | FloatArray:
    """Class numbers [n]; or probabilities [n, k] that sum to one, where answers never given are left out."""
    numbers = {label: number for number, label in enumerate(labels)}
    if probabilities is None:
        return np.array([numbers[answer] for answer in answers], np.int64)
    soft = np.zeros((len(answers), len(labels)), np.float32)
    for row, (told, answer) in enumerate(zip(probabilities, answers, strict=True)):
        for label, probability in told.items():
            if label in numbers:
                soft[row, numbers[label]] = max(probability, 0.0)
        if not soft[row].any():
            soft[row, numbers[answer]] = 1.0
    soft /= soft.sum(axis=1, keepdims=True)
    return soft


def _ngram_tower(task: _Task, progress: Callable[[float], None]) -> Tower:
    """The tower learned from the answers alone: every kept feature has a vector of its own."""
    from puhui.compress.static_nets import TowerOptions  # PyTorch takes a second: only when it is used

    counts = _document_counts(task, words_only=False)
    least = task.options.min_count if len(task.texts) >= 2000 else 1
    kept = np.flatnonzero(counts >= least)
    if len(kept) > task.options.max_rows:
        kept = np.sort(kept[np.argsort(-counts[kept], kind="stable")[: task.options.max_rows]])
    table = np.random.default_rng(task.seed).normal(0.0, 0.3, (len(kept) + 1, task.options.dim))
    return _trained(task, kept, counts[kept], table, TowerOptions(epochs=task.options.epochs), progress)


def _word_tower(task: _Task, words: WordVectors, progress: Callable[[float], None]) -> Tower:
    """The tower on public word vectors, which stay as they are: a hidden layer learns what they mean here."""
    from puhui.compress.static_nets import TowerOptions

    first: dict[int, int] = {}
    for number, word in enumerate(words.words):
        first.setdefault(int(features(word, task.options.features).buckets[0]), number)
    kept = np.array(sorted(first), np.int64)
    table = np.zeros((len(kept) + 1, words.vectors.shape[1]))
    table[1:] = words.vectors[[first[bucket] for bucket in kept]]
    options = TowerOptions(
        hidden=task.options.hidden,
        train_table=False,
        feature_dropout=0.0,
        dropout=0.1,
        learning_rate=0.003,
        epochs=task.options.word_epochs,
        batch=256,
    )
    return _trained(task, kept, _document_counts(task, words_only=True)[kept], table, options, progress)


def _document_counts(task: _Task, *, words_only: bool) -> npt.NDArray[np.int64]:
    counts = Counter[int]()
    for found in task.texts:
        counts.update(set((found.buckets[: found.words] if words_only else found.buckets).tolist()))
    dense = np.zeros(task.options.features.buckets, np.int64)
    dense[list(counts)] = list(counts.values())
    return dense


def _trained(
    task: _Task,
    kept: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
    table: npt.NDArray[np.float64],
    options: TowerOptions,
    progress: Callable[[float], None],
) -> Tower:
    """Train on the kept buckets [r - 1] and round; `table` [r, d] has an unused first row."""
    import torch

    from puhui.compress.static_nets import TowerNet, train

    slots = np.zeros(task.options.features.buckets, np.uint32)
    slots[kept] = np.arange(1, len(kept) + 1)
    weight = np.zeros(len(kept) + 1, np.float32)
    weight[1:] = np.log((len(task.texts) + 1) / np.maximum(counts, 1)) ** task.options.idf_power
    bags = _bags(task.texts, slots, weight, words_only=not options.train_table)
    if not options.train_table:
        table = table / _typical_length(table, bags)
    table[0] = 0.0
    generator = torch.Generator().manual_seed(task.seed)
    net = TowerNet(table.astype(np.float32), len(task.labels), options, generator)
    train(net, bags, task.targets, progress)
    return _rounded(net, slots, weight, words_only=not options.train_table)


def _bags(
    texts: list[Features], slots: npt.NDArray[np.uint32], weight: FloatArray, *, words_only: bool
) -> Bags:
    from puhui.compress.static_nets import Bags

    found = [slots[text.buckets[: text.words] if words_only else text.buckets] for text in texts]
    found = [rows[rows > 0] for rows in found]
    bounds = np.cumsum([0, *(len(rows) for rows in found)])
    rows = np.concatenate(found).astype(np.int64)
    weights = weight[rows]
    owner = np.repeat(np.arange(len(texts)), np.diff(bounds))
    norms = np.sqrt(np.bincount(owner, weights**2, minlength=len(texts)))
    return Bags(rows, (weights / np.maximum(norms, 1e-6)[owner]).astype(np.float32), bounds)


def _typical_length(table: npt.NDArray[np.float64], bags: Bags) -> float:
    """Root mean square of the pooled vectors' components, so that any word vectors train alike."""
    used = len(bags.bounds) - 1
    owner = np.repeat(np.arange(used), np.diff(bags.bounds))
    pooled = np.zeros((used, table.shape[1]))
    np.add.at(pooled, owner, table[bags.rows] * bags.weights[:, None])
    return max(float(np.sqrt(np.mean(pooled**2))), 1e-9)


def _rounded(net: TowerNet, slots: npt.NDArray[np.uint32], weight: FloatArray, *, words_only: bool) -> Tower:
    """The net as arrays, its table in int8 with one scale a row: at most 1/254 of the row's largest off."""
    table = net.table.detach().numpy()
    scale = np.abs(table).max(axis=1) / 127.0
    whole = np.rint(table / np.maximum(scale, 1e-12)[:, None]).astype(np.int8)
    hidden = net.hidden
    return Tower(
        slots=slots.astype(np.uint16) if len(table) <= 1 << 16 else slots,
        table=whole,
        gain=(scale * weight).astype(np.float32),
        weight=weight,
        head=np.ascontiguousarray(net.head.weight.detach().numpy().T),
        bias=net.head.bias.detach().numpy().copy(),
        hidden=None if hidden is None else np.ascontiguousarray(hidden.weight.detach().numpy().T),
        hidden_bias=None if hidden is None else hidden.bias.detach().numpy().copy(),
        words_only=words_only,
    )


def _scaled(tower: Tower, share: float) -> Tower:
    """The tower with its logits times `share`: summed logits are a geometric mean of the towers' answers."""
    return msgspec.structs.replace(
        tower, head=tower.head * np.float32(share), bias=tower.bias * np.float32(share)
    )
