"""The encoder expert: some layers of a pretrained text encoder with a head, run by ONNX Runtime.

It needs `onnxruntime` and `tokenizers` (extra `encoder`) and nothing of PyTorch. The file gives logits, one a label;
confidence comes from the margin between the two best, as the expert's `Reliability` says. Each text is run by
itself, in a batch of texts too: int8 activations are scaled by the largest number in a batch, so that a neighbour
would change an answer, and without padding there is nothing to gain from a batch on one thread.

On disk: `encoder.json`, `model.onnx` (as `quantisation.onnx_export` writes it: `input_ids` and `attention_mask` int64
[n, t] to `logits` float32 [n, k]) and `tokenizer.json`. Never pickle.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from puhui.core.errors import BundleError, MissingExtra
from puhui.models.config_file import naming, read_config, write_config
from puhui.models.family import FloatArray
from puhui.models.reliability import Reliability

CONFIG_FILE, MODEL_FILE, TOKENIZER_FILE = "encoder.json", "model.onnx", "tokenizer.json"
FORMAT = 1
LOGITS = "logits"
MOST_TOKENS = 1 << 13
CHARACTERS_A_TOKEN = 32
"""Only so many characters for each of the greatest number of tokens are read, however long a text is: longer tokens
are rare, and splitting 20,000 characters takes longer than everything else."""


class MatrixNote(msgspec.Struct, frozen=True):
    """In how many bits a matrix of the network is kept, the harm of eight (1 − cosine), and why, for people."""

    name: str
    bits: int
    harm: float
    why: str


class EncoderConfig(msgspec.Struct, frozen=True):
    """What `encoder.json` holds: `slope` and `offset` [k] are those of `Reliability`.

    `format` grows when an older reader would answer wrongly.
    """

    labels: tuple[str, ...]
    max_tokens: int
    slope: float
    offset: tuple[float, ...]
    format: int = FORMAT
    precision: tuple[MatrixNote, ...] = ()


class EncoderModel:
    """An encoder expert, ready to answer. Not changed by answering: safe to share between threads."""

    def __init__(
        self,
        labels: Sequence[str],
        onnx: bytes,
        tokenizer: str,
        *,
        max_tokens: int = 128,
        reliability: Reliability | None = None,
        precision: Sequence[MatrixNote] = (),
    ) -> None:
        """From the ONNX file's bytes and the tokenizer's JSON; `precision` says what became of its matrices.

        Raises BundleError that names the file where a part cannot be used or they do not fit each other,
        MissingExtra without ONNX Runtime or tokenizers.
        """
        self.labels: tuple[str, ...] = tuple(labels)
        if len(self.labels) < 2 or len(set(self.labels)) != len(self.labels):
            raise BundleError(f"{CONFIG_FILE}: {len(self.labels)} labels; an encoder has 2 or more, each once")
        if not 2 <= max_tokens <= MOST_TOKENS:
            raise BundleError(f"{CONFIG_FILE}: max_tokens is {max_tokens}; allowed are 2 to {MOST_TOKENS}")
        self.max_tokens = max_tokens
        self.reliability = reliability or Reliability(1.0, np.zeros(len(self.labels), np.float32))
        self.reliability.check(labels=len(self.labels))
        self.precision: tuple[MatrixNote, ...] = tuple(precision)
        self._onnx = onnx
        self._tokenizer = tokenizer_of(tokenizer, max_tokens)
        self._session = session_of(onnx)
        self._try()

    @property
    def size_bytes(self) -> int:
        """Bytes of the ONNX file and the tokenizer."""
        return len(self._onnx) + len(self._tokenizer.to_str().encode())

    def tokens(self, text: str) -> list[int]:
        """Numbers of a text's tokens, at least one and at most `max_tokens`, those of the tokenizer's own included."""
        return tokens_of(self._tokenizer, text, self.max_tokens)

    def logits_one(self, text: str) -> FloatArray:
        """Logits [k] of one text."""
        return self._logits(np.array([self.tokens(text)], np.int64))

    def logits_many(self, texts: Sequence[str]) -> FloatArray:
        """Logits [n, k]; each text is run by itself."""
        logits = np.empty((len(texts), len(self.labels)), np.float32)
        for row, text in enumerate(texts):
            logits[row] = self.logits_one(text)
        return logits

    def predict_one(self, text: str) -> tuple[str, float]:
        """Label and confidence in [0, 1] for any text, the empty one included."""
        logits = self.logits_one(text)
        best = int(logits.argmax())
        highest = float(logits[best])
        logits[best] = -np.inf
        return self.labels[best], self.reliability.confidence(highest - float(logits.max()), best)

    def predict_many(self, texts: Sequence[str]) -> tuple[list[str], FloatArray]:
        """Labels [n] and confidences [n] in [0, 1]; exactly as `predict_one`."""
        answers = [self.predict_one(text) for text in texts]
        return [label for label, _ in answers], np.array([confidence for _, confidence in answers], np.float32)

    def save(self, folder: Path) -> None:
        """Write `encoder.json`, `model.onnx` and `tokenizer.json` into the folder, which is made if need be."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MODEL_FILE).write_bytes(self._onnx)
        (folder / TOKENIZER_FILE).write_text(self._tokenizer.to_str(), encoding="utf-8")
        offset = tuple(self.reliability.offset.tolist())
        slope = self.reliability.slope
        config = EncoderConfig(self.labels, self.max_tokens, slope, offset, precision=self.precision)
        write_config(folder / CONFIG_FILE, config)

    @classmethod
    def load(cls, folder: Path) -> EncoderModel:
        """Read what `save` wrote. Raises BundleError that names the file which is missing or damaged."""
        config = read_config(folder / CONFIG_FILE, EncoderConfig, form=FORMAT)
        with naming(folder / MODEL_FILE):
            onnx = (folder / MODEL_FILE).read_bytes()
        with naming(folder / TOKENIZER_FILE):
            tokenizer = (folder / TOKENIZER_FILE).read_text(encoding="utf-8")
        with naming(folder):
            reliability = Reliability(config.slope, np.array(config.offset, np.float32))
            return cls(
                config.labels,
                onnx,
                tokenizer,
                max_tokens=config.max_tokens,
                reliability=reliability,
                precision=config.precision,
            )

    def _logits(self, ids: npt.NDArray[np.int64]) -> FloatArray:
        given = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        logits: FloatArray = self._session.run((LOGITS,), given)[0][0]
        return logits

    def _try(self) -> None:
        """Runs the greatest number of tokens, and the last token of the tokenizer, once."""
        last = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
        try:
            logits = self._logits(np.full((1, self.max_tokens), last, np.int64))
        except Exception as error:  # the runtime's own tree of errors has no public root
            raise BundleError(f"{MODEL_FILE} cannot be run on tokens of {TOKENIZER_FILE} ({error})") from error
        if logits.shape != (len(self.labels),) or logits.dtype != np.float32 or not np.isfinite(logits).all():
            found = f"{logits.dtype} {logits.shape}"
            raise BundleError(f"{MODEL_FILE} gives {found}; expected finite float32 {len(self.labels)}")


def session_of(onnx: bytes) -> Any:
    """An ONNX Runtime session on one thread that does not spin: spinning threads slow their neighbours down.

    Raises BundleError for bytes that the runtime refuses, MissingExtra without the runtime.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:  # pragma: no cover
        raise MissingExtra("An encoder expert", "encoder") from error
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # what it refuses is raised, and said once
    try:
        return ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's own tree of errors has no public root
        raise BundleError(f"{MODEL_FILE} cannot be opened by ONNX Runtime ({error})") from error


def tokenizer_of(text: str, max_tokens: int) -> Any:
    """A tokenizer of its JSON, without padding and cut at `max_tokens`.

    Raises BundleError for text that is no tokenizer's or numbers it does not allow, MissingExtra without tokenizers.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:  # pragma: no cover
        raise MissingExtra("An encoder expert", "encoder") from error
    try:
        tokenizer = Tokenizer.from_str(text)
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_tokens)
    except Exception as error:  # what tokenizers raises is a bare Exception
        raise BundleError(f"{TOKENIZER_FILE} cannot be used with {max_tokens} tokens ({error})") from error
    return tokenizer


def tokens_of(tokenizer: Any, text: str, max_tokens: int) -> list[int]:
    """As `EncoderModel.tokens`: training must read a text exactly as answering does."""
    cut = text[: max_tokens * CHARACTERS_A_TOKEN]
    # A tokenizer is UTF-8 inside: half a surrogate pair has no place in it.
    return tokenizer.encode(cut.encode("utf-8", "replace").decode()).ids or [0]
