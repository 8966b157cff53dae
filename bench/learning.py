"""Does learning slow a reply? The same requests with the learning loop's work beside them and without it.

    python -m bench.learning [--json] [--save] [--rounds 40]

A real node answers one client, by an expert and by a big model that says the same at once, while as many processes as
there are cores do what the learning loop does (`distill_static` on 3,000 of the demo's requests, under
`sense.idle.step_back`). Each round has three blocks in random order: the work stopped (SIGSTOP), the work going
on, and the same work at normal priority, which shows what would happen without stepping back. The figure is the
ratio of a block's median latency to that of the same round's quiet block: its median over the rounds, and the
range in which that median lies with 95 % (order statistics, binomial). A second quiet block gives the ratio
that chance alone makes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np
from rich.console import Console
from rich.progress import track

from bench.in_thread import in_thread
from puhui.bundles.bundle import Card, seal
from puhui.cascade.guarantee import Calibration, chance_of_at_most
from puhui.compress.static_training import distill_static
from puhui.core.answer import Answer, Step
from puhui.core.request import Request
from puhui.demo.job import Item, cloud_services
from puhui.demo.load import Sent, send_all
from puhui.demo.processes import Processes, free_port
from puhui.evolve.discovery import task_of_group
from puhui.evolve.gate import Verdict
from puhui.evolve.memory import Memory, Progress
from puhui.evolve.process import ONE_THREAD
from puhui.evolve.traffic import sort_request
from puhui.gateway.app import build_app
from puhui.gateway.chat import read_request
from puhui.models.static import StaticModel
from puhui.sense.idle import step_back
from puhui.store.database import open_store, sqlite_url
from puhui.trust.keys import load_or_create_key

RESULTS = Path(__file__).parent / "results" / "learning.json"
SYSTEM = "Which cloud service does this request belong to?"
TAUGHT = 3000
BLOCKS = ("quiet", "quiet again", "learning", "learning at normal priority")


def work(*, aside: bool) -> None:
    """What the learning loop does when an attempt is due, without end."""
    if aside:
        step_back()
    lessons = _lessons(cloud_services(0).traffic)
    print("ready", flush=True)
    while True:
        distill_static(*lessons)


class Workers:
    """Processes that work, one a core; stopped but while `at_work`."""

    def __init__(self, *, aside: bool) -> None:
        command = [sys.executable, "-m", "bench.learning", "--work", "aside" if aside else "normal"]
        self._processes = [
            subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | ONE_THREAD)
            for _ in range(os.cpu_count() or 1)
        ]
        for process in self._processes:
            assert process.stdout is not None
            process.stdout.readline()
            process.send_signal(signal.SIGSTOP)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Lets them go on for as long as the context lasts."""
        for process in self._processes:
            process.send_signal(signal.SIGCONT)
        try:
            time.sleep(0.05)
            yield
        finally:
            for process in self._processes:
                process.send_signal(signal.SIGSTOP)

    def end(self) -> None:
        """Kills them, stopped or not."""
        for process in self._processes:
            process.kill()
            process.wait()


def measure(base_url: str, bodies: Sequence[bytes], rounds: int, console: Console) -> dict[str, dict[str, list[float]]]:
    """Median latencies in ms by block and by who answered, one a round."""
    aside, normal = Workers(aside=True), Workers(aside=False)
    found: dict[str, dict[str, list[float]]] = {block: {"expert": [], "big": []} for block in BLOCKS}
    chance = random.Random(0)
    try:
        for _ in track(range(rounds), "rounds", console=console):
            for block in chance.sample(BLOCKS, len(BLOCKS)):
                if block.startswith("quiet"):
                    sent = _send(base_url, bodies)
                else:
                    with (aside if block == "learning" else normal).at_work():
                        sent = _send(base_url, bodies)
                for who in ("expert", "big"):
                    seen = [one.latency_s * 1000.0 for one in sent if one.by_expert == (who == "expert")]
                    found[block][who].append(median(seen))
    finally:
        aside.end()
        normal.end()
    return found


def ratios(found: dict[str, dict[str, list[float]]]) -> list[dict[str, Any]]:
    """A row for each block and answerer: milliseconds, and the ratio to the quiet block with its range."""
    rows = []
    for who in ("expert", "big"):
        quiet = np.array(found["quiet"][who])
        for block in BLOCKS:
            ratio = np.sort(np.array(found[block][who]) / quiet)
            low, high = _range_of_median(ratio)
            rows.append(
                {
                    "answered_by": who,
                    "block": block,
                    "p50_ms": median(found[block][who]),
                    "ratio": float(np.median(ratio)),
                    "low": low,
                    "high": high,
                }
            )
    return rows


def _range_of_median(ratio: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[float, float]:
    """Between these the true median lies with at least 95 %."""
    n = len(ratio)
    outside = max((k for k in range(n // 2) if 2 * chance_of_at_most(k - 1, n, 0.5) <= 0.05), default=0)
    return float(ratio[outside]), float(ratio[n - 1 - outside])


def _send(base_url: str, bodies: Sequence[bytes]) -> list[Sent]:
    sent: list[Sent] = []
    send_all(base_url, bodies, rate=None, clients=1, done=sent.append)
    if wrong := [one.error for one in sent if one.status != 200]:
        raise SystemExit(f"{len(wrong)} of {len(sent)} requests failed: {wrong[0]}")
    return sent


def _lessons(items: Sequence[Item]) -> tuple[list[str], list[str]]:
    taught = items[:TAUGHT]
    return [item.text for item in taught], [str(item.truth) for item in taught]


def _body(text: str) -> bytes:
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
    return msgspec.json.encode({"model": "echo", "messages": messages})


def _put_expert_in_place(folder: Path, model: StaticModel, items: Sequence[Item]) -> None:
    """The expert, sealed and promoted; it answers about half of the requests."""
    traffic = sort_request(read_request(_body("x"), {}))
    assert traffic is not None
    task = task_of_group(traffic.group, "echo", SYSTEM)
    _, confidence = model.predict_many([item.text for item in items[TAUGHT:]])
    proven = Calibration(float(np.median(confidence)), 0.5, 0, 0.0, 0.0, 0.02, 0.05, len(confidence))
    card = Card(
        task=task.id,
        task_name=task.name,
        family="static",
        labels=model.labels,
        teacher="echo",
        recipe={},
        rows=TAUGHT,
        data_digest="",
        calibration=msgspec.structs.asdict(proven),
        agreement=0.0,
        size_bytes=model.size_bytes,
        answer_us=0.0,
        joules_low=0.0,
        joules_high=0.0,
    )
    expert, place = seal(folder / "experts", card, model, load_or_create_key(folder / "keys" / "node.key"))
    store = open_store(sqlite_url(folder / "puhui.db"))
    memory = Memory(store)
    memory.add_task(task)
    memory.promote(task, Progress(attempts=1), expert, place, Verdict(True, proven, "for the benchmark"))
    store.close()


def run(folder: Path, *, rounds: int, requests: int, console: Console) -> list[dict[str, Any]]:
    """The rows of the table."""
    items = cloud_services(0).traffic
    model = distill_static(*_lessons(items))
    _put_expert_in_place(folder / "node", model, items)

    async def same(request: Request) -> Answer:
        label, _ = model.predict_one(request.messages[-1].text or "")
        return Answer(by="big:same", text=label, path=(Step("big:same", None, True),))

    bodies = [_body(item.text) for item in items[TAUGHT : TAUGHT + requests]]
    port = free_port()
    with in_thread(build_app(same)) as upstream, Processes(folder / "logs") as processes:
        arguments = ["puhui.cli.main", "serve", "--upstream", upstream, "--port", str(port), "--no-learn"]
        arguments += ["--data-dir", str(folder / "node")]
        processes.start("node", arguments, f"http://127.0.0.1:{port}/healthz")
        return ratios(measure(f"http://127.0.0.1:{port}/v1", bodies, rounds, console))


def main() -> None:
    """Prints the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--requests", type=int, default=200, help="requests in each block")
    parser.add_argument("--work", choices=("aside", "normal"), help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", action="store_true", help=f"keep the result in results/{RESULTS.name}")
    given = parser.parse_args()
    if given.work is not None:
        work(aside=given.work == "aside")
    with tempfile.TemporaryDirectory() as folder:
        rows = run(Path(folder), rounds=given.rounds, requests=given.requests, console=Console(stderr=True))
    if given.save:
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    if given.json:
        print(json.dumps(rows))
        return
    for row in rows:
        spread = f"{row['low']:.3f} to {row['high']:.3f}"
        print(f"{row['answered_by']:7} {row['block']:28} {row['p50_ms']:6.2f} ms  ratio {row['ratio']:.3f} ({spread})")


if __name__ == "__main__":
    main()
