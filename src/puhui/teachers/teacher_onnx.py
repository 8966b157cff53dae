"""An ONNX text classifier as a teacher: FILE.onnx with `tokenizer.json` beside it or one folder up (extra `encoder`).

Inputs are found by their names (`input_ids`, `attention_mask`, `token_type_ids`). Labels come from `labels.json` (a
list), from `config.json` (`id2label`), or from `labels` in the model's order.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from puhui.core.errors import MissingExtra, SettingsError, UpstreamRefused
from puhui.teachers.teacher import FloatArray, TeacherOptions, Told, file_identity, identity, likely, softmax
from puhui.teachers.teacher_encoder import MOST_TOKENS, fit_labels

KNOWN_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class OnnxTeacher:
    """Asks an ONNX classifier. Texts are cut at 512 tokens, or at the length that the model was exported with."""

    deterministic: bool | None = True
    parallel = 1

    def __init__(self, path: Path, options: TeacherOptions) -> None:
        """SettingsError that says what is missing or does not fit; MissingExtra without ONNX Runtime."""
        self._path, self._session = path, _open(path)
        inputs = {each.name: each for each in self._session.get_inputs()}
        strange = [name for name in inputs if name not in KNOWN_INPUTS]
        if strange or "input_ids" not in inputs:
            raise SettingsError(
                f"{path} has the inputs {', '.join(inputs)}; a text classifier has input_ids and may have "
                "attention_mask and token_type_ids: wrap it in python:FILE:FUNCTION"
            )
        self._types = {name: np.int32 if each.type == "tensor(int32)" else np.int64 for name, each in inputs.items()}
        rows, tokens = inputs["input_ids"].shape
        self._rows = rows if isinstance(rows, int) else None  # fixed when the model was exported
        self.batch = self._rows or 32
        place = _beside(path)
        self._tokenizer = _tokenizer(place, tokens if isinstance(tokens, int) else None)
        self._output = _output(path, self._session)
        self.name = path.name
        self.labels = self._labels(path, options)
        beside = [each for each in path.parent.glob(f"{path.stem}*") if each.is_file()]  # large weights lie apart
        known_by = {each.name: file_identity(each) for each in [*beside, place]}
        self.digest = identity("onnx", path.name, options, {"files": known_by, "found": self.labels})

    async def ask_many(self, texts: Sequence[str]) -> list[Told]:
        """See `Teacher`."""
        return await asyncio.to_thread(self._ask, texts)

    async def close(self) -> None:
        """Nothing to give back."""

    def _ask(self, texts: Sequence[str]) -> list[Told]:
        started = time.perf_counter()
        shares, counts = self._shares(texts)
        seconds = (time.perf_counter() - started) / max(1, len(texts))
        return [
            Told(
                answer=self.labels[int(share.argmax())],
                probabilities=likely(share, self.labels),
                seconds=seconds,
                tokens_in=count,
            )
            for share, count in zip(shares, counts, strict=True)
        ]

    def _shares(self, texts: Sequence[str]) -> tuple[FloatArray, list[int]]:
        """Probabilities [n, k] and the number of tokens of each text."""
        filled = [*texts, *[""] * ((self._rows or 0) - len(texts))]
        tokens = self._tokenizer.encode_batch(filled)
        fields = {
            "input_ids": [each.ids for each in tokens],
            "attention_mask": [each.attention_mask for each in tokens],
            "token_type_ids": [each.type_ids for each in tokens],
        }
        arrays = {name: np.array(fields[name], of) for name, of in self._types.items()}
        try:
            (found,) = self._session.run([self._output], arrays)
        except _failures() as error:
            why = f"{self._path} cannot answer {texts[0]!r:.80} ({str(error).splitlines()[0]:.200})"
            raise UpstreamRefused(why, status=422, body=b"") from error
        logits = np.asarray(found, np.float32)
        done = bool((logits >= 0.0).all()) and np.allclose(logits.sum(axis=1), 1.0, atol=1e-3)
        shares = logits if done else softmax(logits)
        return shares[: len(texts)], [sum(each.attention_mask) for each in tokens[: len(texts)]]

    def _labels(self, path: Path, options: TeacherOptions) -> tuple[str, ...]:
        shares, _ = self._shares([""])
        found = _written_labels(path)
        if len(found or options.labels) != shares.shape[1]:
            raise SettingsError(
                f"{path} tells {shares.shape[1]} answers apart, and {len(found or options.labels)} have a name: put "
                "labels.json, a list in the model's order, beside it, or give the labels"
            )
        return fit_labels(path.name, found or tuple(options.labels), tuple(options.labels))


def _open(path: Path) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtra("An ONNX big model", "encoder") from error
    if not path.is_file():
        raise SettingsError(f"there is no file {path}: name the .onnx file of the big model")
    try:
        return onnxruntime.InferenceSession(str(path), providers=onnxruntime.get_available_providers())
    except _failures() as error:
        raise SettingsError(f"{path} cannot be run by ONNX Runtime: {str(error).splitlines()[0]:.200}") from error


def _failures() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises: its errors have no root of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as states

    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoModel", "NoSuchFile", "NotImplemented")
    return tuple(getattr(states, name) for name in (*names, "EPFail", "RuntimeException"))


def _output(path: Path, session: Any) -> str:
    flat = [each.name for each in session.get_outputs() if len(each.shape) == 2]
    if not flat:
        raise SettingsError(f"{path} has no output of one row of logits a text: it is no text classifier")
    return "logits" if "logits" in flat else str(flat[0])


def _beside(path: Path) -> Path:
    places = [folder / "tokenizer.json" for folder in (path.parent, path.parent.parent)]
    place = next((each for each in places if each.is_file()), None)
    if place is None:
        raise SettingsError(f"{path} has no tokenizer.json beside it or one folder up: copy it from the model's folder")
    return place


def _tokenizer(place: Path, length: int | None) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtra("An ONNX big model", "encoder") from error
    try:
        tokenizer = Tokenizer.from_file(str(place))
    except Exception as error:  # what tokenizers raises is a bare Exception
        raise SettingsError(f"{place} is no tokenizer: {error}") from error
    padding = tokenizer.padding or {"pad_id": tokenizer.token_to_id("[PAD]") or tokenizer.token_to_id("<pad>") or 0}
    tokenizer.enable_truncation(length or _reads(place.parent, tokenizer.truncation))
    tokenizer.enable_padding(pad_id=padding["pad_id"], length=length)
    return tokenizer


def _reads(folder: Path, truncation: dict[str, Any] | None) -> int:
    """How many tokens the model reads, as its files say; at most 512."""
    said = [MOST_TOKENS, *([int(truncation["max_length"])] if truncation else [])]
    for name, key in (("tokenizer_config.json", "model_max_length"), ("config.json", "max_position_embeddings")):
        if (folder / name).is_file():
            with contextlib.suppress(msgspec.DecodeError):
                found = msgspec.json.decode((folder / name).read_bytes(), type=dict[str, Any]).get(key)
                said += [int(found)] if isinstance(found, int | float) and found > 0 else []
    return min(said)


def _written_labels(path: Path) -> tuple[str, ...]:
    """Labels from labels.json or config.json in the folder or one up; none where neither names them."""
    for folder in (path.parent, path.parent.parent):
        for name in ("labels.json", "config.json"):
            place = folder / name
            if not place.is_file():
                continue
            try:
                said = msgspec.json.decode(place.read_bytes())
                names = said.get("id2label", {}) if name == "config.json" else said
                if isinstance(names, dict):
                    names = [names[str(number)] for number in range(len(names))]
            except (msgspec.DecodeError, KeyError, AttributeError) as error:
                raise SettingsError(f"{place} does not name labels: write a list of them ({error})") from error
            if names:
                return tuple(str(label) for label in names)
    return ()
