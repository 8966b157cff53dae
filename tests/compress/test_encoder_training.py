"""Distilled encoders, on a small base with random weights; and on a real MiniLM where that is installed."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the workshop extra is not installed")
pytest.importorskip("transformers", reason="the workshop extra is not installed")
pytest.importorskip("onnxscript", reason="the workshop extra is not installed")

from tests.encoders import random_base  # noqa: E402
from tests.experts import CLASSES, questions, subject_of  # noqa: E402

from puhui.compress import encoder_training  # noqa: E402
from puhui.compress.encoder_student import Student  # noqa: E402
from puhui.compress.encoder_training import EncoderOptions, distill_encoder  # noqa: E402
from puhui.compress.encoder_tuning import Material, Tuning, lack, tune  # noqa: E402
from puhui.core.errors import BundleError, LearningError  # noqa: E402
from puhui.models.onnx_encoder import EncoderModel  # noqa: E402
from puhui.quantisation.precision import Target  # noqa: E402
from puhui.quantisation.quantise import quantise  # noqa: E402

WORDS = sorted({word for words in CLASSES.values() for word in words} | {"about", "my", "and", "or", "the", "number"})
TEXTS = questions(240, seed=1)
ANSWERS = [subject_of(text) for text in TEXTS]
NEW = questions(60, seed=2)
SMALL = EncoderOptions(layers=(0, 2), epochs=2, learning_rate=1e-3, max_tokens=32, common_tokens=0)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_base(tmp_path_factory.mktemp("base"), WORDS)


@pytest.fixture(scope="module")
def shares() -> list[float]:
    return []


@pytest.fixture(scope="module")
def model(base: Path, shares: list[float]) -> EncoderModel:
    return distill_encoder(TEXTS, ANSWERS, base=base, options=SMALL, progress=shares.append)


def test_it_answers_as_the_big_model_did(model: EncoderModel) -> None:
    answers, confidences = model.predict_many(NEW)
    agrees = np.array([answer == subject_of(text) for answer, text in zip(answers, NEW, strict=True)])
    assert agrees.mean() >= 0.9
    assert model.labels == tuple(sorted(CLASSES))
    assert np.all((confidences >= 0.0) & (confidences <= 1.0))


def test_progress_grows_from_nothing_to_one(model: EncoderModel, shares: list[float]) -> None:
    assert shares == sorted(shares)
    assert 0.0 <= shares[0] < 0.1
    assert shares[-1] == 1.0


def test_saved_and_loaded_is_the_same(model: EncoderModel, tmp_path: Path) -> None:
    model.save(tmp_path)
    again = EncoderModel.load(tmp_path)
    for text in (*NEW[:5], "", "余额", "\ud800", "word " * 4000):
        assert again.predict_one(text) == model.predict_one(text)


def test_soft_answers_vectors_and_all_layers_in_float32(base: Path) -> None:
    told = [{answer: 0.8, "elsewhere": 0.1} for answer in ANSWERS]
    vectors = np.random.default_rng(0).normal(size=(len(TEXTS), 7))
    options = EncoderOptions(layers=None, epochs=0, precision="float32")
    model = distill_encoder(TEXTS, ANSWERS, base=base, options=options, probabilities=told, vectors=vectors)
    answers, _ = model.predict_many(NEW)
    assert set(answers) <= set(CLASSES)
    assert model.max_tokens == 64  # the base has no more positions


def material(student: Student, texts: list[str]) -> Material:
    labels = sorted(CLASSES)
    rows = student.read(texts)
    wanted = np.eye(len(labels), dtype=np.float32)[[labels.index(subject_of(text)) for text in texts]]
    teacher = student.pooled_many(rows)
    return Material(rows, wanted, teacher / np.linalg.norm(teacher, axis=1, keepdims=True))


def made(base: Path) -> Student:
    student = Student.open(base, 32)
    torch.manual_seed(0)
    student.projection, student.head = torch.nn.Linear(128, 128), torch.nn.Linear(128, len(CLASSES))
    return student


def test_tuning_lowers_the_lack_and_leaves_the_embeddings(base: Path) -> None:
    student = made(base)
    taught, held = material(student, TEXTS[:200]), material(student, TEXTS[200:])
    before, table = lack(student, held), student.body.get_input_embeddings().weight.clone()
    seen: list[float] = []
    after = tune(student, taught, held, Tuning(3, 10_000, 1e-3, 16, 0.1), seed=0, progress=seen.append)
    assert after == pytest.approx(lack(student, held))
    assert after < before
    assert torch.equal(student.body.get_input_embeddings().weight, table)
    assert seen == sorted(seen)


def test_tuning_is_repeatable(base: Path) -> None:
    def tuned(seed: int) -> list[torch.Tensor]:
        student = made(base)
        taught, held = material(student, TEXTS[:100]), material(student, TEXTS[200:])
        tune(student, taught, held, Tuning(2, 10_000, 1e-3, 16, 1.0), seed=seed, progress=lambda share: None)
        return [weight.detach().clone() for weight in student.body.parameters()]

    first, again, other = tuned(0), tuned(0), tuned(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_state_that_is_no_better_is_not_kept(base: Path) -> None:
    student = made(base)
    taught, held = material(student, TEXTS[:100]), material(student, TEXTS[200:])
    tune(student, taught, held, Tuning(2, 10_000, 1e-3, 16, 0.0), seed=0, progress=lambda share: None)
    learned = [weight.detach().clone() for weight in student.body.parameters()]
    wrong = Material(taught.rows, np.roll(taught.wanted, 1, axis=1), taught.teacher)
    tune(student, wrong, held, Tuning(2, 10_000, 1e-3, 16, 0.0), seed=0, progress=lambda share: None)
    assert all(torch.equal(a, b) for a, b in zip(learned, student.body.parameters(), strict=True))


def test_the_limit_of_work_ends_the_tuning(base: Path) -> None:
    student = made(base)
    taught, held = material(student, TEXTS[:200]), material(student, TEXTS[200:])
    seen: list[float] = []
    work = 20 * 16 * len(student.layers)  # of twenty steps: an epoch has thirteen
    tune(student, taught, held, Tuning(10_000, work, 1e-3, 16, 0.1), seed=0, progress=seen.append)
    assert len(seen) == 20 + 1
    assert seen[-1] == 1.0


def test_a_file_that_answers_otherwise_is_made_finer_and_then_refused(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def watched(*given: object, target: Target, **more: object) -> object:
        asked.append(target.cosine)
        return quantise(*given, target=target, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(encoder_training, "quantise", watched)
    monkeypatch.setattr(encoder_training, "LEAST_SAME", 1.1)
    with pytest.raises(LearningError, match="in int8 the encoder answers only"):
        distill_encoder(TEXTS, ANSWERS, base=base, options=SMALL)
    assert tuple(asked) == encoder_training.COSINES


def test_neurons_that_say_most_are_kept(base: Path) -> None:
    student = Student.open(base, 32)
    rows = student.read(TEXTS[:100])
    before = student.pooled_many(rows)
    layer = student.layers[1]
    with torch.no_grad():  # half of the neurons say nothing
        silent = torch.arange(layer.output.dense.in_features) % 2 == 0
        layer.output.dense.weight[:, silent] = 0.0
    whole = student.pooled_many(rows)
    student.keep_inner(0.5, rows)
    assert {each.intermediate.dense.out_features for each in student.layers} == {64}
    assert torch.equal(layer.output.dense.weight != 0.0, torch.ones(128, 64, dtype=torch.bool))

    def off(states: np.ndarray, others: np.ndarray) -> float:
        return float(np.linalg.norm(states - others) / np.linalg.norm(others))

    assert 0.0 < off(student.pooled_many(rows), whole) < 0.5
    assert off(whole, before) > 0.0


def test_a_narrow_encoder_answers_too_and_is_smaller(base: Path, model: EncoderModel) -> None:
    narrow = distill_encoder(TEXTS, ANSWERS, base=base, options=msgspec.structs.replace(SMALL, inner=0.25))
    answers, _ = narrow.predict_many(NEW)
    assert np.mean([answer == subject_of(text) for answer, text in zip(answers, NEW, strict=True)]) >= 0.85
    assert narrow.size_bytes < model.size_bytes


def test_layers_that_are_not_there_are_refused(base: Path) -> None:
    with pytest.raises(LearningError, match="0 to 2"):
        distill_encoder(TEXTS, ANSWERS, base=base, options=EncoderOptions(layers=(0, 3)))


def test_a_folder_without_an_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no encoder"):
        distill_encoder(TEXTS, ANSWERS, base=tmp_path / "nowhere", options=SMALL)


def test_vectors_of_other_texts_are_refused(base: Path) -> None:
    with pytest.raises(LearningError, match="vectors"):
        distill_encoder(TEXTS, ANSWERS, base=base, vectors=np.zeros((3, 4)))
