"""Cascades of experts: who answers, whole folders, and folders that are refused."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.encoders import table_encoder
from tests.experts import model as static_model
from tests.experts import questions

from puhui.core.errors import BundleError
from puhui.models.expert_cascade import CONFIG_FILE, CascadeModel

STATIC, ENCODER = static_model(), table_encoder()
MODEL = CascadeModel(["static", "encoder"], [STATIC, ENCODER], [0.8])
TEXTS = st.lists(st.one_of(st.text(st.characters(), max_size=60), st.sampled_from(questions(20))), max_size=10)


def answers_of(model: CascadeModel, texts: Sequence[str]) -> list[tuple[str, float]]:
    return [model.predict_one(text) for text in texts]


@given(TEXTS)
def test_the_first_that_is_sure_enough_answers(texts: list[str]) -> None:
    answers, confidences, by = MODEL.predict_steps_many(texts)
    assert (answers, confidences.tolist()) == (MODEL.predict_many(texts)[0], MODEL.predict_many(texts)[1].tolist())
    for text, answer, confidence, step in zip(texts, answers, confidences, by, strict=True):
        first = STATIC.predict_one(text)
        expected = first if first[1] >= 0.8 else ENCODER.predict_one(text)
        assert MODEL.predict_one(text) == expected
        if abs(first[1] - 0.8) > 1e-5:
            assert (answer, step) == (expected[0], 0 if first[1] >= 0.8 else 1)
            assert expected[1] == pytest.approx(float(confidence), abs=1e-5)


def test_both_steps_answer_some() -> None:
    _, _, by = MODEL.predict_steps_many([*questions(20), "余额", "", "qqq"])
    assert set(by.tolist()) == {0, 1}


@pytest.mark.parametrize(("threshold", "model"), [(0.0, STATIC), (1.5, ENCODER)])
def test_always_and_never(threshold: float, model: object) -> None:
    ends = CascadeModel(["static", "encoder"], [STATIC, ENCODER], [threshold])
    for text in (*questions(5), "", "\ud800"):
        assert ends.predict_one(text) == model.predict_one(text)  # type: ignore[attr-defined]


def test_labels_are_of_all_steps_each_once() -> None:
    assert set(MODEL.labels) == {*STATIC.labels, *ENCODER.labels}
    assert len(set(MODEL.labels)) == len(MODEL.labels)
    assert CascadeModel(["encoder"] * 2, [ENCODER] * 2, [0.5]).labels == ENCODER.labels


def test_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    MODEL.save(tmp_path / "deep" / "expert")
    again = CascadeModel.load(tmp_path / "deep" / "expert")
    assert (again.labels, again.families, again.thresholds) == (MODEL.labels, MODEL.families, MODEL.thresholds)
    assert again.size_bytes == MODEL.size_bytes == STATIC.size_bytes + ENCODER.size_bytes
    texts = [*questions(10), "", "余额", "\ud800"]
    assert answers_of(again, texts) == answers_of(MODEL, texts)


def test_three_steps(tmp_path: Path) -> None:
    CascadeModel(["static", "encoder", "encoder"], [STATIC, ENCODER, table_encoder(seed=1)], [0.9, 0.6]).save(tmp_path)
    again = CascadeModel.load(tmp_path)
    texts = [*questions(30), *(f"余额 {i}" for i in range(30))]
    answers, _, by = again.predict_steps_many(texts)
    assert answers == [again.predict_one(text)[0] for text in texts]
    assert set(by.tolist()) == {0, 1, 2}


@pytest.mark.parametrize("harm", ["missing", "half", "garbage", "folder"])
def test_damaged_configs_are_refused_by_name(tmp_path: Path, harm: str) -> None:
    MODEL.save(tmp_path)
    path = tmp_path / CONFIG_FILE
    whole = path.read_bytes()
    path.unlink()
    if harm == "folder":
        path.mkdir()
    elif harm != "missing":
        path.write_bytes(whole[: len(whole) // 2] if harm == "half" else b"\xff")
    with pytest.raises(BundleError, match=CONFIG_FILE):
        CascadeModel.load(tmp_path)


def test_a_missing_step_is_named(tmp_path: Path) -> None:
    MODEL.save(tmp_path)
    shutil.rmtree(tmp_path / "1-encoder")
    with pytest.raises(BundleError, match="1-encoder"):
        CascadeModel.load(tmp_path)


@pytest.mark.parametrize(
    "steps",
    [
        [],
        [{"family": "static", "folder": "0-static", "threshold": 0.5}],
        [{"family": "static", "folder": "../0-static", "threshold": 0.5}] * 2,
        [{"family": "static", "folder": "..", "threshold": 0.5}] * 2,
        [{"family": "cascade", "folder": "0-static", "threshold": 0.5}] * 2,
        [{"family": "unheard", "folder": "0-static", "threshold": 0.5}] * 2,
    ],
)
def test_configs_that_do_not_fit_are_refused(tmp_path: Path, steps: list[dict[str, object]]) -> None:
    MODEL.save(tmp_path)
    (tmp_path / CONFIG_FILE).write_bytes(msgspec.json.encode({"steps": steps, "format": 1}))
    with pytest.raises(BundleError):
        CascadeModel.load(tmp_path)


@pytest.mark.parametrize("thresholds", [[], [0.5, 0.5], [float("nan")], [float("inf")]])
def test_thresholds_that_do_not_fit_are_refused(thresholds: list[float]) -> None:
    with pytest.raises(BundleError):
        CascadeModel(["static", "encoder"], [STATIC, ENCODER], thresholds)


def test_no_texts() -> None:
    answers, confidences, by = MODEL.predict_steps_many([])
    assert (answers, len(confidences), len(by)) == ([], 0, 0)
    assert confidences.dtype == np.float32
