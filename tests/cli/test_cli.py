"""The commands: help, clear errors with exit code 2, JSON for machines, and a whole node as a process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import insert
from typer.testing import CliRunner

import experts as sample
from puhui.cli.main import app, main
from puhui.store.database import Store, open_store, sqlite_url
from puhui.store.records import event_row
from puhui.store.tables import ledger
from puhui.trust.keys import load_or_create_key
from serving import BigModel, chunk, raw_server, wait_until

UPSTREAM = "http://127.0.0.1:9/v1"


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, str, str]:
    """Runs the command as the shell would; exit code, output, errors."""
    monkeypatch.setattr(sys, "argv", ["puhui", *words])
    code: Any = 0
    try:
        main()
    except SystemExit as end:
        code = end.code or 0
    out, err = capsys.readouterr()
    return int(code), out, err


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("PUHUI_UPSTREAM", "PUHUI_STORE", "PUHUI_HOST", "PUHUI_PORT", "PUHUI_LOG_LEVEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PUHUI_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("COLUMNS", "120")


@pytest.mark.parametrize(
    "words", [[], ["serve"], ["bill"], ["experts"], ["experts", "list"], ["experts", "show"], ["experts", "verify"]]
)
def test_help(words: list[str]) -> None:
    result = CliRunner().invoke(app, [*words, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output
    assert len(result.output) > 150


def serve(*words: str) -> list[str]:
    return ["serve", "--upstream", UPSTREAM, "--port", "0", "--no-learn", *words]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["serve", "--upstream", "gpt-4o"], "names no big model"),
        (["serve", "--upstream", "http://"], "upstream URL"),
        (["serve", "--upstream", "http://h:99999/v1"], "upstream URL"),
        (serve("--risk", "0"), "epsilon is 0.0"),
        (serve("--risk", "2"), "epsilon is 2.0"),
        (serve("--delta", "nan"), "delta is nan"),
        (serve("--country", "Atlantis"), "no grid intensity for country 'Atlantis'"),
        (serve("--carbon", "-5"), "carbon_g_per_kwh is -5.0"),
        (serve("--price-kwh", "inf"), "price_per_kwh is inf"),
        (serve("--price-tokens", "cheap"), "--price-tokens is 'cheap'"),
        (serve("--price-tokens", "1"), "--price-tokens is '1'"),
        (serve("--price-tokens", "1,2,3"), "--price-tokens is '1,2,3'"),
        (serve("--price-tokens", "1,-2"), "--price-tokens is '1,-2', but no price is below 0"),
        (serve("--log-level", "LOUD"), "log_level is 'LOUD'"),
        (serve("--key-env", "NO_SUCH_KEY"), "NO_SUCH_KEY"),
        (serve("--host", "0.0.0.0"), "--allow-open"),
        (serve("--host", "no such host", "--allow-open"), "cannot listen"),
        (serve("--store", "puhui.db"), "is not a database URL"),
        (serve("--store", "sqlite:////proc/x/puhui.db"), "cannot be opened"),
        (serve("--data-dir", "/dev/null"), "cannot be opened"),
        (["bill", "--since", "yesterday"], "--since is 'yesterday'"),
        (["bill", "--store", "nosuch://x"], "nosuch"),
        (["experts", "show", "0000"], "there is no store at"),
        (["bill"], "there is no store at"),
        (["experts", "verify", "/tmp"], "no expert's bundle"),
    ],
)
def test_bad_values_give_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], told: str
) -> None:
    code, out, err = run(capsys, monkeypatch, *words)
    assert code == 2
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("puhui: ")
    assert told in lines[0]


@pytest.mark.parametrize("reference", ["http://me:hunter2@h/v1", "openai:m@http://me:hunter2@h:x/v1"])
def test_a_password_in_an_upstreams_url_is_not_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reference: str
) -> None:
    data = tmp_path / "texts.txt"
    data.write_text("a\n")
    for words in (
        ["serve", "--upstream", reference, "--port", "0", "--no-learn", "--data-dir", str(tmp_path)],
        ["compress", "--big", reference, "--data", str(data), "--out", str(tmp_path / "out"), "--yes"],
    ):
        code, out, err = run(capsys, monkeypatch, *words)
        assert code == 2
        assert "hunter2" not in out + err


def test_a_bad_place_for_the_key_is_one_line_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = serve("--data-dir", "/dev/null", "--store", sqlite_url(tmp_path / "a.db"))
    code, _, err = run(capsys, monkeypatch, *words)
    assert code == 2
    assert "the signing key /dev/null/keys/node.key can neither be read nor made" in err


@pytest.mark.parametrize(
    "words",
    [
        ["serve"],
        serve("--port", "70000"),
        serve("--timeout", "0"),
        ["bill", "--by", "hour"],
        ["nonsense"],
        ["bill", "--nope"],
    ],
)
def test_what_the_shell_got_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    code, _, err = run(capsys, monkeypatch, *words)
    assert code == 2
    assert "Traceback" not in err


def test_a_taken_port(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, _, err = run(capsys, monkeypatch, *serve("--port", port))
    assert code == 2
    assert f"cannot listen on 127.0.0.1:{port}" in err


def filled(tmp_path: Path, requests: int = 3) -> Store:
    store = open_store(sqlite_url(tmp_path / "data" / "puhui.db"))
    with store.begin() as connection:
        for number in range(requests):
            row = event_row("request", at=1.7e9, task=None, expert=None, note="", id=f"r{number}")
            connection.execute(
                insert(ledger), row | {"model": "m", "joules": 2.0, "joules_low": 1.0, "joules_high": 4.0}
            )
    return store


@pytest.mark.parametrize("by", ["day", "task", "model", "total"])
def test_the_bill(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, by: str) -> None:
    filled(tmp_path).close()
    code, out, err = run(capsys, monkeypatch, "bill", "--json", "--by", by, "--currency", "EUR")
    assert (code, err) == (0, "")
    bill = json.loads(out)
    assert (bill["by"], bill["currency"]) == (by, "EUR")
    assert bill["total"]["requests"] == 3
    assert bill["total"]["energy"] == {"joules": 6.0, "low": 3.0, "high": 12.0, "measured": False}
    assert "estimated" in bill["energy_basis"]
    code, out, _ = run(capsys, monkeypatch, "bill", "--by", by)
    assert code == 0
    assert "Bill" in out
    assert "estimated" in out
    code, out, _ = run(capsys, monkeypatch, "bill", "--json", "--since", "2050-01-01")
    assert json.loads(out)["total"]["requests"] == 0


def test_a_bill_of_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    filled(tmp_path, requests=0).close()
    code, out, _ = run(capsys, monkeypatch, "bill", "--json")
    assert code == 0
    assert json.loads(out)["lines"] == []


def test_experts(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    store = filled(tmp_path)
    key = load_or_create_key(tmp_path / "k")
    expert, place, task = sample.promote(store, tmp_path / "data" / "experts", key, "context:1")
    store.close()
    code, out, _ = run(capsys, monkeypatch, "experts", "list", "--json")
    assert code == 0
    assert [(row["id"], row["task"], row["status"]) for row in json.loads(out)] == [(expert, task.id, "active")]
    assert expert[:12] in run(capsys, monkeypatch, "experts", "list")[1]
    for name in (expert, expert[:6], str(place)):
        code, out, _ = run(capsys, monkeypatch, "experts", "show", name, "--json")
        assert json.loads(out)["task"] == task.id
        code, out, _ = run(capsys, monkeypatch, "experts", "verify", name)
        assert code == 0
        assert "whole and signed" in out
    data = bytearray((place / "weights.safetensors").read_bytes())
    data[-1] ^= 1
    (place / "weights.safetensors").write_bytes(data)
    code, _, err = run(capsys, monkeypatch, "experts", "verify", expert[:6])
    assert code == 2
    assert "weights.safetensors was changed" in err


def test_verifying_an_id_means_that_id(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A bundle that is sound in itself, in another's place, is not the expert that was asked about."""
    store = filled(tmp_path)
    key = load_or_create_key(tmp_path / "k")
    first, place, _ = sample.promote(store, tmp_path / "e", key, "context:1")
    _, other, _ = sample.promote(store, tmp_path / "e", key, "context:2")
    store.close()
    place.rename(tmp_path / "away")
    other.rename(place)
    code, _, err = run(capsys, monkeypatch, "experts", "verify", first)
    assert code == 2
    assert "expert.json was changed" in err


def test_a_bundle_that_is_gone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = filled(tmp_path)
    expert, place, _ = sample.promote(store, tmp_path / "e", load_or_create_key(tmp_path / "k"), "context:1")
    store.close()
    place.rename(tmp_path / "away")
    for command in ("show", "verify"):
        code, _, err = run(capsys, monkeypatch, "experts", command, expert[:8])
        assert code == 2
        assert "expert.json cannot be read" in err


def test_as_a_process() -> None:
    puhui = [sys.executable, "-m", "puhui.cli.main"]
    done = subprocess.run([*puhui, "bill", "--since", "x"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


# --- a whole node as a process --------------------------------------------------------------------------------


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@contextlib.contextmanager
def node(tmp_path: Path, upstream: str, *words: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "puhui.cli.main", "serve", "--upstream", upstream, "--port", str(port), *words]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ | {"PUHUI_DATA_DIR": str(tmp_path)})

    def up() -> bool:
        assert process.poll() is None
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{url}/healthz", trust_env=False).status_code == 200
        return False

    try:
        wait_until(up, seconds=30.0)
        yield process, url
    finally:
        process.kill()
        process.wait()


def test_a_node_serves_and_ends_when_told(big: BigModel, tmp_path: Path) -> None:
    with node(tmp_path, f"openai:gpt-x@{big.url}", "--no-learn") as (process, url):
        body = {"model": "puhui", "messages": [{"role": "user", "content": "hi"}]}
        reply = httpx.post(f"{url}/v1/chat/completions", json=body)
        assert reply.json()["choices"][0]["message"]["content"] == "HI"
        assert big.bodies[-1]["model"] == "gpt-x"
        assert httpx.post(f"{url}/v1/chat/completions", json=body | {"model": "y"}).status_code == 404
        streamed = httpx.post(f"{url}/v1/chat/completions", json=body | {"stream": True})
        assert streamed.text.endswith("data: [DONE]\n\n")
        assert "error" not in streamed.text
        assert httpx.get(f"{url}/puhui/state").json()["audits_due"] == 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(15.0) in (0, -signal.SIGTERM)
    store = open_store(sqlite_url(tmp_path / "puhui.db"))
    assert store.check() == "ok"
    store.close()


@pytest.mark.parametrize("stream", [False, True])
def test_what_takes_longer_than_there_is_time_is_broken_off_with_an_error(tmp_path: Path, stream: bool) -> None:
    config = tmp_path / "puhui.toml"
    config.write_text("[limits]\nstop_within_s = 1\n")
    asked = threading.Event()

    def for_ever(connection: socket.socket) -> None:
        asked.set()
        if stream:
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
            while True:
                connection.sendall(chunk({"content": "x"}))
                time.sleep(0.05)
        time.sleep(10.0)

    with raw_server(for_ever) as big, node(tmp_path, big, "--no-learn", "--config", str(config)) as (process, url):
        replies: list[httpx.Response] = []

        def ask() -> None:
            body = {"model": "m", "stream": stream, "messages": [{"role": "user", "content": "hi"}]}
            replies.append(httpx.post(f"{url}/v1/chat/completions", json=body, timeout=20.0, trust_env=False))

        asking = threading.Thread(target=ask)
        asking.start()
        assert asked.wait(10.0)
        process.send_signal(signal.SIGTERM)
        asking.join(15.0)
        assert process.wait(15.0) in (0, -signal.SIGTERM)
    reply = replies[0]
    assert reply.status_code == (200 if stream else 503)
    last = reply.text.split("data: ")[-1]
    assert "this node was stopped" in json.loads(last)["error"]["message"]
    with contextlib.closing(sqlite3.connect(tmp_path / "puhui.db")) as file:
        status, note = file.execute("SELECT status, note FROM ledger WHERE kind = 'request'").fetchone()
    assert status == 503
    assert "this node was stopped" in note


def test_killing_a_node_loses_no_acknowledged_request(big: BigModel, tmp_path: Path) -> None:
    acknowledged: list[str] = []
    for _ in range(2):
        with node(tmp_path, big.url, "--no-learn") as (process, url):

            def client(url: str = url) -> None:
                body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
                with httpx.Client(trust_env=False) as http, contextlib.suppress(httpx.TransportError):
                    while True:
                        reply = http.post(f"{url}/v1/chat/completions", json=body)
                        if reply.status_code != 429:  # fifty at once may be more than the machine can do now
                            acknowledged.append(reply.json()["puhui"]["id"])

            before = len(acknowledged)
            clients = [threading.Thread(target=client, daemon=True) for _ in range(50)]
            for each in clients:
                each.start()
            wait_until(lambda before=before: len(acknowledged) > before + 60, seconds=20.0)
            time.sleep(0.1)
            process.kill()
            for each in clients:
                each.join(10.0)
    with sqlite3.connect(tmp_path / "puhui.db") as raw:
        kept = {row[0] for row in raw.execute("SELECT id FROM ledger WHERE kind = 'request'")}
        assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    raw.close()
    assert set(acknowledged) <= kept
    assert len(acknowledged) > 120
