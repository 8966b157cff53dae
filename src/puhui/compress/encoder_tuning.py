"""Tuning a student: AdamW over batches of texts of like length, the best state on held-out answers kept.

The loss is cross-entropy with what the big model said (Hinton et al. 2015) plus `hidden_share` · (1 − cosine with
the teacher's vectors). A text without an answer has the second part alone. Embeddings are not tuned: words that
the answers never held keep their meaning, and a step costs a tenth less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from puhui.compress.encoder_student import Rows, Student

FloatArray: TypeAlias = npt.NDArray[np.float32]
IntArray: TypeAlias = npt.NDArray[np.intp]
Progress: TypeAlias = Callable[[float], None]

WARM_UP = 0.1
WEIGHT_DECAY = 0.01
LONGEST_GRADIENT = 1.0
HEAD_RATE = 10.0
"""The head reads vectors of length one, so that its weights are ten times those of other layers."""
BATCHES_SORTED = 20
"""Texts of so many batches are drawn together and sorted by length: little padding, and still a fair draw."""
_BATCHES = 0xBA7C4
SCALES = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8)


class Tuning(msgspec.Struct, frozen=True):
    """The tuning's part of `EncoderOptions`."""

    epochs: int
    most_work: int
    learning_rate: float
    batch: int
    hidden_share: float


class Material(msgspec.Struct, frozen=True, eq=False):
    """Token numbers of n texts, wanted probabilities [n, k] (rows of zeros: no answer), teacher's vectors [n, e]."""

    rows: Rows
    wanted: FloatArray
    teacher: FloatArray

    def part(self, picked: IntArray) -> Material:
        """The same for some of the texts."""
        return Material([self.rows[row] for row in picked.tolist()], self.wanted[picked], self.teacher[picked])


def tune(student: Student, taught: Material, held: Material, how: Tuning, *, seed: int, progress: Progress) -> float:
    """Tunes the student and leaves it in the state with the least `lack` on `held`, which is returned.

    The state that it came in is one of those. Ends after `epochs`, or where `most_work` is done.
    """
    import torch

    groups = _groups(student, how.learning_rate)
    tuned = [weight for group in groups for weight in group["params"]]
    optimiser = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY)
    full = [group["lr"] for group in optimiser.param_groups]
    an_epoch = -(-len(taught.rows) // how.batch)
    steps, done = min(how.epochs * an_epoch, how.most_work // (how.batch * len(student.layers))), 0
    best, least = _copied(tuned), lack(student, held)
    while done < steps:
        for picked in _batches(taught.rows, how.batch, seed, done // an_epoch):
            if done == steps:
                break
            share = done / steps
            for group, rate in zip(optimiser.param_groups, full, strict=True):
                group["lr"] = rate * min(1.0, (share + 1.0 / steps) / WARM_UP) * (1.0 - share)
            optimiser.zero_grad(set_to_none=True)
            _loss(student, taught.part(picked), how.hidden_share).backward()
            torch.nn.utils.clip_grad_norm_(tuned, LONGEST_GRADIENT)
            optimiser.step()
            done += 1
            progress(done / steps)
        found = lack(student, held)
        if found < least:
            best, least = _copied(tuned), found
    with torch.no_grad():
        for weight, value in zip(tuned, best, strict=True):
            weight.copy_(value)
    progress(1.0)
    return least


def lack(student: Student, held: Material) -> float:
    """Mean cross-entropy in nats with the wanted probabilities, at the best of some scales of the logits.

    A scale changes no answer and no order, and the confidence that is learned afterwards finds its own.
    """
    if not held.rows:
        return float("inf")
    logits = student.logits_many(held.rows).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)

    def at(scale: float) -> float:
        scaled = logits * scale
        return float(np.mean(np.log(np.exp(scaled).sum(axis=1)) - (held.wanted * scaled).sum(axis=1)))

    return min(at(scale) for scale in SCALES)


def _groups(student: Student, rate: float) -> list[dict[str, Any]]:
    """What is tuned, and how fast: the layers and the projection, and the head."""
    for weight in student.body.parameters():
        weight.requires_grad_(False)
    layers = list(student.layers.parameters())
    for weight in layers:
        weight.requires_grad_(True)
    return [
        {"params": [*layers, *student.projection.parameters()], "lr": rate},
        {"params": list(student.head.parameters()), "lr": rate * HEAD_RATE},
    ]


def _loss(student: Student, batch: Material, hidden_share: float) -> Any:
    import torch

    vectors = student.unit_vectors(student.pooled(batch.rows))
    chances = torch.log_softmax(student.head(vectors), dim=1)
    loss = -(torch.from_numpy(batch.wanted) * chances).sum(dim=1).mean()
    if hidden_share > 0.0:
        loss = loss + hidden_share * (1.0 - (vectors * torch.from_numpy(batch.teacher)).sum(dim=1)).mean()
    return loss


def _batches(rows: Rows, size: int, seed: int, epoch: int) -> Iterator[IntArray]:
    """Every row once, in batches of like length, in an order that the seed draws."""
    draw = np.random.default_rng((seed, epoch, _BATCHES))
    lengths = np.array([len(row) for row in rows])
    order = draw.permutation(len(rows))
    found = []
    for first in range(0, len(rows), size * BATCHES_SORTED):
        together = order[first : first + size * BATCHES_SORTED]
        together = together[np.argsort(lengths[together], kind="stable")]
        found += [together[start : start + size] for start in range(0, len(together), size)]
    return (found[number] for number in draw.permutation(len(found)))


def _copied(weights: list[Any]) -> list[Any]:
    return [weight.detach().clone() for weight in weights]
