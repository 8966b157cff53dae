"""`puhui compress` as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

import experts as sample
from puhui.cli.main import app

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
