"""A Hugging Face encoder as a teacher, with a classification head or without.

- With a head: its labels, their probabilities, and the hidden state, a mean over the tokens.
- Without: the label whose description lies nearest by cosine (zero-shot; `labels` are needed). Probabilities are a
  softmax of 20 × cosine, the scale at which sentence encoders are commonly trained (Reimers and Gurevych 2019).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from puhui.cascade.agreement import canonical
from puhui.core.errors import SettingsError
from puhui.teachers.hub_model import Loaded
from puhui.teachers.teacher import FloatArray, TeacherOptions, Told, likely, softmax

MOST_TOKENS = 512
COSINE_SCALE = 20.0


class HeadTeacher:
    """A model with a classification head. Texts are cut where its tokens end."""

    deterministic: bool | None = True
    parallel = 1
    batch = 32

    def __init__(self, loaded: Loaded, options: TeacherOptions) -> None:
        """`options.labels` name the head's labels in its order where its configuration does not.

        SettingsError for labels that do not fit, or a head that gives a number.
        """
        self.name, self.digest = loaded.name, loaded.digest
        self._loaded = loaded
        config = loaded.model.config
        self._several = config.problem_type == "multi_label_classification"
        if config.num_labels < 2 or config.problem_type == "regression":
            raise SettingsError(
                f"{loaded.name} has a head that gives a number, no labels: wrap it in python:FILE:FUNCTION"
            )
        names = [str(config.id2label[number]) for number in range(config.num_labels)]
        self._names = fit_labels(loaded.name, names, tuple(options.labels))
        self.labels = () if self._several else self._names

    async def ask_many(self, texts: Sequence[str]) -> list[Told]:
        """See `Teacher`. Of several labels at once the answer is a JSON list."""
        return await asyncio.to_thread(self._ask, texts)

    @property
    def body(self) -> Path | None:
        """See `IsEncoder`."""
        return self._loaded.folder

    async def close(self) -> None:
        """Nothing to give back."""

    def _ask(self, texts: Sequence[str]) -> list[Told]:
        import torch

        started = time.perf_counter()
        batch = tokenized(self._loaded, texts)
        with torch.inference_mode():
            output = self._loaded.model(**batch, output_hidden_states=True)
            vectors = mean_of(output.hidden_states[-1], batch["attention_mask"]).float().cpu().numpy()
            logits = output.logits.float().cpu().numpy()
        seconds = (time.perf_counter() - started) / max(1, len(texts))
        counts = batch["attention_mask"].sum(dim=1).tolist()
        if self._several:
            answers = [
                msgspec.json.encode([self._names[i] for i in np.flatnonzero(row >= 0.0)]).decode() for row in logits
            ]
            shares: list[dict[str, float] | None] = [None] * len(answers)
        else:
            answers = [self._names[number] for number in logits.argmax(axis=1)]
            shares = [likely(row, self._names) for row in softmax(logits)]
        return [
            Told(answer=answer, probabilities=share, vector=vector, seconds=seconds, tokens_in=int(count))
            for answer, share, vector, count in zip(answers, shares, vectors, counts, strict=True)
        ]


class ZeroShotTeacher:
    """An encoder without a head: the nearest of the labels' descriptions."""

    deterministic: bool | None = True
    parallel = 1
    batch = 32

    def __init__(self, loaded: Loaded, options: TeacherOptions) -> None:
        """SettingsError below two labels."""
        if len(options.labels) < 2:
            raise SettingsError(
                f"{loaded.name} is an encoder without a head and {len(options.labels)} labels were given: give at "
                "least two, best with a description each, so that it can choose the nearest"
            )
        self.name, self.digest = loaded.name, loaded.digest
        self._loaded = loaded
        self._by_first = _pools_first(loaded)
        described = options.labels if isinstance(options.labels, dict) else {label: label for label in options.labels}
        self.labels = tuple(canonical(label) for label in described)
        self._nearest, _ = self._encode(list(described.values()))

    async def ask_many(self, texts: Sequence[str]) -> list[Told]:
        """See `Teacher`."""
        return await asyncio.to_thread(self._ask, texts)

    @property
    def body(self) -> Path | None:
        """See `IsEncoder`."""
        return self._loaded.folder

    async def close(self) -> None:
        """Nothing to give back."""

    def _ask(self, texts: Sequence[str]) -> list[Told]:
        started = time.perf_counter()
        vectors, counts = self._encode(texts)
        shares = softmax(COSINE_SCALE * (vectors @ self._nearest.T))
        seconds = (time.perf_counter() - started) / max(1, len(texts))
        return [
            Told(
                answer=self.labels[int(share.argmax())],
                probabilities=likely(share, self.labels),
                vector=vector,
                seconds=seconds,
                tokens_in=count,
            )
            for share, vector, count in zip(shares, vectors, counts, strict=True)
        ]

    def _encode(self, texts: Sequence[str]) -> tuple[FloatArray, list[int]]:
        """Vectors [n, d] of unit length and the number of tokens of each text."""
        import torch

        batch = tokenized(self._loaded, texts)
        with torch.inference_mode():
            states = self._loaded.model(**batch).last_hidden_state
            pooled = states[:, 0] if self._by_first else mean_of(states, batch["attention_mask"])
            vectors: FloatArray = torch.nn.functional.normalize(pooled.float(), dim=1).cpu().numpy()
        return vectors, [int(count) for count in batch["attention_mask"].sum(dim=1)]


def fit_labels(name: str, found: Sequence[str], given: Sequence[str]) -> tuple[str, ...]:
    """The labels of a head in its order, canonical: `found` in its configuration unless `given` names them anew."""
    labels = [canonical(label) for label in found]
    if given and set(map(canonical, given)) != set(labels):
        if len(given) != len(labels) or not all(label.startswith("LABEL_") for label in labels):
            raise SettingsError(
                f"{name} has the {len(labels)} labels {', '.join(labels)[:120]}, and {len(given)} others were given: "
                "give none, the same, or as many in the head's order where it has no names of its own"
            )
        labels = [canonical(label) for label in given]
    if len(set(labels)) != len(labels):
        raise SettingsError(f"{name} names a label twice: {', '.join(labels)[:200]}")
    return tuple(labels)


def tokenized(loaded: Loaded, texts: Sequence[str]) -> Any:
    """Tokens of texts as tensors where the model lies, padded to the longest and cut to what it reads."""
    limits = (loaded.tokenizer.model_max_length, getattr(loaded.model.config, "max_position_embeddings", MOST_TOKENS))
    batch = loaded.tokenizer(
        list(texts), padding=True, truncation=True, max_length=min(MOST_TOKENS, *limits), return_tensors="pt"
    )
    return batch.to(loaded.model.device)


def mean_of(states: Any, mask: Any) -> Any:
    """Mean [n, d] of hidden states [n, t, d] over the tokens that are no padding."""
    weights = mask.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)


def _pools_first(loaded: Loaded) -> bool:
    """Whether a sentence encoder takes its first token's state, as its pooling file says; else the mean."""
    from transformers.utils import cached_file

    found = cached_file(
        loaded.place,
        "1_Pooling/config.json",
        local_files_only=loaded.local,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if found is None:
        return False
    said = msgspec.json.decode(Path(found).read_bytes())
    return bool(said.get("pooling_mode_cls_token")) or said.get("pooling_mode") == "cls"
