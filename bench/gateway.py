"""What a gateway costs: Puhui, LiteLLM's proxy and TensorZero's gateway in front of one mock, by the same load.

    python -m bench.gateway --json --save

All are started at once, each on the same one core (the load and the mock on another) and asked in turn, round after
round, in an order that is drawn anew: a slow moment of the machine falls on all. Parts:

* `latency`: open loop at 50 requests a second, which come at random (evenly, each would meet the mock's reply to the
  one before, 20 ms later). Added time is the quantile less the mock's own, asked directly in the same round; latencies
  count from the moment at which a request was due. `bare` passes bytes on and does nothing else: the libraries' own.
* `throughput`: closed loop with 1, 4, 16, 32 and 64 clients; the greatest rate of good answers whose p99 is below 50 ms
  (of which the mock takes 20), and the CPU milliseconds of the gateway's process for an answer at that step.
* `memory`: after a warm-up, 100,000 requests, or what a peer answers in the time; MiB before, half-way and after, of
  all its processes and of the one that answers (`own_mb`).
* `expert`: nodes on one core with a proven static expert in place, 32 clients: with the audits of 5 %, which ask the
  big model in the background, as shipped (`audited`), and with next to none (`alone`); beside them a bare uvicorn and
  Starlette that reads a body and says hello. Their ratios travel, the rates do not: `best` is that of the best second.
* `overload`: Puhui at 1, 3 and 10 times its throughput, open loop over at most 2,000 connections: goodput, latency of
  the good answers and of the refusals, replies by status (0: a connection that broke), requests for which no connection
  was free; then seconds until half of the throughput is answered without a refusal, p99 below 100 ms.

Goals: a twentieth of LiteLLM's added p50, 10 times its throughput, 2,000 answers a second by an expert on one core,
flat memory. Every measurement is a row in the work folder, kept at once: the same command goes on where it was
interrupted. Remove the folder to measure again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import uvloop
from rich.console import Console

from bench.gateway_load import at_random, body_of, closed_loop, evenly, open_loop, post
from bench.gateway_peers import PEERS, Running, start_hello, start_mock, start_puhui

RESULTS = Path(__file__).parent / "results" / "gateway.json"
RATE, P99_BELOW_S = 50.0, 0.050
MOCK_MS = 20.0
CLIENTS = (1, 4, 16, 32, 64)
SURGES = (1, 3, 10)
RECOVERED_S = 0.100
AUDITS = {"audited": 0.05, "alone": 0.0001}
"""The share of an expert's answers that are audited: the default, and next to none."""

Row = dict[str, Any]
Make = Callable[[int], bytes]


class Rows:
    """Measured rows in a file, one JSON object a line, by part, round and gateway."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self._rows: dict[tuple[str, int, str], Row] = {}
        for row in map(json.loads, lines):
            self._rows[row["part"], row["round"], row["gateway"]] = row

    def has(self, part: str, number: int, gateway: str) -> bool:
        """Whether it is measured already."""
        return (part, number, gateway) in self._rows

    def keep(self, part: str, number: int, gateway: str, measured: Row) -> None:
        """Writes it down."""
        row = {"part": part, "round": number, "gateway": gateway} | measured
        self._rows[part, number, gateway] = row
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def of(self, part: str, gateway: str) -> list[Row]:
        """All rounds of it."""
        return [row for (one, _, name), row in sorted(self._rows.items()) if (one, name) == (part, gateway)]


class Scale:
    """How long each step takes: `quick` only shows that everything works."""

    def __init__(self, *, quick: bool) -> None:
        self.rounds = 1 if quick else 3
        self.latency_s = 3.0 if quick else 10.0
        self.step_s = 1.0 if quick else 2.5
        self.memory_requests = 3_000 if quick else 100_000
        self.memory_s = {"puhui": 20.0 if quick else 200.0}
        self.memory_others_s = 5.0 if quick else 30.0
        self.expert_rounds = 1 if quick else 7  # short ones, as machines have faster and slower minutes
        self.expert_s = 2 if quick else 8
        self.surge_s = 2.0 if quick else 6.0


def maker(server: Running) -> Make:
    """Requests for that server, each with a question of its own."""
    return lambda number: post(server.path, body_of(number, model=server.model))


def quantile_ms(seconds: list[float], share: float) -> float:
    """A quantile in ms; infinite of nothing."""
    found = sorted(seconds)
    return found[min(len(found) - 1, int(share * len(found)))] * 1000.0 if found else math.inf


async def latency(server: Running, scale: Scale, *, seed: int) -> Row:
    """Open loop at 50 a second, at random times: the same ones for the same seed."""
    await closed_loop(server.port, maker(server), clients=4, requests=40)
    before = server.cpu_s()
    seen = await open_loop(server.port, maker(server), at_random(RATE, scale.latency_s, seed))
    cpu = server.cpu_s() - before
    p50, p99 = quantile_ms(seen.latencies, 0.5), quantile_ms(seen.latencies, 0.99)
    return {"p50_ms": p50, "p99_ms": p99, "cpu_ms": 1000 * cpu / max(1, len(seen.latencies)), "refused": seen.refused}


async def throughput(server: Running, scale: Scale) -> Row:
    """The best step of the ladder; it ends two steps after p99 is too long."""
    steps: list[Row] = []
    for clients in CLIENTS:
        before = server.cpu_s()
        seen = await closed_loop(server.port, maker(server), clients=clients, seconds=scale.step_s)
        cpu = 1000 * (server.cpu_s() - before) / max(1, len(seen.latencies))
        p99 = quantile_ms(seen.latencies, 0.99)
        steps.append({"clients": clients, "rate": seen.rate, "p99_ms": p99, "cpu_ms": cpu, "refused": seen.refused})
        if len(steps) > 2 and all(step["p99_ms"] > P99_BELOW_S * 1000 for step in steps[-2:]):
            break
    good = [step for step in steps if step["p99_ms"] < P99_BELOW_S * 1000]
    best = max(good, key=lambda step: step["rate"]) if good else {"rate": 0.0, "cpu_ms": steps[0]["cpu_ms"]}
    return {"rate": best["rate"], "cpu_ms": best["cpu_ms"], "most": max(step["rate"] for step in steps), "steps": steps}


async def memory(server: Running, scale: Scale) -> Row:
    """MiB before, half-way and after many requests."""
    wanted, until = scale.memory_requests, scale.memory_s.get(server.name, scale.memory_others_s)
    await closed_loop(server.port, maker(server), clients=16, requests=2_000, seconds=until / 4)
    levels, own, asked, started = [server.memory_mb()], [server.own_mb()], 0, time.perf_counter()
    for part in (1, 2):
        left = until * part / 2 - (time.perf_counter() - started)
        seen = await closed_loop(
            server.port, maker(server), clients=16, requests=wanted * part // 2 - asked, seconds=max(1.0, left)
        )
        asked += len(seen.latencies)
        levels.append(server.memory_mb())
        own.append(server.own_mb())
    names = ("before_mb", "half_way_mb", "after_mb")
    return {"requests": asked} | dict(zip(names, levels, strict=True)) | {"own_mb": own}


async def answers(server: Running, scale: Scale) -> Row:
    """Closed loop with 32 clients, second by second."""
    await closed_loop(server.port, maker(server), clients=32, seconds=1.0)
    seconds = []
    for _ in range(scale.expert_s):
        before = server.cpu_s()
        seen = await closed_loop(server.port, maker(server), clients=32, seconds=1.0)
        cpu = 1000 * (server.cpu_s() - before) / max(1, len(seen.latencies))
        p99 = quantile_ms(seen.latencies, 0.99)
        seconds.append({"rate": seen.rate, "p99_ms": p99, "cpu_ms": cpu, "refused": seen.refused})
    middle = {name: median(each[name] for each in seconds) for name in ("rate", "p99_ms", "cpu_ms")}
    best = max(each["rate"] for each in seconds)
    return middle | {"best": best, "refused": sum(each["refused"] for each in seconds)}


async def overload(server: Running, scale: Scale, *, capacity: float) -> Row:
    """Surges, each with its recovery."""
    surges = []
    for times in SURGES:
        seen = await open_loop(server.port, maker(server), evenly(times * capacity, scale.surge_s))
        offered = (len(seen.latencies) + seen.refused) / scale.surge_s
        surges.append(
            {
                "times": times,
                "offered": offered,
                "goodput": seen.rate,
                "p50_ms": quantile_ms(seen.latencies, 0.5),
                "p99_ms": quantile_ms(seen.latencies, 0.99),
                "refusal_p50_ms": quantile_ms(seen.refusals, 0.5) if seen.refusals else None,
                "refusal_p99_ms": quantile_ms(seen.refusals, 0.99) if seen.refusals else None,
                "statuses": {str(status): count for status, count in sorted(seen.statuses.items())},
                "unsent": seen.unsent,
                "recovery_s": await recovery(server, capacity / 2),
            }
        )
    return {"capacity": capacity, "surges": surges}


async def recovery(server: Running, rate: float) -> float:
    """Seconds until a quarter of a second at `rate` goes well; infinite if that takes over 20 s."""
    started = time.perf_counter()
    while (passed := time.perf_counter() - started) < 20.0:
        seen = await open_loop(server.port, maker(server), evenly(rate, 0.25))
        if not seen.refused and quantile_ms(seen.latencies, 0.99) < RECOVERED_S * 1000:
            return passed
    return math.inf


class Bench:
    """One run: servers, rows and how far it is."""

    def __init__(self, work: Path, scale: Scale, gateways: list[str], console: Console) -> None:
        self.work, self.scale, self.gateways, self.console = work, scale, gateways, console
        self.rows = Rows(work / "rows.jsonl")
        cores = sorted(os.sched_getaffinity(0))
        self.core = cores[0] if len(cores) > 1 else None
        self.load_core = cores[1] if len(cores) > 1 else None
        self._done, self._steps = 0, 1
        self._spent: list[float] = []

    def run(self) -> Row:
        """Measures what is not there yet; returns the results."""
        self._steps = self.scale.rounds * (2 * len(self.gateways) + 2)
        self._steps += 3 * self.scale.expert_rounds + len(self.gateways) + 1
        if self.load_core is not None:
            os.sched_setaffinity(0, {self.load_core})
        with ExitStack() as stack:
            mock = stack.enter_context(self._up(start_mock(self.work, self.load_core, latency_ms=MOCK_MS)))
            url = f"http://127.0.0.1:{mock.port}/v1"
            servers = {"mock": mock}
            for name in self.gateways:
                self.console.print(f"starting {name} (the first time it is installed) …")
                servers[name] = stack.enter_context(self._up(PEERS[name](self.work, self.core, url)))
            self._rounds(servers)
            for name in self.gateways:
                self._measure("memory", 0, servers[name], memory)
            if "puhui" in servers:
                rates = [row["rate"] for row in self.rows.of("throughput", "puhui")]
                self._measure("overload", 0, servers["puhui"], partial(overload, capacity=max(50.0, *rates)))
        if "puhui" in self.gateways:
            self._expert()
        return self.results()

    def _rounds(self, servers: dict[str, Running]) -> None:
        for number in range(self.scale.rounds):
            order = list(servers)
            random.Random(number).shuffle(order)
            for part, measure in (("latency", partial(latency, seed=number)), ("throughput", throughput)):
                for name in order:
                    self._measure(part, number, servers[name], measure)

    def _expert(self) -> None:
        with ExitStack() as stack:
            mock = stack.enter_context(self._up(start_mock(self.work, self.load_core, latency_ms=2.0, says="money")))
            url = f"http://127.0.0.1:{mock.port}/v1"
            nodes = [start_puhui(self.work, self.core, url, audits=share, name=name) for name, share in AUDITS.items()]
            servers = [stack.enter_context(self._up(each)) for each in (*nodes, start_hello(self.work, self.core))]
            for number in range(self.scale.expert_rounds):
                for server in servers if number % 2 else servers[::-1]:
                    self._measure("answers", number, server, answers)

    @contextmanager
    def _up(self, server: Running) -> Iterator[Running]:
        try:
            yield server
        finally:
            server.stop()

    def _measure(
        self, part: str, number: int, server: Running, measure: Callable[[Running, Scale], Coroutine[Any, Any, Row]]
    ) -> None:
        if not self.rows.has(part, number, server.name):
            started = time.monotonic()
            self.rows.keep(part, number, server.name, uvloop.run(measure(server, self.scale)))
            self._spent.append(time.monotonic() - started)
        self._done += 1
        left = sum(self._spent) / max(1, len(self._spent)) * max(0, self._steps - self._done)
        where = f"{self._done} of {self._steps}: {part} {server.name}, round {number + 1}"
        self.console.print(f"{where}; about {left:.0f} s left")

    def results(self) -> Row:
        """Medians over the rounds, and the ratios that the goals are about."""
        rows = self.rows
        direct = rows.of("latency", "mock")
        table = {}
        for name in self.gateways:
            seen, speed, held = rows.of("latency", name), rows.of("throughput", name), rows.of("memory", name)
            pairs = list(zip(seen, direct, strict=True))
            added = [(one["p50_ms"] - own["p50_ms"], one["p99_ms"] - own["p99_ms"]) for one, own in pairs]
            table[name] = {
                "added_p50_ms": median(p50 for p50, _ in added),
                "added_p50_range_ms": [min(p50 for p50, _ in added), max(p50 for p50, _ in added)],
                "added_p99_ms": median(p99 for _, p99 in added),
                "rate_p99_below_50_ms": median(row["rate"] for row in speed),
                "greatest_rate": median(row["most"] for row in speed),
                "cpu_ms_at_50_a_second": median(row["cpu_ms"] for row in seen),
                "cpu_ms_at_most": median(row["cpu_ms"] for row in speed),
                "memory": held[0] if held else None,
            }
        found: Row = {"mock_ms": MOCK_MS, "rounds": self.scale.rounds, "gateways": table}
        if {"puhui", "litellm"} <= table.keys():
            ours, theirs = table["puhui"], table["litellm"]
            for name in ("puhui", "bare", "tensorzero"):
                if name in table:
                    one = found.setdefault("added_p50_over_litellm", {})
                    one[name] = table[name]["added_p50_ms"] / theirs["added_p50_ms"]
            slow = theirs["rate_p99_below_50_ms"]
            found["rate_over_litellm"] = ours["rate_p99_below_50_ms"] / slow if slow else None  # None: never as fast
            found["greatest_rate_over_litellm"] = ours["greatest_rate"] / theirs["greatest_rate"]
        hello = rows.of("answers", "hello")
        for name in (*AUDITS, "hello"):
            seen = rows.of("answers", name)
            if seen and hello:
                found.setdefault("expert", {})[name] = {
                    "answers_a_second": median(row["rate"] for row in seen),
                    "best": max(row["best"] for row in seen),
                    "cpu_ms": median(row["cpu_ms"] for row in seen),
                    "p99_ms": median(row["p99_ms"] for row in seen),
                    "cpu_over_hello": median(
                        one["cpu_ms"] / bare["cpu_ms"] for one, bare in zip(seen, hello, strict=True)
                    ),
                }
        surges = rows.of("overload", "puhui")
        if surges:
            found["overload"] = surges[0]
        return found


def main() -> None:
    """Runs, prints, keeps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("bench-work") / "gateway", help="kept between runs")
    parser.add_argument("--gateways", default=",".join(PEERS), help="some of them, with commas")
    parser.add_argument("--quick", action="store_true", help="a minute or two, to see that it works")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", action="store_true", help=f"keep the result in results/{RESULTS.name}")
    given = parser.parse_args()
    work = given.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    bench = Bench(work, Scale(quick=given.quick), given.gateways.split(","), Console(stderr=True))
    result = bench.run()
    shown = json.dumps(result, indent=None if given.json else 1)
    if given.save:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    sys.stdout.write(shown + "\n")


if __name__ == "__main__":
    main()
