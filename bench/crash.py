"""Kill the node in the middle of its work: is any acknowledged request missing from the ledger?

    python -m bench.crash --json

Fifty clients ask a real node as fast as they can; after a random moment it gets SIGKILL. Every request whose
whole reply had reached its client must be in the ledger, and the store must pass its own integrity check. Then
the node starts again on the same store: ten times. The big model is a small server of its own that echoes.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from sqlalchemy import select

from bench.in_thread import in_thread, wait_until_healthy
from puhui.core.answer import Answer, Step
from puhui.core.request import Request
from puhui.demo.processes import free_port
from puhui.gateway.app import build_app
from puhui.store.database import open_store, sqlite_url
from puhui.store.tables import ledger


async def _echo(request: Request) -> Answer:
    await asyncio.sleep(0.002)
    return Answer(by="big:echo", text=request.messages[-1].text, path=(Step("big:echo", None, True),))


def one_round(folder: Path, upstream: str, clients: int, alive_s: float) -> set[str]:
    """Starts a node, asks it from `clients` connections, kills it after `alive_s`; returns what was acknowledged."""
    port = free_port()
    arguments = ["serve", "--upstream", upstream, "--port", str(port), "--data-dir", str(folder), "--no-learn"]
    node = subprocess.Popen([sys.executable, "-m", "puhui.cli.main", *arguments], stderr=subprocess.DEVNULL)
    acknowledged: set[str] = set()
    try:
        wait_until_healthy(port)
        threads = [threading.Thread(target=_ask_until_it_dies, args=(port, n, acknowledged)) for n in range(clients)]
        for thread in threads:
            thread.start()
        time.sleep(alive_s)
    finally:
        node.send_signal(signal.SIGKILL)
        node.wait()
    for thread in threads:
        thread.join()
    return acknowledged


def run(folder: Path, *, rounds: int, clients: int, seed: int = 0, console: Console | None = None) -> dict[str, Any]:
    """All rounds on one store; `missing` and `unsound` must both be 0."""
    chance = random.Random(seed)
    acknowledged: set[str] = set()
    missing = unsound = 0
    with in_thread(build_app(_echo)) as upstream:
        for number in range(rounds):
            acknowledged |= one_round(folder, upstream, clients, chance.uniform(0.4, 1.6))
            store = open_store(sqlite_url(folder / "puhui.db"))
            unsound += store.check() != "ok"
            with store.begin() as connection:
                kept = set(connection.execute(select(ledger.c.id)).scalars())
            store.close()
            missing = len(acknowledged - kept)
            if console is not None:
                console.print(f"kill {number + 1} of {rounds}: {len(acknowledged)} acknowledged, {missing} missing")
    return {
        "kills": rounds,
        "clients": clients,
        "acknowledged": len(acknowledged),
        "missing": missing,
        "unsound_stores": unsound,
    }


def _ask_until_it_dies(port: int, client: int, acknowledged: set[str]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30.0)
    number = 0
    while True:
        number += 1
        messages = [{"role": "system", "content": "Echo."}, {"role": "user", "content": f"{client} {number}"}]
        body = json.dumps({"model": "echo", "messages": messages, "stream": number % 5 == 0})
        try:
            connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            reply = response.read()
        except (OSError, http.client.HTTPException):
            return
        if response.status == 200 and (number % 5 or reply.endswith(b"data: [DONE]\n\n")):
            acknowledged.add(str(response.headers["x-request-id"]))


def main() -> None:
    """Prints the result; exit code 1 if a row is missing or a store unsound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        console = Console(stderr=True)
        result = run(Path(folder), rounds=given.kills, clients=given.clients, seed=given.seed, console=console)
    print(json.dumps(result, indent=None if given.json else 1))
    sys.exit(bool(result["missing"] or result["unsound_stores"]))


if __name__ == "__main__":
    main()
