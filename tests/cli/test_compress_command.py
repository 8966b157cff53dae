"""`puhui compress` as a person types it."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

import experts as sample
from puhui.cli.compress_command import again
from puhui.cli.main import app
from puhui.cli.options import prices_of
from puhui.core.errors import SettingsError
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
