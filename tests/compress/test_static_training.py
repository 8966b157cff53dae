"""Distilling static experts: they learn, repeat themselves, and refuse what cannot be learned."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from msgspec.structs import replace

from puhui.compress.bags import gram_bags
from puhui.compress.lessons import Lessons
from puhui.compress.static_training import (
    StaticOptions,
    _folds,
    _softened,
    coarser,
    distill_static,
    fit_tables,
    rounded,
)
from puhui.compress.word_vectors import WordVectors
from puhui.core.errors import LearningError
from puhui.models.hashing import FeatureOptions, features
from puhui.models.static import StaticModel

SMALL = StaticOptions(features=FeatureOptions(buckets=1 << 14))
SUBJECTS = {
    "balance": ["show my balance", "how much money is left", "account balance please", "我想查余额"],
    "transfer": ["send money to bob", "transfer cash to alice", "wire funds abroad", "请帮我转账"],
    "card": ["my card is lost", "block the stolen card", "card was taken", "银行卡丢了怎么办"],
}
SEASONING = ["please", "now", "today", "hi there", "thanks", "quick", "ok", "可以吗", "谢谢", "well"]


def rows(count: int, seed: int = 0) -> tuple[list[str], list[str]]:
    draw = np.random.default_rng(seed)
    answers = [str(answer) for answer in draw.choice(list(SUBJECTS), count)]
    texts = [f"{draw.choice(SEASONING)} {draw.choice(SUBJECTS[answer])} {draw.choice(SEASONING)}" for answer in answers]
    return texts, answers


def agreement(model: StaticModel, texts: list[str], answers: list[str]) -> float:
    said, _ = model.predict_many(texts)
    return float(np.mean([one == answer for one, answer in zip(said, answers, strict=True)]))


@pytest.mark.parametrize("count", [60, 400])
def test_it_learns_in_two_scripts(count: int) -> None:
    model = distill_static(*rows(count), options=SMALL)
    assert model.labels == tuple(sorted(SUBJECTS))
    assert agreement(model, *rows(200, seed=1)) > 0.97


def test_rare_answers_are_learned_too() -> None:
    texts, answers = rows(300)
    texts += ["cancel my subscription", "cancel subscription now", "please cancel the subscription"] * 2
    answers += ["cancel"] * 6
    assert distill_static(texts, answers, options=SMALL).predict_one("cancel subscription today")[0] == "cancel"


def test_the_same_answers_give_the_same_expert_bit_for_bit(tmp_path: Path) -> None:
    for name in ("a", "b"):
        distill_static(*rows(60), options=SMALL).save(tmp_path / name)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_probabilities_teach_and_unknown_labels_are_left_out() -> None:
    texts, answers = rows(120)
    told = [{answer: 0.9, "never answered": 0.1} for answer in answers]
    told[0] = {}  # the big model told nothing: its answer stands
    model = distill_static(texts, answers, probabilities=told, options=SMALL)
    assert agreement(model, *rows(100, seed=1)) > 0.97


def test_probabilities_are_softened_and_hard_answers_are_not() -> None:
    told = [{"a": 0.64, "b": 0.36}, {"a": 0.81, "b": 0.16}, {"c": 0.9, "unknown": 0.1}, {}]
    soft = _softened(Lessons.of(["t"] * 20, ["a", "a", "c", "b"] * 5, told * 5).wanted[:4], 2.0)
    assert soft[0] == pytest.approx(np.array([0.8, 0.6, 0.3]) / 1.7)  # of c nothing was told: a quarter of b's
    assert soft[1] == pytest.approx(np.array([0.9, 0.4, 0.2]) / 1.5)
    assert soft[2:].tolist() == [[0, 0, 1], [0, 1, 0]]


def test_confidence_is_at_the_temperature_of_the_answers() -> None:
    """Where two answers cannot be told apart from a third one's share, it says what it was told."""
    texts = ["flip the coin", "open the door", "close the door"] * 20
    told = [{"heads": 0.8, "tails": 0.2}, {"open": 1.0}, {"close": 1.0}] * 20
    answers = ["heads", "open", "close"] * 19 + ["tails", "open", "close"]
    for temperature in (1.0, 3.0):
        model = distill_static(
            texts, answers, probabilities=told, options=replace(SMALL, temperature=temperature, penalty=1e-9)
        )
        assert model.predict_one("flip the coin") == ("heads", pytest.approx(0.8, abs=0.03))


def test_word_vectors_reach_words_never_seen() -> None:
    words = ["balance", "money", "transfer", "card", "saldo", "karte"]
    places = dict(zip(words, [(1, 0, 0), (0.9, 0.1, 0), (0, 1, 0), (0, 0, 1), (1, 0, 0), (0, 0, 1)], strict=True))
    vectors = WordVectors.learn(words, lambda given: np.array([places[w] for w in given], np.float32))
    texts = ["balance money", "transfer", "card"] * 20
    model = distill_static(texts, ["balance", "transfer", "card"] * 20, word_vectors=vectors, options=SMALL)
    assert len(model.towers) == 2
    assert model.predict_one("karte")[0] == "card"
    assert model.predict_one("saldo")[0] == "balance"


def test_where_words_stand_is_learned_from_probabilities() -> None:
    """Of towns that no answer held, the first one decides; their mean says nothing, nor does any n-gram."""
    north, south = ["oslo", "bergen", "narvik", "tromso"], ["rome", "napoli", "bari", "palermo"]
    towns = dict.fromkeys(north, (1.0, 0.0)) | dict.fromkeys(south, (0.0, 1.0)) | {"then": (0.5, 0.5)}
    vectors = WordVectors.learn(list(towns), lambda given: np.array([towns[word] for word in given], np.float32))
    taught = []
    for cold, warm in zip(north[:3], south[:3], strict=True):
        taught += [f"{cold} then {warm}", f"{warm} then {cold}"] * 10
    answers = ["north", "south"] * 30
    told = [{answer: 0.9, "north" if answer == "south" else "south": 0.1} for answer in answers]
    model = distill_static(taught, answers, probabilities=told, word_vectors=vectors, options=SMALL)
    assert [tower.reads for tower in model.towers] == ["all", "words", "order"]
    assert model.predict_one("tromso then palermo")[0] == "north"
    assert model.predict_one("palermo then tromso")[0] == "south"
    alone = distill_static(taught, answers, word_vectors=vectors, options=SMALL)
    assert [tower.reads for tower in alone.towers] == ["all", "words"]


@pytest.mark.parametrize("folds", [0, 2])
def test_progress_grows_to_one_and_an_interruption_passes_through(folds: int) -> None:
    shares: list[float] = []
    distill_static(*rows(40), calibrated=folds, options=SMALL, progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)

    def stop(share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill_static(*rows(40), options=SMALL, progress=stop)


def test_rows_are_bounded() -> None:
    options = StaticOptions(features=FeatureOptions(buckets=1 << 14), max_cells=150)
    assert distill_static(*rows(60), options=options).towers[0].table.shape == (51, 3)


@pytest.mark.parametrize(("precision", "most_off"), [(8, 0.01), (4, 0.12)])
def test_rounding_loses_little(precision: Literal[8, 4], most_off: float) -> None:
    texts, answers = rows(400)
    found = [features(text, SMALL.features) for text in texts]
    bags = gram_bags(found, SMALL.features.buckets, 10_000)
    fitted = fit_tables(bags, [], Lessons.of(texts, answers).wanted, SMALL, lambda share: None)
    exact = bags.matrix @ fitted.grams + fitted.bias
    near = rounded(bags, fitted.grams, fitted.bias, precision).logits_many(found)
    assert near == pytest.approx(exact, abs=most_off * float(np.abs(exact).max()))


def test_four_bits_answer_alike_at_half_the_size(tmp_path: Path) -> None:
    whole, half = (distill_static(*rows(400), options=replace(SMALL, precision=bits)) for bits in (8, 4))
    texts, _ = rows(200, seed=1)
    assert half.predict_many(texts)[0] == whole.predict_many(texts)[0]
    half.save(tmp_path)
    assert np.array_equal(StaticModel.load(tmp_path).logits_many(texts), half.logits_many(texts))
    assert half.towers[0].stored()["table"].shape[1] == 2
    made = coarser(whole)  # from the rounded numbers instead of the exact ones
    assert made.size_bytes == half.size_bytes
    assert made.predict_many(texts)[0] == half.predict_many(texts)[0]


def confusing(count: int, seed: int) -> tuple[list[str], list[str]]:
    """Labels told apart by the text, and two that no text tells apart."""
    draw = np.random.default_rng(seed)
    texts, answers = rows(count, seed)
    for i in range(0, count, 2):
        texts[i], answers[i] = f"flip the coin {draw.choice(SEASONING)}", str(draw.choice(["heads", "tails"]))
    return texts, answers


def test_folds_teach_the_confidence_which_labels_to_doubt() -> None:
    """The mean confidence is near the agreement: also for what cannot be known."""
    model = distill_static(*confusing(600, 0), calibrated=2, options=SMALL)
    texts, answers = confusing(600, 1)
    said, confidence = model.predict_many(texts)
    right = np.array([one == answer for one, answer in zip(said, answers, strict=True)])
    coin = np.array([one in ("heads", "tails") for one in said])
    assert confidence[coin].mean() == pytest.approx(right[coin].mean(), abs=0.12)
    assert confidence[~coin].mean() == pytest.approx(right[~coin].mean(), abs=0.07)
    assert confidence[coin].max() < confidence[~coin].min()


def test_folds_change_no_answer_and_never_split_equal_texts() -> None:
    texts, answers = rows(200)
    plain, learned = (distill_static(texts, answers, calibrated=folds, options=SMALL) for folds in (0, 3))
    assert plain.predict_many(texts)[0] == learned.predict_many(texts)[0]
    folds = _folds(texts, 3, 0)
    assert set(folds.tolist()) == {0, 1, 2}
    assert len(set(zip(texts, folds.tolist(), strict=True))) == len(set(texts))


def test_fewer_different_texts_than_folds_leave_the_confidence_as_it_is() -> None:
    model = distill_static(["flip the coin"] * 20, ["heads", "tails"] * 10, calibrated=2, options=SMALL)
    assert model.predict_one("flip the coin")[1] == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("folds", [1, -2])
def test_a_number_of_folds_that_makes_no_sense_is_refused(folds: int) -> None:
    with pytest.raises(LearningError, match="folds"):
        distill_static(*rows(40), calibrated=folds, options=SMALL)


@pytest.mark.parametrize(
    ("texts", "answers", "why"),
    [
        (["a"] * 30, ["same"] * 30, "alike"),
        (["a", "b"], ["x", "y"], "at least 20"),
        (["a"] * 30, ["x"] * 29, "one each"),
        ([], [], "alike"),
    ],
)
def test_what_cannot_be_learned_is_refused(texts: list[str], answers: list[str], why: str) -> None:
    with pytest.raises(LearningError, match=why):
        distill_static(texts, answers)


def test_texts_without_a_word_do_no_harm() -> None:
    texts, answers = rows(60)
    model = distill_static([*texts, *[""] * 10], [*answers, *["balance"] * 10], options=SMALL)
    assert model.predict_one("")[0] == "balance"


def test_few_answers_are_learned_in_little_time() -> None:
    """The learning loop runs beside live traffic: seconds of one core are what it may take."""
    texts, answers = rows(2000)
    start = time.thread_time()
    distill_static([f"{text} {i % 500}" for i, text in enumerate(texts)], answers)
    assert time.thread_time() - start < 5.0
