"""What a teacher is: a big model that is asked for answers to learn from. Each kind has a file of its own.

A teacher takes texts and gives what it told of each: the answer, and where it can be had how likely it held every
label to be, a hidden state to imitate, and what the answer cost. `teachers.open_teacher` opens one by reference.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import msgspec
import numpy as np
import numpy.typing as npt

from puhui.core.errors import SettingsError

FloatArray: TypeAlias = npt.NDArray[np.float32]

PLACE = "{text}"
MOST_HASHED_BYTES = 256 * 1024 * 1024
LEAST_PROBABILITY = 1e-4
SHAPE_ANSWERS = (
    *("max_tokens", "max_completion_tokens", "stop", "logit_bias", "response_format", "structured_outputs"),
    *("grammar", "json_schema", "guided_choice", "guided_json", "guided_regex", "guided_grammar"),
)
"""Settings that fit answers of one task alone."""


class Told(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What a teacher told of one text.

    `answer` is in canonical form. `probabilities` of labels sum to 1, labels left out have none; None where the
    teacher does not say. `vector` is float32 [d], the hidden state that the answer came from. `alternatives` are
    the likeliest first tokens with natural log-probabilities: `asking.soften` makes probabilities of them once the
    labels are known. `cost` is money (USD); None where the price is not known.
    """

    answer: str
    probabilities: dict[str, float] | None = None
    vector: FloatArray | None = None
    alternatives: tuple[tuple[str, float], ...] = ()
    seconds: float = 0.0
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float | None = 0.0


class TeacherOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a teacher is asked.

    `labels`: the answers that are allowed, as names or as names with a description each. `prompt`: what the model
    is told to do; with "{text}" in it, the whole message with the place of the text, else a system message.
    `name`: names a callable whose answers hang on more than its source. `settings`: fields for every request or
    generation (`max_tokens`, `temperature`, …; null leaves one out). `prices`: money (USD) for a million tokens
    read and written; None looks the model up. `parallel`: how many are asked at once. `download`: whether a
    model's name may be looked up on the hub.
    """

    labels: tuple[str, ...] | dict[str, str] = ()
    prompt: str | None = None
    name: str | None = None
    settings: dict[str, Any] = {}
    prices: tuple[float, float] | None = None
    parallel: int | None = None
    download: bool = False

    def __post_init__(self) -> None:
        if len(set(self.labels)) != len(self.labels):
            raise SettingsError(f"the labels name one twice: {', '.join(sorted(self.labels))[:200]}")
        if self.parallel is not None and self.parallel < 1:
            raise SettingsError(f"parallel is {self.parallel}, but at least 1 must be asked at once")

    def messages(self, text: str) -> list[dict[str, str]]:
        """The chat messages that ask for `text`.

        >>> TeacherOptions(prompt="Is this spam? {text}").messages("buy now")
        [{'role': 'user', 'content': 'Is this spam? buy now'}]
        """
        if self.prompt is None:
            return [{"role": "user", "content": text}]
        if PLACE in self.prompt:
            return [{"role": "user", "content": self.prompt.replace(PLACE, text)}]
        return [{"role": "system", "content": self.prompt}, {"role": "user", "content": text}]

    def writing(self, prompt: str, **settings: Any) -> TeacherOptions:
        """The options of the same model for free text: another prompt, no labels, nothing that shapes answers."""
        kept = {name: value for name, value in self.settings.items() if name not in SHAPE_ANSWERS}
        return msgspec.structs.replace(self, prompt=prompt, labels=(), settings=kept | settings)

    def identity(self) -> dict[str, Any]:
        """The options that may change an answer."""
        return {"labels": self.labels, "prompt": self.prompt, "settings": self.settings}


class Teacher(Protocol):
    """A big model, asked for answers.

    `digest` names what its answers hang on: the reference, the files, the prompt, the settings. `deterministic` is
    True where one text always gets one answer, None where nobody knows. Calls take up to `batch` texts, and
    `parallel` of them may be under way at once. `labels` are all its answers; empty where they are not known.
    """

    name: str
    digest: str
    deterministic: bool | None
    parallel: int
    batch: int
    labels: tuple[str, ...]

    async def ask_many(self, texts: Sequence[str]) -> list[Told]:
        """What it tells of each text, in order. Raises an `UpstreamError` where it gives no answer."""
        ...

    async def close(self) -> None:
        """Gives connections back; the teacher may be asked again."""
        ...


@runtime_checkable
class CanWrite(Protocol):
    """What a teacher is as well if it can write free text."""

    def writing(self, prompt: str) -> Teacher:
        """The same model as a teacher whose answers are what it writes when it is told `prompt`."""
        ...


@runtime_checkable
class IsEncoder(Protocol):
    """What a teacher is as well if it is a pretrained encoder: an expert may start from its layers."""

    @property
    def body(self) -> Path | None:
        """The Hugging Face folder of it; None where its tokenizer is not one that an expert can carry."""
        ...


@runtime_checkable
class HasPrice(Protocol):
    """What a teacher is as well if its answers cost money."""

    @property
    def prices(self) -> tuple[float, float] | None:
        """Money (USD) for a million tokens read and written; None where nobody knows."""
        ...


def identity(kind: str, reference: str, options: TeacherOptions, more: Mapping[str, Any] | None = None) -> str:
    """The digest of a teacher, in hexadecimal."""
    said = {"kind": kind, "reference": reference, **options.identity(), **(more or {})}
    return hashlib.sha256(msgspec.json.encode(said, order="sorted")).hexdigest()


def file_identity(path: Path) -> dict[str, str]:
    """Each file under `path` (or itself) with what tells it apart: its content, and above 256 MiB its size and date.

    Hidden files and Markdown do not count: a model answers the same without them.
    """
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    inside = {each.relative_to(path): each for each in files}
    return {
        name.as_posix(): _content(each)
        for name, each in inside.items()
        if each.suffix != ".md" and not any(part.startswith(".") for part in name.parts)
    }


def _content(path: Path) -> str:
    about = path.stat()
    if about.st_size > MOST_HASHED_BYTES:
        return f"{about.st_size} bytes of {about.st_mtime_ns}"
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def likely(probabilities: FloatArray, labels: Sequence[str]) -> dict[str, float]:
    """Probabilities [k] of labels [k] by name, those under 1e-4 left out and the rest summing to 1.

    >>> likely(np.array([0.75, 0.25, 0.0], np.float32), ["a", "b", "c"])
    {'a': 0.75, 'b': 0.25}
    """
    least = min(LEAST_PROBABILITY, float(probabilities.max()))
    kept = {label: float(share) for label, share in zip(labels, probabilities, strict=True) if share >= least}
    total = sum(kept.values())
    return {label: share / total for label, share in kept.items()}


def softmax(logits: npt.NDArray[np.floating[Any]]) -> FloatArray:
    """Probabilities [n, k] float32 of logits [n, k]."""
    odds = np.exp((logits - logits.max(axis=1, keepdims=True)).astype(np.float64))
    shares: FloatArray = (odds / odds.sum(axis=1, keepdims=True)).astype(np.float32)
    return shares
