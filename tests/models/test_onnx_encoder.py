"""Encoder experts: laws for any text, and bundles that are saved, damaged and refused."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.encoders import LABELS, table_encoder, table_graph, word_pieces

from puhui.core.errors import BundleError
from puhui.models.onnx_encoder import CONFIG_FILE, MODEL_FILE, TOKENIZER_FILE, EncoderModel
from puhui.models.reliability import Reliability

MODEL = table_encoder()
TEXTS = st.lists(st.text(st.characters(), max_size=80), max_size=10)


@given(TEXTS)
def test_any_text_gets_a_label_and_batches_equal_singles(texts: list[str]) -> None:
    answers, confidences = MODEL.predict_many(texts)
    assert len(answers) == len(confidences) == len(texts)
    assert confidences.dtype == np.float32
    for text, answer, confidence in zip(texts, answers, confidences, strict=True):
        label, alone = MODEL.predict_one(text)
        assert (label, np.float32(alone)) == (answer, confidence)
        assert label in MODEL.labels
        assert 0.5 <= alone <= 1.0


@pytest.mark.parametrize("text", ["", " ", "\ud800", "余额" * 10_000, "word " * 4_000, "a" * 20_000, "👍🏽\x00\u202e"])
def test_odd_texts(text: str) -> None:
    assert 1 <= len(MODEL.tokens(text)) <= MODEL.max_tokens
    label, confidence = MODEL.predict_one(text)
    assert label in LABELS
    assert 0.0 <= confidence <= 1.0


def test_the_formula() -> None:
    """Three tokens, computed by hand: [CLS], balance, [SEP]."""
    tokenizer = word_pieces(["balance"])
    table = np.zeros((len(MODEL._tokenizer.get_vocab()), 3), np.float32)
    table[2], table[3] = (3.0, 0.0, 0.0), (0.0, 0.0, 1.5)
    reliability = Reliability(2.0, np.array([0.5, 0.0, 0.0], np.float32))
    one = EncoderModel(("a", "b", "c"), table_graph(table), tokenizer, max_tokens=16, reliability=reliability)
    assert np.allclose(one.logits_many(["balance"]), [[1.0, 0.0, 0.5]])
    label, confidence = one.predict_one("balance")
    assert label == "a"
    assert confidence == pytest.approx(1 / (1 + np.exp(-(2.0 * 0.5 + 0.5))), abs=1e-6)


def test_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    reliability = Reliability(1.5, np.array([0.1, -0.2, 3.0], np.float32))
    tokenizer = MODEL._tokenizer.to_str()
    first = EncoderModel(LABELS, MODEL._onnx, tokenizer, max_tokens=16, reliability=reliability)
    first.save(tmp_path / "deep" / "expert")
    again = EncoderModel.load(tmp_path / "deep" / "expert")
    assert (again.labels, again.max_tokens, again.size_bytes) == (first.labels, first.max_tokens, first.size_bytes)
    assert again.size_bytes <= sum(path.stat().st_size for path in (tmp_path / "deep" / "expert").iterdir())
    for text in ("", "查询余额", "my balance", "\ud800"):
        assert again.predict_one(text) == first.predict_one(text)
    again.save(tmp_path / "again")
    for file in (CONFIG_FILE, MODEL_FILE, TOKENIZER_FILE):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "deep" / "expert" / file).read_bytes()


@pytest.mark.parametrize("file", [CONFIG_FILE, MODEL_FILE, TOKENIZER_FILE])
@pytest.mark.parametrize("harm", ["missing", "empty", "half", "garbage", "folder"])
def test_damaged_bundles_are_refused_by_name(tmp_path: Path, file: str, harm: str) -> None:
    MODEL.save(tmp_path)
    whole = (tmp_path / file).read_bytes()
    (tmp_path / file).unlink()
    if harm == "folder":
        (tmp_path / file).mkdir()
    elif harm != "missing":
        parts = {"empty": b"", "half": whole[: len(whole) // 2], "garbage": b"\xff" * 100}
        (tmp_path / file).write_bytes(parts[harm])
    with pytest.raises(BundleError, match=file):
        EncoderModel.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 99},
        {"labels": ["pay", "pay", "other"]},
        {"labels": ["pay"]},
        {"labels": ["pay", "other"]},
        {"slope": 0.0},
        {"offset": [0.0]},
        {"max_tokens": 0},
        {"max_tokens": 1},
    ],
)
def test_configs_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    MODEL.save(tmp_path)
    config = msgspec.json.decode((tmp_path / CONFIG_FILE).read_bytes())
    (tmp_path / CONFIG_FILE).write_bytes(msgspec.json.encode({**config, **change}))
    with pytest.raises(BundleError):
        EncoderModel.load(tmp_path)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    MODEL.save(tmp_path)
    (tmp_path / TOKENIZER_FILE).write_text(word_pieces([f"word{i}" for i in range(50)]), encoding="utf-8")
    with pytest.raises(BundleError, match=TOKENIZER_FILE):
        EncoderModel.load(tmp_path)


def test_logits_that_are_not_finite_are_refused() -> None:
    table = np.full((500, 3), np.nan, np.float32)
    with pytest.raises(BundleError, match="finite"):
        EncoderModel(LABELS, table_graph(table), MODEL._tokenizer.to_str(), max_tokens=16)
