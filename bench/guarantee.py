"""Does the guarantee hold, what does it cost, and how soon does the watch notice? Beside the alternatives.

    python -m bench.guarantee --data FOLDER_OF_CLINC150 [--json] [--save] [--splits 500] [--runs 500]

The calibration. The expert is TF-IDF + logistic regression, trained once on 40 sentences of each intent of
CLINC150; the big model is stood in for by the data set's labels, which is the harder case (a stand-in model
would share the expert's mistakes). Validation, test and out-of-scope rows are the pool, 8,600 requests that
the expert has not seen. Each split draws its calibration rows from the pool *with replacement*, so the pool
is the exact population: the true risk of any threshold is a count, with no sampling error of its own. Every
method gets the same draws; a split is broken where the true risk at its threshold is above ε. The only error
of a share of broken splits is that of counting 500 of them, printed as ±.

The watch (`bench/guarantee_watch.py`): RiskMonitor itself, run 500 times over 20,000 coin rows and more.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from bench.guarantee_watch import show_watch, simulate_watch
from puhui.cascade.guarantee import calibrate_threshold, chance_of_at_most, errors_allowed, risk_upper_bound

try:
    from mapie.risk_control import BinaryRisk, MultiClassificationLTTController
    from mapie.risk_control._base_controller import ltt_procedure
except ImportError:  # a row then says so
    ltt_procedure = None

SEED = 20261121
EPSILONS, DELTAS, ROWS = (0.01, 0.02, 0.05), (0.05, 0.1), (500, 2000)
PER_INTENT = 40
GRID = np.linspace(1, 0, 200, endpoint=False)  # MAPIE wants its thresholds fixed beforehand
CONTROLLER_SPLITS = 3  # splits on which MAPIE's whole controller, 100 × slower, must say the same

Threshold = float | None
Method = Callable[["Rows", float, float], Threshold]


class Rows(NamedTuple):
    """Requests: the expert's confidence (n,) and whether the big model agrees (n,)."""

    confidence: npt.NDArray[np.float64]
    agrees: npt.NDArray[np.bool_]

    def measure(self, threshold: Threshold) -> tuple[float, float]:
        """Coverage and joint risk at the threshold; both 0 for None."""
        if threshold is None:
            return 0.0, 0.0
        answered = self.confidence >= threshold
        return float(answered.mean()), float((answered & ~self.agrees).mean())


def ours(rows: Rows, epsilon: float, delta: float) -> Threshold:
    """Learn then Test with the exact binomial, as the package does it."""
    return calibrate_threshold(rows.confidence, rows.agrees, epsilon=epsilon, delta=delta).threshold


def plain_tuning(rows: Rows, epsilon: float, delta: float) -> Threshold:
    """The largest coverage whose risk on these very rows is ≤ ε: what is usually done; δ is not used."""
    levels, errors = levels_and_errors(rows)
    fine = np.flatnonzero(errors <= epsilon * rows.agrees.size)
    return float(levels[fine[-1]]) if fine.size else None


def binary_search(rows: Rows, epsilon: float, delta: float) -> Threshold:
    """Clopper–Pearson bounds along a binary search, which pays for each of its steps with a part of δ."""
    levels, errors = levels_and_errors(rows)
    part = delta / math.ceil(math.log2(levels.size + 1))
    low, high = -1, levels.size - 1  # the answer is at low, or lies above it and up to high
    while low < high:
        middle = (low + high + 1) // 2
        if risk_upper_bound(int(errors[middle]), rows.agrees.size, part) <= epsilon:
            low = middle
        else:
            high = middle - 1
    return float(levels[low]) if low >= 0 else None


def mapie(rows: Rows, epsilon: float, delta: float) -> Threshold:
    """MAPIE's Learn then Test on its grid, fixed sequence, the smallest valid threshold."""
    order = np.argsort(rows.confidence)
    above = rows.agrees.size - np.searchsorted(rows.confidence[order], GRID)
    wrong_from_top = np.concatenate(([0], np.cumsum(~rows.agrees[order][::-1])))
    risk = wrong_from_top[above][None, :] / rows.agrees.size
    sizes = np.full_like(risk, rows.agrees.size)
    found, _ = ltt_procedure(risk, np.array([[epsilon]]), delta, sizes, True, fwer_method="fixed_sequence")
    return float(GRID[found[0]].min()) if found[0] else None


def mapie_controller(rows: Rows, epsilon: float, delta: float) -> Threshold:
    """The same through MAPIE's public controller. The confidence is mapped to [½, 1], the expert's answer
    being class 0, so that its arg max is always the expert's answer."""
    half = 0.5 + rows.confidence / 2
    table = np.stack([half, 1 - half], axis=1)
    controller = MultiClassificationLTTController(
        lambda x: table[x[:, 0]],
        [BinaryRisk(lambda y, p: (p == 0) & (y != p), lambda y, p: np.ones(len(y), bool), False)],
        [epsilon],
        confidence_level=1 - delta,
        list_predict_params=0.5 + GRID / 2,
        classes=[0, 1],
        fwer_method="fixed_sequence",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no threshold is valid
        controller.calibrate(np.arange(half.size)[:, None], (~rows.agrees).astype(int))
    valid = controller.valid_predict_params
    return float(2 * valid.min() - 1) if len(valid) else None


METHODS: dict[str, Method] = {
    "ours": ours,
    "plain tuning": plain_tuning,
    "binary search": binary_search,
    "MAPIE": mapie,
}


def levels_and_errors(rows: Rows) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """The distinct confidences, greatest first, and the errors at or above each; both (levels,)."""
    order = np.argsort(-rows.confidence, kind="stable")
    falling, errors = rows.confidence[order], np.cumsum(~rows.agrees[order])
    last = np.append(falling[1:] != falling[:-1], True)  # of the rows that tie
    return falling[last], errors[last]


def build_pool(folder: Path) -> Rows:
    """The requests of CLINC150 that the expert was not trained on, with its confidence in each."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    data = json.loads((folder / "data_full.json").read_text(encoding="utf-8"))
    seen: dict[str, int] = {}
    train = []
    for text, intent in data["train"]:
        seen[intent] = seen.get(intent, 0) + 1
        if seen[intent] <= PER_INTENT:
            train.append((text, intent))
    expert = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10, max_iter=200)
    )
    expert.fit([text for text, _ in train], [intent for _, intent in train])
    pool = [row for part in ("val", "test", "oos_val", "oos_test") for row in data[part]]
    chances = expert.predict_proba([text for text, _ in pool])
    answers = expert.classes_[chances.argmax(axis=1)]
    return Rows(chances.max(axis=1), answers == np.array([intent for _, intent in pool]))


def split_results(pool: Rows, splits: int, methods: list[str], advance: Callable[[], None]) -> Iterator[dict[str, Any]]:
    """One dictionary for each size of calibration, ε, δ and method."""
    for size in ROWS:
        rng = np.random.default_rng([SEED, size])
        found: dict[tuple[str, float, float], list[tuple[float, float]]] = {}
        for _ in range(splits):
            drawn = rng.integers(0, pool.agrees.size, size)
            rows = Rows(pool.confidence[drawn], pool.agrees[drawn])
            for epsilon in EPSILONS:
                for delta in DELTAS:
                    for name in methods:
                        threshold = METHODS[name](rows, epsilon, delta)
                        found.setdefault((name, epsilon, delta), []).append(pool.measure(threshold))
            advance()
        for (name, epsilon, delta), measured in found.items():
            row = {"rows": size, "epsilon": epsilon, "delta": delta, "method": name}
            law = {"broken_law": law_of_ours(pool, size, epsilon, delta)} if name == "ours" else {}
            yield row | summary(measured, epsilon) | law


def law_of_ours(pool: Rows, size: int, epsilon: float, delta: float) -> float:
    """The chance, for this pool, that a draw has few enough errors for ours to break its promise.

    Exact, and a little more than the share of broken splits can be in the long run, as a draw may lack a row
    between its threshold and the next error.
    """
    _, errors = levels_and_errors(pool)
    broken = errors[errors > epsilon * pool.agrees.size]
    return chance_of_at_most(errors_allowed(size, epsilon, delta), size, float(broken[0] / pool.agrees.size))


def summary(measured: list[tuple[float, float]], epsilon: float) -> dict[str, float]:
    """The share of broken splits with its standard error, and the coverage reached."""
    coverage, risk = np.array(measured).T
    broken = float((risk > epsilon).mean())
    return {
        "broken": broken,
        "broken_se": math.sqrt(broken * (1 - broken) / len(measured)),
        "coverage": float(coverage.mean()),
        "coverage_p10": float(np.quantile(coverage, 0.1)),
        "coverage_p90": float(np.quantile(coverage, 0.9)),
        "risk": float(risk.mean()),
    }


def mapie_note(pool: Rows) -> str:
    """What the MAPIE rows are, and whether its controller said the same; or why there are none."""
    if ltt_procedure is None:
        return 'MAPIE is not installed: pip install "puhui[bench]"'
    rng = np.random.default_rng([SEED, 0])
    same = 0
    for _ in range(CONTROLLER_SPLITS):
        drawn = rng.integers(0, pool.agrees.size, 2000)
        rows = Rows(pool.confidence[drawn], pool.agrees[drawn])
        one, other = mapie(rows, 0.02, 0.05), mapie_controller(rows, 0.02, 0.05)
        same += one == other or (one is not None and other is not None and abs(one - other) < 1e-9)
    return (
        f"MAPIE {version('mapie')}, {GRID.size} thresholds, through its ltt_procedure; "
        f"its whole controller gave the same threshold on {same} of {CONTROLLER_SPLITS} further splits"
    )


def run(folder: Path, splits: int, runs: int, methods: list[str]) -> dict[str, Any]:
    """The whole benchmark, with its progress on stderr."""
    started = time.perf_counter()
    columns = (
        SpinnerColumn(),
        *Progress.get_default_columns()[:-1],
        TimeRemainingColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        training = progress.add_task("training the expert", total=None)
        pool = build_pool(folder)
        note = mapie_note(pool)
        progress.update(training, total=1, completed=1)
        splitting = progress.add_task("splits", total=splits * len(ROWS))
        results = list(split_results(pool, splits, methods, lambda: progress.advance(splitting)))
        watching = progress.add_task("watch", total=None)
        watch = simulate_watch(runs, SEED, lambda done, of: progress.update(watching, completed=done, total=of))
    best = {str(epsilon): best_coverage(pool, epsilon) for epsilon in EPSILONS}
    return {
        "benchmark": "guarantee",
        "command": f"python -m bench.guarantee --data FOLDER --splits {splits} --runs {runs}",
        "seed": SEED,
        "versions": {"python": platform.python_version()} | {p: release(p) for p in ("numpy", "scikit-learn")},
        "data": "CLINC150, with out-of-scope rows; agreement is with its labels",
        "pool": {
            "rows": int(pool.agrees.size),
            "agreement": float(pool.agrees.mean()),
            "best_coverage": best,
        },
        "mapie": note,
        "splits": splits,
        "calibration": results,
        "watch": watch,
        "seconds": round(time.perf_counter() - started, 1),
    }


def best_coverage(pool: Rows, epsilon: float) -> float:
    """The coverage that someone who knew the true risks would choose."""
    return pool.measure(plain_tuning(pool, epsilon, 0.5))[0]


def release(package: str) -> str | None:
    """The installed version, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def show(result: dict[str, Any]) -> None:
    """The tables on stdout."""
    console = Console()
    table = Table("rows", "ε", "δ", "method", "broken promises", "coverage (p10–p90)", title="Calibration")
    for row in result["calibration"]:
        law = f" (law: ≤ {row['broken_law']:.1%})" if "broken_law" in row else ""
        table.add_row(
            f"{row['rows']:,}",
            f"{row['epsilon']:.0%}",
            f"{row['delta']:.0%}",
            row["method"],
            f"{row['broken']:.1%} ± {row['broken_se']:.1%}" + law,
            f"{row['coverage']:.1%} ({row['coverage_p10']:.1%}–{row['coverage_p90']:.1%})",
        )
    console.print(table)
    console.print(result["mapie"])
    show_watch(result["watch"], console)


def main() -> None:
    """Runs it as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m bench.guarantee", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds CLINC150's data_full.json")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument("--save", action="store_true", help="also write bench/results/guarantee.json")
    parser.add_argument("--splits", type=int, default=500)
    parser.add_argument("--runs", type=int, default=500, help="runs of the watch in each setting")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    options = parser.parse_args()
    methods = [name for name in options.methods if METHODS[name] is not mapie or ltt_procedure is not None]
    result = run(options.data, options.splits, options.runs, methods)
    text = json.dumps(result, indent=1, ensure_ascii=False)
    if options.save:
        target = Path(__file__).parent / "results" / "guarantee.json"
        target.parent.mkdir(exist_ok=True)
        target.write_text(text + "\n", encoding="utf-8")
    if options.json:
        sys.stdout.write(text + "\n")
    else:
        show(result)


if __name__ == "__main__":
    main()
