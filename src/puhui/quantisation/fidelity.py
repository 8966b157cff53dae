"""How close one encoder's ONNX file stays to another's, both run here in ONNX Runtime on the same tokens."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from puhui.core.errors import LearningError
from puhui.models.onnx_encoder import tokenizer_of, tokens_of
from puhui.quantisation.onnx_export import INPUTS, LOGITS, VECTOR, Batch, cpu_session

FloatArray: TypeAlias = npt.NDArray[np.float32]
Progress: TypeAlias = Callable[[int, int], None]


class Fidelity(msgspec.Struct, frozen=True):
    """Of some texts: cosines between the two vectors of each, and whether they lead to the same results.

    `neighbours` is the share of texts whose nearest neighbour among the others is the same (1 of a single text),
    `agreement` the share with the same likeliest label, None without a head.
    """

    texts: int
    cosine: float
    cosine_p05: float
    neighbours: float
    agreement: float | None = None


class Outputs(msgspec.Struct, frozen=True, eq=False):
    """Vectors [n, d] and, with a head, logits [n, k] of all texts of some batches, in their order."""

    vectors: FloatArray
    logits: FloatArray | None = None


def token_batches(
    tokenizer: str | os.PathLike[str], texts: Sequence[str], *, max_tokens: int = 128, batch_size: int = 1
) -> list[Batch]:
    """Texts as an encoder expert reads them; `tokenizer` is a `tokenizer.json`. Order is kept."""
    opened = tokenizer_of(Path(tokenizer).read_text(encoding="utf-8"), max_tokens)
    rows = [tokens_of(opened, text, max_tokens) for text in texts]
    batches = []
    for first in range(0, len(rows), batch_size):
        part = rows[first : first + batch_size]
        ids = np.zeros((len(part), max(map(len, part))), np.int64)
        mask = np.zeros_like(ids)
        for i, row in enumerate(part):
            ids[i, : len(row)], mask[i, : len(row)] = row, 1
        batches.append((ids, mask))
    return batches


def outputs_of(path: str | os.PathLike[str], batches: Sequence[Batch], *, progress: Progress | None = None) -> Outputs:
    """Runs the file on one thread; `progress` gets batches done and in all. BundleError: it cannot be run."""
    session = cpu_session(path)
    names = [output.name for output in session.get_outputs()]
    parts: dict[str, list[FloatArray]] = {name: [] for name in (VECTOR, LOGITS) if name in names}
    for done, batch in enumerate(batches, 1):
        for name, value in zip(parts, session.run(list(parts), dict(zip(INPUTS, batch, strict=True))), strict=True):
            parts[name].append(value)
        if progress is not None:
            progress(done, len(batches))
    logits = parts.get(LOGITS)
    return Outputs(np.concatenate(parts[VECTOR]), np.concatenate(logits) if logits else None)


def fidelity(found: Outputs, wanted: Outputs) -> Fidelity:
    """How close `found` is to `wanted`. LearningError where they are not of the same texts."""
    if found.vectors.shape != wanted.vectors.shape:
        raise LearningError(f"vectors {found.vectors.shape} and {wanted.vectors.shape} are not of the same texts")
    cosine = 1 - distances(found.vectors, wanted.vectors)
    agreement = None
    if found.logits is not None and wanted.logits is not None:
        agreement = float((found.logits.argmax(axis=1) == wanted.logits.argmax(axis=1)).mean())
    same = float((_nearest(found.vectors) == _nearest(wanted.vectors)).mean())
    return Fidelity(len(cosine), float(cosine.mean()), float(np.quantile(cosine, 0.05)), same, agreement)


def distances(found: FloatArray, wanted: FloatArray) -> npt.NDArray[np.float64]:
    """One minus the cosine of each pair of rows [n], exact for rows that are nearly the same."""
    units = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (np.float64(found), np.float64(wanted))]
    halved: npt.NDArray[np.float64] = ((units[0] - units[1]) ** 2).sum(axis=1) / 2
    return halved


def _nearest(vectors: FloatArray) -> npt.NDArray[np.intp]:
    """Of each row, the number of the row that is nearest by cosine and is not itself."""
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    close = units @ units.T
    np.fill_diagonal(close, -np.inf)
    nearest: npt.NDArray[np.intp] = close.argmax(axis=1)
    return nearest
