"""`puhui compress` as a person types it."""

from __future__ import annotations

import io
import json
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

import experts as sample
from puhui.cli.compress_command import again
from puhui.cli.compress_view import View
from puhui.cli.main import app
from puhui.cli.options import prices_of
from puhui.core.errors import SettingsError
from puhui.teachers.probing import Estimate
from serving import BigModel

BIG = """
def subject(text):
    return "money" if any(word in text for word in ("balance", "account", "transfer", "cash", "bank")) else "other"
"""


def test_an_expert_from_files_with_texts_added(tmp_path: Path) -> None:
    (tmp_path / "big.py").write_text(BIG)
    (tmp_path / "mail.jsonl").write_text("".join(json.dumps(text) + "\n" for text in sample.questions(120)))
    (tmp_path / "more.txt").write_text("my cash\nmy pizza\n")
    words = ["compress", "--big", f"python:{tmp_path / 'big.py'}:subject", "--data", str(tmp_path / "mail.jsonl")]
    words += ["--augment", "30", "--unlabelled", str(tmp_path / "more.txt"), "--keep", "0.8", "--trials", "1"]
    words += ["--work", str(tmp_path / "work"), "--data-dir", str(tmp_path / "data"), "-o", str(tmp_path / "expert")]
    result = CliRunner().invoke(app, [*words, "--json"])
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)
    assert Path(made["folder"]) == tmp_path / "expert"
    assert made["card"]["data"]["rows"] == 150
    assert made["card"]["data"]["source"] == "mail.jsonl; 30 texts were crossed from others"
    assert CliRunner().invoke(app, [*words, "--augment", "-1"]).exit_code == 2


def test_a_budget_in_money_needs_a_price_before_the_first_request(tmp_path: Path, big: BigModel) -> None:
    big.rule = sample.subject_of
    (tmp_path / "mail.jsonl").write_text("".join(json.dumps(text) + "\n" for text in sample.questions(120)))
    words = ["compress", "--big", f"openai:nobody-knows@{big.url}", "--data", str(tmp_path / "mail.jsonl"), "--keep"]
    words += ["0.5", "--money", "1", "--work", str(tmp_path / "work"), "--data-dir", str(tmp_path / "data"), "--json"]
    words += ["-o", str(tmp_path / "expert"), "--trials", "1"]
    refused = CliRunner().invoke(app, words)
    assert not big.bodies
    assert isinstance(refused.exception, SettingsError)
    assert "(--price-tokens IN,OUT), or a budget in requests or seconds (--most-requests, --most-seconds)" in str(
        refused.exception
    )
    made = CliRunner().invoke(app, [*words, "--price-tokens", "1,2", "--parallel", "2", "--most-seconds", "60"])
    assert made.exit_code == 0, made.output
    assert big.bodies


@pytest.mark.parametrize("given", ["2", "a,b", "-1,2", "1,inf"])
def test_prices_that_are_none(given: str) -> None:
    with pytest.raises(SettingsError, match=f"--price-tokens is '{given}'"):
        prices_of(given)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["-o", "made", "--seed", "1"], "--out made-again --seed 1"),
        (["--seed=1", "-omade"], "--out made-again --seed 1"),
        (["-yo", "made"], "--out made-again --yes"),
        (["--out=made", "--note", "-o made"], "--out made-again --note '-o made'"),
    ],
)
def test_the_command_on_a_card_names_another_folder(typed: list[str], expected: str) -> None:
    typing = typer.Typer()

    @typing.command()
    def compress(
        context: typer.Context,
        out: Annotated[Path, typer.Option("-o", "--out")],
        yes: Annotated[bool, typer.Option("--yes", "-y")] = False,
        note: str = "",
        seed: int = 0,
        secret: Annotated[str, typer.Option(envvar="A_SECRET")] = "",
    ) -> None:
        typer.echo(shlex.join(again(context, out)))

    said = CliRunner().invoke(typing, typed, env={"A_SECRET": "sesame"})  # what is in the environment stays there
    assert said.output.strip() == f"puhui compress {expected}"


def test_counts_are_whole_numbers(tmp_path: Path) -> None:
    (tmp_path / "big.py").write_text(BIG)
    (tmp_path / "mail.txt").write_text("\n".join(sample.questions(120)))
    words = ["compress", "--big", f"python:{tmp_path / 'big.py'}:subject", "--data", str(tmp_path / "mail.txt")]
    words += ["--keep", "0.8", "--trials", "1", "--work", str(tmp_path / "work"), "--data-dir", str(tmp_path / "data")]
    result = CliRunner().invoke(app, [*words, "-o", str(tmp_path / "expert")])
    assert "Nothing is proven at ε = 2.0% on 30 rows, so it is never sure." in result.output


def test_ctrl_c_says_that_the_same_command_goes_on(tmp_path: Path) -> None:
    slow = "import time\ndef big(text):\n    time.sleep(0.05)\n    print('asked', flush=True)\n    return 'a'\n"
    (tmp_path / "big.py").write_text(slow)
    (tmp_path / "mail.txt").write_text("\n".join(sample.questions(400)))
    words = ["compress", "--big", "python:big.py:big", "--data", "mail.txt", "--work", "work", "--data-dir", "data"]
    process = subprocess.Popen(
        [sys.executable, "-m", "puhui.cli.main", *words, "-o", "made"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.endswith("puhui: interrupted; the same command goes on from here\n")


@pytest.mark.parametrize("module", ["puhui.compress.workshop", "puhui.cli.compress_command"])
def test_ctrl_c_while_a_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    def interrupted(path: Path, *, progress: Callable[[int, int], None]) -> None:
        progress(10, 100)
        raise KeyboardInterrupt

    monkeypatch.setattr(f"{module}.read_rows", interrupted)
    (tmp_path / "mail.txt").write_text("a\n")
    words = ["compress", "--big", "python:big.py:big", "--data", str(tmp_path / "mail.txt"), "-o", str(tmp_path / "e")]
    words += ["--unlabelled", str(tmp_path / "mail.txt"), "--data-dir", str(tmp_path / "data")]
    ran = CliRunner().invoke(app, words)
    assert ran.exit_code == 130
    assert "reading mail.txt …" in ran.output
    assert ran.output.endswith("puhui: interrupted; the same command goes on from here\n")


@pytest.mark.parametrize(
    ("cost", "said"), [(0.0, "free"), (0.0004, "less than $0.01"), (0.012, "about $0.01"), (1234.5, "about $1,234.50")]
)
def test_small_money_is_not_shown_as_nothing(cost: float, said: str) -> None:
    console = Console(file=io.StringIO(), width=200)
    counts = {"texts": 9, "distinct": 9, "known": 0, "to_ask": 9, "sampled": 8, "probed": 8, "tokens_in": 1}
    View(console, ask=False).estimated(Estimate(**counts, tokens_out=1, cost=cost, seconds=1.0))
    assert f"2 tokens, {said}, about 1 s." in console.file.getvalue()  # type: ignore[attr-defined]


def test_the_command_on_the_card_makes_the_same_numbers_again(tmp_path: Path) -> None:
    (tmp_path / "big.py").write_text(BIG)
    (tmp_path / "mail.jsonl").write_text("".join(json.dumps(text) + "\n" for text in sample.questions(200)))
    words = ["compress", "--big", "python:big.py:subject", "--data", "mail.jsonl", "--keep", "0.8", "--trials", "1"]
    words += ["--work", "work", "--data-dir", "data", "-o", "made", "--json"]
    first = card_of(words, tmp_path)
    command = shlex.split(first["commands"]["guarantee"])
    assert command[0] == "puhui"
    shutil.rmtree(tmp_path / "work")  # nothing is to come from what the first run kept
    second = card_of(command[1:], tmp_path)
    assert (tmp_path / "made-again").is_dir()
    for name in ("calibration", "agreement", "reliability", "confusions", "ceiling", "data"):
        assert second[name] == first[name], name
    assert second["files"]["weights.safetensors"] == first["files"]["weights.safetensors"]


def card_of(words: list[str], folder: Path) -> dict[str, Any]:
    """Of the expert that the command makes, in a process of its own, as its card quotes what was typed."""
    ran = subprocess.run(
        [sys.executable, "-m", "puhui.cli.main", *words], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    card: dict[str, Any] = json.loads(ran.stdout)["card"]
    return card


def test_the_command_on_the_card_asks_nothing_where_a_budget_ended_the_asking(tmp_path: Path) -> None:
    (tmp_path / "big.py").write_text(BIG)
    (tmp_path / "mail.jsonl").write_text("".join(json.dumps(text) + "\n" for text in sample.questions(300)))
    words = ["compress", "--big", "python:big.py:subject", "--data", "mail.jsonl", "--keep", "0.5", "--trials", "1"]
    words += ["--work", "work", "--data-dir", "data", "-o", "made", "--json", "--most-requests", "150"]
    first = card_of(words, tmp_path)
    assert first["data"]["rows"] == 150
    command = shlex.split(first["commands"]["guarantee"])
    assert command[-2:] == ["--most-requests", "0"]
    assert command.count("--most-requests") == 1
    second = card_of(command[1:], tmp_path)
    for name in ("calibration", "agreement", "reliability", "confusions", "ceiling", "data"):
        assert second[name] == first[name], name


def test_an_expert_that_misses_its_floor_says_so(tmp_path: Path) -> None:
    """The answers follow from nothing in the texts, so none can be learned."""
    guess = "import zlib\ndef big(text):\n    return 'ab'[zlib.crc32(text.encode()) % 2]\n"
    (tmp_path / "big.py").write_text(guess)
    (tmp_path / "mail.txt").write_text("\n".join(sample.questions(200)))
    words = ["compress", "--big", f"python:{tmp_path / 'big.py'}:big", "--data", str(tmp_path / "mail.txt")]
    words += ["--trials", "1", "--work", str(tmp_path / "work"), "--data-dir", str(tmp_path / "data")]
    words += ["--keep", "0.95", "--accept-nearest"]
    said = CliRunner().invoke(app, [*words, "-o", str(tmp_path / "expert")])
    assert "That is less than the 95% asked for: on the rows that chose it, it kept" in said.output
    missed = json.loads(CliRunner().invoke(app, [*words, "-o", str(tmp_path / "two"), "--json"]).stdout)
    assert (missed["keep"], missed["keeps"]) == (0.95, False)
    words[-2] = "0"
    kept = CliRunner().invoke(app, [*words, "-o", str(tmp_path / "three")])
    assert "asked for" not in kept.output
