"""A static expert in headless Chromium: time of an answer, bytes over the wire, and the same answers as Python.

    python -m bench.browser --data FOLDER_OF_CLINC150 [--json] [--save]

The expert is what `distill_static` makes of CLINC150's 15,000 train rows with its own defaults; the data set's
labels stand in for a big model's answers, which changes neither size nor time. It is calibrated on the val split,
sealed, signed and put in place on a node; Chromium loads it from the node's own routes.

`p50_us` and `p95_us` are of single answers to the test split's first texts, over three rounds after a warm one, on
a page whose clock ticks in 5 µs (`tick_us`). `python_p50_us` is StaticModel.predict_one on the same texts in the
same run. `wire_bytes` are what the browser counted for the bundle's files, headers included, of `plain_bytes` on
disk; `load_ms` is fetching them from this machine, where they lie packed already, and checking them. Labels and
confidences are compared with Python's on the same texts; `confidence_off` is the greatest difference. Goals:
p50 < 200 µs, wire < 5 MB, all labels the same, confidence within 1e-4.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import uvicorn

from bench.headless import chromium, what_is_missing
from bench.static import say
from puhui.bundles.bundle import Card, seal
from puhui.cascade.guarantee import Calibration, calibrate_threshold
from puhui.compress.static_training import distill_static
from puhui.evolve.discovery import task_of_group
from puhui.evolve.gate import Verdict
from puhui.evolve.memory import Memory, Progress
from puhui.gateway.server import ServeSettings, node_app
from puhui.models.static import StaticModel
from puhui.store.database import open_store, sqlite_url
from puhui.trust.keys import load_or_create_key

ROUNDS = 3
MEASURE = """
  const done = arguments[3], [url, texts, rounds] = arguments;
  (async () => {
    const { load } = await import("/device/puhui.js");
    performance.setResourceTimingBufferSize(1000);
    performance.clearResourceTimings();
    const before = performance.now();
    const expert = await load(url);
    const load_ms = performance.now() - before;
    const files = performance.getEntriesByType("resource").filter(({ name }) => name.includes(url));
    const said = texts.map((text) => expert.ask(text));
    const us = [];
    for (let round = 0; round < rounds; round++) {
      for (const text of texts) {
        const start = performance.now();
        expert.ask(text);
        us.push((performance.now() - start) * 1000);
      }
    }
    return {
      load_ms, said, us, isolated: crossOriginIsolated, checks: expert.checks,
      wire: Object.fromEntries(files.map(({ name, transferSize }) => [name.split("/").at(-1), transferSize])),
      plain: expert.bytes,
    };
  })().then(done, (error) => done({ error: String(error) }));
"""


def clinc_expert(data: Path) -> tuple[StaticModel, Calibration, list[str]]:
    """The expert, its calibration, and the test texts."""
    rows = json.loads((data / "data_full.json").read_text())
    texts, labels = map(list, zip(*rows["train"], strict=True))
    say(f"distilling from {len(texts)} rows")
    model = distill_static(texts, labels)
    held_out, truth = zip(*rows["val"], strict=True)
    said, confidence = model.predict_many(held_out)
    proven = calibrate_threshold(confidence, np.array(said) == np.array(truth), epsilon=0.02)
    return model, proven, [text for text, _ in rows["test"]]


@contextlib.contextmanager
def node_with(model: StaticModel, proven: Calibration, folder: Path) -> Iterator[tuple[str, str]]:
    """A node with the expert in place: its URL, and the expert's id."""
    settings = ServeSettings(
        upstream="http://127.0.0.1:9/v1", store=sqlite_url(folder / "puhui.db"), folder=folder, learn=False
    )
    store = open_store(settings.store)
    task = task_of_group("context:clinc150", "labels", "Which of 150 intents is this?")
    card = Card(
        task=task.id,
        task_name=task.name,
        family="static",
        labels=model.labels,
        teacher="CLINC150's labels",
        recipe={},
        rows=15_000,
        data_digest="",
        calibration=msgspec.to_builtins(proven),
        agreement=0.0,
        size_bytes=model.size_bytes,
        answer_us=0.0,
        joules_low=0.0,
        joules_high=0.0,
    )
    expert, place = seal(settings.bundles, card, model, load_or_create_key(settings.key))
    memory = Memory(store)
    memory.add_task(task)
    memory.promote(task, Progress(), expert, place, Verdict(True, proven, "for the benchmark"))
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(node_app(settings), log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", expert
    finally:
        server.should_exit = True
        thread.join()
        listening.close()
        store.close()


def measured(data: Path, *, rows: int) -> dict[str, Any]:
    """Everything that this benchmark says, as one JSON object."""
    model, proven, texts = clinc_expert(data)
    texts = texts[:rows]
    with tempfile.TemporaryDirectory() as folder, node_with(model, proven, Path(folder)) as (url, expert):
        say("asking Chromium")
        with chromium() as browser:
            browser.get(f"{url}/device")
            while not browser.find_element("id", "text").is_enabled():  # the page itself loads the expert first
                time.sleep(0.1)
            browser.execute_cdp_cmd("Network.enable", {})
            browser.execute_cdp_cmd("Network.setCacheDisabled", {"cacheDisabled": True})
            told = browser.execute_async_script(MEASURE, f"/device/experts/{expert}", texts, ROUNDS)
            version = browser.capabilities["browserVersion"]
    if "error" in told:
        raise SystemExit(told["error"])
    expected, python_us = [], []
    for text in texts:
        start = time.perf_counter()
        expected.append(model.predict_one(text))
        python_us.append((time.perf_counter() - start) * 1e6)
    off = [abs(said["confidence"] - sure) for said, (_, sure) in zip(told["said"], expected, strict=True)]
    p50, p95 = np.percentile(told["us"], [50, 95])
    return {
        "data": "CLINC150",
        "labels": len(model.labels),
        "chromium": version,
        "rows": len(texts),
        "same_labels": sum(said["label"] == label for said, (label, _) in zip(told["said"], expected, strict=True)),
        "confidence_off": max(off),
        "sure": sum(said["sure"] for said in told["said"]) / len(texts),
        "p50_us": float(p50),
        "p95_us": float(p95),
        "tick_us": 5 if told["isolated"] else 100,
        "python_p50_us": float(np.median(python_us)),
        "load_ms": told["load_ms"],
        "checks": told["checks"],
        "plain_bytes": told["plain"],
        "wire_bytes": sum(told["wire"].values()),
        "wire": told["wire"],
    }


def show(result: dict[str, Any]) -> None:
    """The result as a table on stdout."""
    from rich.console import Console
    from rich.table import Table

    table = Table("what", "measured", title=f"Static expert of {result['labels']} labels in Chromium")
    table.add_row("same label as Python", f"{result['same_labels']} of {result['rows']}")
    table.add_row("confidence, greatest difference", f"{result['confidence_off']:.1e}")
    table.add_row("an answer, p50 and p95", f"{result['p50_us']:.0f} and {result['p95_us']:.0f} µs")
    table.add_row("the same in Python, p50", f"{result['python_p50_us']:.0f} µs")
    table.add_row(
        "over the wire, on disk", f"{result['wire_bytes'] / 1e6:.2f} MB, {result['plain_bytes'] / 1e6:.2f} MB"
    )
    table.add_row("loading and checking it", f"{result['load_ms']:.0f} ms")
    Console().print(table)


def main() -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with CLINC150's data_full.json")
    parser.add_argument("--rows", type=int, default=1000, help="texts of the test split")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--save", action="store_true", help="also write bench/results/browser.json")
    chosen = parser.parse_args()
    missing = what_is_missing()
    if missing:
        raise SystemExit(missing)
    result = measured(chosen.data, rows=chosen.rows)
    if chosen.save:
        target = Path(__file__).parent / "results" / "browser.json"
        target.parent.mkdir(exist_ok=True)
        target.write_text(json.dumps(result, indent=2) + "\n")
    if chosen.json:
        print(json.dumps(result, indent=2))
    else:
        show(result)


if __name__ == "__main__":
    main()
