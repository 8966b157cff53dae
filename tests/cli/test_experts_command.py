"""`puhui experts show`, `verify` and `export` on bundles in folders; `list` and ids are tried in `test_cli`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import experts
from cards_made import HOSTILE, full_card
from puhui.bundles.bundle import seal
from puhui.bundles.card_page import PAGE_FILE, render_card
from puhui.bundles.model_card import render_model_card
from puhui.cli.main import main
from puhui.evolve.traffic import Task
from puhui.store.database import open_store, sqlite_url
from puhui.trust.keys import load_or_create_key

PAGES = {PAGE_FILE: render_card, "README.md": render_model_card}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("PUHUI_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "140")

    def ran(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["puhui", "experts", *words])
        code: Any = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        out, err = capsys.readouterr()
        return int(code), out, err

    return ran


def sealed(tmp_path: Path, *, pages: bool = True, full: bool = True) -> tuple[str, Path, str]:
    """The id, folder and public key of a static expert with a card that holds everything, or little."""
    key = load_or_create_key(tmp_path / "key")
    small = experts.card(Task("task-1", "a task", "context:1", "m"))
    card = full_card(labels=3, files={}) if full else small
    expert, place = seal(tmp_path / "e", card, experts.model(), key, more=PAGES if pages else {})
    return expert, place, key.public


def test_show_is_for_people(run: Any, tmp_path: Path) -> None:
    expert, place, key = sealed(tmp_path)
    code, out, err = run("show", str(place))
    assert (code, err) == (0, "")
    for told in (
        *("Of all requests of this task, at most 2%", "Sizes and speeds", "Trade-offs", "chosen", "and 12 more"),
        *("Precision kept", "and 3 more", "sensitivity"),
        *("The worst confusions", "Make it again", "trade-offs", expert, key, "not of truth", "time × 4"),
    ):
        assert told in " ".join(out.split()), told
    assert HOSTILE[0] in out
    assert "\x1b" not in out
    assert "[bold]red[/bold]" in out.replace("\n", "")
    assert out.count("\n") < 90


def test_show_of_a_small_card_names_what_is_missing(run: Any, tmp_path: Path) -> None:
    _, place, _ = sealed(tmp_path, full=False)
    code, out, _ = run("show", str(place))
    assert code == 0
    assert "Not on this card: guarantee, trade-offs, reliability, devices, precision, ceiling, data." in out
    assert "Trade-offs" not in out


def test_show_as_json_is_the_card_itself(run: Any, tmp_path: Path) -> None:
    _, place, _ = sealed(tmp_path)
    code, out, _ = run("show", str(place), "--json")
    assert code == 0
    assert json.loads(out) == json.loads((place / "expert.json").read_text())


def test_show_prints_where_the_page_is(run: Any, tmp_path: Path) -> None:
    expert, place, key = sealed(tmp_path)
    assert run("show", str(place), "--html")[1] == f"{place / PAGE_FILE}\n"
    expert, place, key = sealed(tmp_path, pages=False)
    made = Path(run("show", str(place), "--html")[1].strip())
    assert made.is_relative_to(tmp_path / "cache")
    page = made.read_text(encoding="utf-8")
    assert expert in page
    assert key in page
    assert sorted(path.name for path in place.iterdir()) == [
        *("expert.json", "signature.json", "static.json", "weights.safetensors")
    ]


@pytest.mark.parametrize("command", ["show", "verify"])
def test_what_is_no_expert(run: Any, tmp_path: Path, command: str) -> None:
    _, place, _ = sealed(tmp_path)
    (tmp_path / "big.py").write_text("")
    for named, told in (
        ("nope", "'nope' is no bundle's folder and no expert's id: there is no store at"),
        (str(place / "expert.json"), f"it lies in one, so give that folder, {place}"),
        (str(tmp_path / "big.py"), "big.py is a file, and no expert's bundle; give the folder of one, or an id"),
    ):
        code, out, err = run(command, named)
        assert (code, out) == (2, "")
        assert told in err
    open_store(sqlite_url(tmp_path / "data" / "puhui.db")).close()
    code, _, err = run(command, "nope")
    assert code == 2
    assert "'nope' is no bundle's folder and no expert's id in the store at sqlite:///" in err


def test_a_changed_card_is_not_shown(run: Any, tmp_path: Path) -> None:
    _, place, _ = sealed(tmp_path)
    card = place / "expert.json"
    card.write_text(card.read_text().replace('"agreement":', '"agreement" :'))
    for words in (["show"], ["show", "--json"], ["show", "--html"], ["verify"]):
        code, out, err = run(*words, str(place))
        assert (code, out) == (2, "")
        assert "expert.json" in err
        assert "was changed" in err


def test_verify_says_what_was_checked(run: Any, tmp_path: Path) -> None:
    expert, place, key = sealed(tmp_path)
    code, out, _ = run("verify", str(place))
    assert code == 0
    for told in (
        "whole and signed",
        "static",
        expert,
        key,
        "weights.safetensors",
        "static.json",
        "card.html",
        "README.md",
    ):
        assert told in out
    (place / "card.html").write_text("<html>")
    code, _, err = run("verify", str(place))
    assert code == 2
    assert "card.html was changed" in err


def test_export(run: Any, tmp_path: Path) -> None:
    _, place, _ = sealed(tmp_path)
    texts = tmp_path / "texts.txt"
    texts.write_text("my bank\n发票\n\n", encoding="utf-8")
    code, out, _ = run("export", str(place), "-o", str(tmp_path / "a"), "--format", "static", "--texts", str(texts))
    assert code == 0
    assert "answers as the bundle does on 3 texts" in out
    code, out, _ = run("export", str(place), "--out", str(tmp_path / "b"), "--format", "huggingface", "--json")
    assert code == 0
    told = json.loads(out)
    assert (told["folder"], told["texts"]) == (str(tmp_path / "b"), 16)
    assert run("verify", str(tmp_path / "b" / "expert"))[0] == 0
    assert "expert/expert.json" in told["files"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--format", "onnx"], "'static' has no form 'onnx'; it has static or huggingface"),
        (["--format", "pickle"], "pickle"),
        (["--format", "static", "--texts", "/nowhere/texts"], "--texts /nowhere/texts cannot be read"),
    ],
)
def test_an_export_that_cannot_be(run: Any, tmp_path: Path, words: list[str], told: str) -> None:
    _, place, _ = sealed(tmp_path, pages=False)
    code, out, err = run("export", str(place), "-o", str(tmp_path / "out"), *words)
    assert (code, out) == (2, "")
    assert told in err
    assert not (tmp_path / "out").exists()
