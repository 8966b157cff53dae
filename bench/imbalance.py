"""Does a rare answer keep the promise too? CLINC150 as a long-tailed traffic, and a static expert of it.

    python -m bench.imbalance --data FOLDER_OF_CLINC150 [--json] [--save] [--work FOLDER]

The big model is `head` of `bench.compress`, whose answers are read from the same work folder. Its 151 answers get
drawn ranks r, and of each 140 r^-0.8 rows are kept, four at least: the commonest is some thirty times as frequent as
the rarest. Of these rows two fifths teach, three tenths calibrate at ε = 2 % and δ = 5 %, and the rest test. The
promise is about the whole traffic. What is shown beside it is what became of the requests whose answer was taught
seldom: `covered` is the share that the expert answers, `wrong` the share that it answers otherwise than the big model,
of all such requests.
The means of several draws.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench.compress import DELTA, Row, world_of
from puhui.cascade.guarantee import calibrate_threshold
from puhui.compress.static_training import distill_static

MOST, FALLS, LEAST = 140, 0.8, 4
EPSILON = 0.02
TAUGHT = ((0, 1), (2, 3), (4, 9), (10, MOST))
"""How often an answer was taught, from and to."""
RESULTS = Path(__file__).parent / "results" / "imbalance.json"


class Told(NamedTuple):
    """A text, and what the big model said of it."""

    text: str
    answer: str
    probabilities: dict[str, float]


def long_tailed(rows: Sequence[Told], draw: np.random.Generator) -> list[Told]:
    """Some of the rows, of each answer as many as its rank allows, mixed."""
    by_answer = defaultdict[str, list[Told]](list)
    for row in rows:
        by_answer[row.answer].append(row)
    kept = list[Told]()
    for rank, answer in enumerate(draw.permutation(sorted(by_answer)), 1):
        there = by_answer[str(answer)]
        most = max(LEAST, int(MOST * rank**-FALLS))
        kept += [there[i] for i in draw.permutation(len(there))[:most]]
    return [kept[i] for i in draw.permutation(len(kept))]


def judged(rows: Sequence[Told], *, soft: bool) -> dict[str, list[float]]:
    """Of all requests and of those whose answer was taught so often: how many, agreed, covered, wrong."""
    teach, sample, test = np.split(np.arange(len(rows)), [len(rows) * 4 // 10, len(rows) * 7 // 10])
    taught = [rows[i] for i in teach]
    model = distill_static(
        [row.text for row in taught],
        [row.answer for row in taught],
        probabilities=[row.probabilities for row in taught] if soft else None,
        calibrated=2,
    )

    def met(part: Sequence[Told]) -> tuple[np.ndarray, np.ndarray]:
        said, sure = model.predict_many([row.text for row in part])
        return np.array([one == row.answer for one, row in zip(said, part, strict=True)]), sure

    agrees, sure = met([rows[i] for i in sample])
    proven = calibrate_threshold(sure, agrees, epsilon=EPSILON, delta=DELTA)
    tested = [rows[i] for i in test]
    agrees, sure = met(tested)
    taken = sure >= (np.inf if proven.threshold is None else proven.threshold)
    often = Counter(row.answer for row in taught)
    counts = np.array([often[row.answer] for row in tested])
    parts = {"all": np.ones(len(counts), np.bool_)}
    parts |= {f"{low} to {high}": (counts >= low) & (counts <= high) for low, high in TAUGHT}
    return {
        name: [float(np.sum(x & part)) for x in (part, agrees, taken, taken & ~agrees)] for name, part in parts.items()
    }


def measured(data: Path, work: Path, draws: int) -> list[Row]:
    """A row for each kind of answers and each part of the requests."""
    world = world_of("head", data, work, 0)
    rows = [
        Told(*each)
        for split in world.splits.values()
        for each in zip(split.texts, split.answers, split.probabilities, strict=True)
    ]
    found = list[Row]()
    for soft in (True, False):
        sums = defaultdict[str, np.ndarray](lambda: np.zeros(4))
        for number in range(draws):
            for name, counted in judged(long_tailed(rows, np.random.default_rng(number)), soft=soft).items():
                sums[name] += counted
        for name, (there, agrees, covered, wrong) in sums.items():
            shares = {"agreement": agrees / there, "covered": covered / there, "wrong": wrong / there}
            found.append(
                {"learned_from": "probabilities" if soft else "answers", "taught": name, "requests": there} | shares
            )
    return found


def main() -> None:
    """Prints the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("bench-work") / "compress", help="that of bench.compress")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", action="store_true", help=f"keep the result in results/{RESULTS.name}")
    given = parser.parse_args()
    rows = measured(given.data, given.work, given.draws)
    if given.save:
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    if given.json:
        print(json.dumps(rows))
        return
    print("learned from   taught times  requests  agreement  covered  wrong")
    for row in rows:
        shares = "  ".join(f"{row[name]:8.3f}" for name in ("agreement", "covered", "wrong"))
        print(f"{row['learned_from']:14} {row['taught']:13} {row['requests']:8.0f}  {shares}")


if __name__ == "__main__":
    main()
