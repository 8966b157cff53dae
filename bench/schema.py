"""schemathesis on the document that a real node gives out, against that node before a stand-in for a big model.

    python -m bench.schema --examples 100 --json

All of its checks: replies by their schema, statuses and types that the document names, bad requests refused, good ones
accepted, `Allow` on 405, and nothing without a key. The node asks for one, and what is sent shows an admin's. Left out
is the live feed alone, a stream without an end. Headers and parameters that are not named are passed on, so none is
refused.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from bench.in_thread import wait_until_healthy
from bench.stand_in import stand_in
from puhui.demo.processes import free_port
from puhui.gateway.admin import row_of
from puhui.store.database import open_store, sqlite_url
from puhui.store.key_table import KeyTable
from puhui.trust.api_keys import Scope, new_key, read_rules

LEFT_OUT = "^/puhui/v1/live"
# A need that nobody here can meet is a good request that is refused (422); so is one that comes too late (504).
CONFIG = """
[generation]
allow-extra-parameters = false

[checks.positive_data_acceptance]
expected-statuses = ["2xx", 401, 403, 404, 409, 422, 429, 503, 504]

[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", 502, 503, 504]

# What a document cannot say: a name can be printed; one of four parameters must be given.
[[operations]]
include-path-regex = "^/puhui/v1/keys"

[operations.checks.positive_data_acceptance]
expected-statuses = ["2xx", 400, 401, 403, 404]

[[operations]]
include-path = "/puhui/v1/traces"

[operations.checks.positive_data_acceptance]
expected-statuses = ["2xx", 400, 401, 403, 404]
"""


def _admin_key(folder: Path) -> str:
    """Made in the store before the node starts, as `puhui keys new` does."""
    shown, key = new_key("schemathesis", read_rules({"scopes": list(get_args(Scope))}))
    store = open_store(sqlite_url(folder / "puhui.db"))
    KeyTable(store).add(row_of(key))
    store.close()
    return shown


def run(
    folder: Path, *, examples: int, seed: int = 1, phases: str = "examples,coverage,fuzzing", only: str = ""
) -> dict[str, Any]:
    """One run; `exit` is 0 where nothing was found, and `output` says what was. `only`: paths, as a pattern."""
    config = folder / "schemathesis.toml"
    config.write_text(CONFIG)
    key = _admin_key(folder)
    with stand_in() as upstream:
        port = free_port()
        arguments = ["serve", "--upstream", upstream, "--port", str(port), "--data-dir", str(folder), "--no-learn"]
        node = subprocess.Popen([sys.executable, "-m", "puhui.cli.main", *arguments], stderr=subprocess.DEVNULL)
        try:
            wait_until_healthy(port)
            command = [str(Path(sys.executable).with_name("st")), "--config-file", str(config), "run"]
            command += [f"http://127.0.0.1:{port}/openapi.json", "--checks", "all", "--phases", phases]
            command += ["--max-examples", str(examples), "--seed", str(seed), "--no-color", "--continue-on-failure"]
            command += ["--suppress-health-check", "all", "--request-timeout", "20"]
            command += ["--report-json-path", str(folder / "report.json")]
            command += ["--exclude-path-regex", LEFT_OUT, "--header", f"Authorization: Bearer {key}"]
            if only:
                command += ["--include-path-regex", only]
            ran = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
            alive = node.poll() is None
        finally:
            node.terminate()
            node.wait(30)
    return {
        "exit": ran.returncode,
        "alive": alive,
        "examples": examples,
        "seed": seed,
        "output": ran.stdout + ran.stderr,
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=20, help="for each operation")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = run(Path(folder), examples=options.examples, seed=options.seed)
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        Console().print(result["output"], markup=False, highlight=False)
    if result["exit"] or not result["alive"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
