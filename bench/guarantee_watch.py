"""The watch, simulated: how often it cries wolf, and how many requests pass before it notices.

It runs RiskMonitor itself, not a copy of its law, with a process for each core. Losses are 0 or 1 and
independent. A *coin row* is a request that the big model answered too; at an audit rate q there are 1/q
requests for each. The raised rate is that of a node which audits more while `RiskMonitor.suspicious`.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from puhui.cascade.monitor import RiskMonitor

EPSILON, DELTA = 0.02, 0.05
RATE, RAISED_RATE = 0.05, 0.2
ROWS = 20_000  # of a long run
LONG_ROWS = 100_000  # of a longer good period, in a fifth of the runs
TIMES_BAD = (1.5, 2.0, 4.0, 10.0)
PATIENCE = 40_000  # coin rows after which a run counts as missed
CHUNK = 20  # runs of one piece of work


class Setting(NamedTuple):
    """`rows` coin rows at `times`·ε first; then, where `bad`, each of TIMES_BAD until it is noticed."""

    times: float
    rows: int
    bad: bool


def one_run(setting: Setting, seed: list[int]) -> dict[str, Any]:
    """Whether the first part alarmed, its share of suspicious rows, and the delays after it."""
    rng = np.random.default_rng(seed)
    watch = RiskMonitor(EPSILON, DELTA)
    suspicious = 0
    for loss in (rng.random(setting.rows) < setting.times * EPSILON).astype(float).tolist():
        suspicious += watch.suspicious
        watch.update(loss)
    delays = [delay(copy.deepcopy(watch), times * EPSILON, rng) for times in TIMES_BAD] if setting.bad else []
    return {"alarm": watch.rejected, "suspicious": suspicious / max(1, setting.rows), "delays": delays}


def delay(watch: RiskMonitor, risk: float, rng: np.random.Generator) -> tuple[float, float]:
    """Coin rows until the watch rejects, and requests until then at the raised rate; infinite if missed."""
    requests = 0.0
    for row in range(1, PATIENCE + 1):
        requests += 1 / (RAISED_RATE if watch.suspicious else RATE)
        if watch.update(float(rng.random() < risk)):
            return row, requests
    return math.inf, math.inf


def run_chunk(setting: Setting, seeds: list[list[int]]) -> list[dict[str, Any]]:
    """Several runs; a function of the module, so that another process can be handed it."""
    return [one_run(setting, seed) for seed in seeds]


def simulate_watch(runs: int, seed: int, advance: Callable[[int, int], None]) -> dict[str, Any]:
    """All settings; `advance` hears how many pieces of work are done, and of how many."""
    plan = {
        "0.95 ε": (Setting(0.95, ROWS, False), runs),
        "ε": (Setting(1.0, ROWS, False), runs),
        "the start": (Setting(0.0, 0, True), runs),
        f"{ROWS:,} rows at ε/4": (Setting(0.25, ROWS, True), runs),
        f"{LONG_ROWS:,} rows at ε/4": (Setting(0.25, LONG_ROWS, True), max(1, runs // 5)),
    }
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in plan}
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as workers:
        waiting = {}
        for number, (name, (setting, count)) in enumerate(plan.items()):
            seeds = [[seed, number, run] for run in range(count)]
            for first in range(0, count, CHUNK):
                waiting[workers.submit(run_chunk, setting, seeds[first : first + CHUNK])] = name
        for done, future in enumerate(as_completed(waiting), start=1):
            found[waiting[future]] += future.result()
            advance(done, len(waiting))
    return {
        "epsilon": EPSILON,
        "delta": DELTA,
        "rate": RATE,
        "raised_rate": RAISED_RATE,
        "false_alarms": [alarm_row(name, plan[name][0].rows, found[name]) for name in ("0.95 ε", "ε")],
        "good_times": [good_row(name, found[name]) for name in plan if "/4" in name],
        "delays": [row for name in plan if plan[name][0].bad for row in delay_rows(name, found[name])],
    }


def alarm_row(name: str, rows: int, found: list[dict[str, Any]]) -> dict[str, Any]:
    """The share of runs that alarmed with nothing wrong, and its standard error."""
    share = sum(run["alarm"] for run in found) / len(found)
    error = math.sqrt(share * (1 - share) / len(found))
    return {"risk": name, "rows": rows, "runs": len(found), "alarms": share, "alarms_se": error}


def good_row(name: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    """What a good period costs: alarms, and the share of its rows at which the audit rate would be raised."""
    return {
        "after": name,
        "runs": len(found),
        "alarms": sum(run["alarm"] for run in found) / len(found),
        "suspicious": sum(run["suspicious"] for run in found) / len(found),
    }


def delay_rows(name: str, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The delays after one kind of past, a dictionary for each new risk."""
    rows = []
    for number, times in enumerate(TIMES_BAD):
        taken, raised = np.array([run["delays"][number] for run in found if not run["alarm"]]).T
        half, most = (float(np.quantile(taken, level, method="higher")) for level in (0.5, 0.9))
        half_raised, most_raised = (float(np.quantile(raised, level, method="higher")) for level in (0.5, 0.9))
        rows.append(
            {
                "after": name,
                "risk": f"{times:g} ε",
                "runs": len(taken),
                "missed": int(np.isinf(taken).sum()),
                "rows_median": half,
                "rows_p90": most,
                "requests_median": half / RATE,
                "requests_p90": most / RATE,
                "requests_median_raised": half_raised,
                "requests_p90_raised": most_raised,
            }
        )
    return rows


def show_watch(watch: dict[str, Any], console: Console) -> None:
    """The tables of what `simulate_watch` found."""
    alarms = Table("risk", "coin rows", "runs", "false alarms", title=f"Watch: ε = {EPSILON:.0%}, δ = {DELTA:.0%}")
    for row in watch["false_alarms"]:
        share = f"{row['alarms']:.1%} ± {row['alarms_se']:.1%}"
        alarms.add_row(row["risk"], f"{row['rows']:,}", str(row["runs"]), share)
    delays = Table("after", "new risk", "coin rows", "requests", "requests, more audits", "missed")
    delays.title = f"Delay: median / p90, audits at {RATE:.0%} (or {RAISED_RATE:.0%} while suspicious)"
    for row in watch["delays"]:
        pairs = (
            ("rows_median", "rows_p90"),
            ("requests_median", "requests_p90"),
            ("requests_median_raised", "requests_p90_raised"),
        )
        figures = [f"{row[median]:,.0f} / {row[p90]:,.0f}" for median, p90 in pairs]
        delays.add_row(row["after"], row["risk"], *figures, f"{row['missed']} of {row['runs']}")
    console.print(alarms, delays)
