"""`puhui keys`, as it is typed; and against a node that runs."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from keyed import keyed
from puhui.cli.main import app
from puhui.core.errors import PuhuiError, SettingsError, StoreError, UnknownModel
from puhui.trust.api_keys import PREFIX
from serving import BigModel, wait_until


def run(folder: Path, *arguments: str) -> Result:
    result = CliRunner().invoke(app, ["keys", *arguments, "--data-dir", str(folder)])
    if isinstance(result.exception, PuhuiError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def told(folder: Path, *arguments: str) -> Any:
    return json.loads(run(folder, *arguments, "--json").stdout)


def test_from_the_first_key_to_its_end(tmp_path: Path) -> None:
    made = run(tmp_path, "new", "owner", "--scope", "admin")
    shown = made.stdout.strip()
    assert shown.startswith(PREFIX)
    assert "cannot be shown again" in made.stderr
    options = ("--days", "30", "--requests", "60", "--tokens", "9000", "--money-day", "1.5", "--kwh-month", "2")
    team = told(tmp_path, "new", "team", *options, "--model", "m", "--model", "n", "--share", "--keep", "redacted")
    assert team["rules"] == {
        "scopes": ["chat", "embeddings"],
        "requests_per_minute": 60,
        "tokens_per_minute": 9000,
        "money_per_day": 1.5,
        "kwh_per_month": 2.0,
        "models": ["m", "n"],
        "share": True,
        "keep": "redacted",
    }
    assert team["expires"] == pytest.approx(team["created"] + 30 * 86_400.0, abs=5.0)
    listed = told(tmp_path, "list")["keys"]
    assert [key["name"] for key in listed] == ["owner", "team"]
    for text in (run(tmp_path, "list").stdout, run(tmp_path, "show", "team").stdout, json.dumps(listed)):
        assert shown not in text
        assert team["key"] not in text
    assert "requests_per_minute: 60" in run(tmp_path, "show", team["id"][:10]).stdout
    assert told(tmp_path, "show", "owner")["spent"]["month"]["requests"] == 0
    assert "revoked" in run(tmp_path, "revoke", "team").stdout
    assert told(tmp_path, "show", team["id"])["state"] == "revoked"


def test_a_key_is_changed_and_the_rest_of_it_stays(tmp_path: Path) -> None:
    made = told(
        tmp_path, "new", "team", "--requests", "60", "--money-day", "2", "--days", "30", "--model", "m", "--share"
    )
    changed = told(
        tmp_path, "change", "team", "--requests", "90", "--kwh-month", "2.5", "--without", "money-day", "--name", "crew"
    )
    assert changed["rules"] == {
        "scopes": ["chat", "embeddings"],
        "requests_per_minute": 90,
        "kwh_per_month": 2.5,
        "models": ["m"],
        "share": True,
    }
    assert (changed["id"], changed["name"], changed["expires"]) == (made["id"], "crew", made["expires"])
    options = ("--without", "share", "--inherit", "--without", "days", "--scope", "read", "--without", "model")
    again = told(tmp_path, "change", made["id"], *options)
    assert again["rules"] == {
        "scopes": ["read"],
        "requests_per_minute": 90,
        "kwh_per_month": 2.5,
        "inherit": True,
    }
    assert again["expires"] is None
    assert told(tmp_path, "change", "crew", "--days", "1")["expires"] == pytest.approx(time.time() + 86_400.0, abs=60.0)
    assert "is changed" in run(tmp_path, "change", "crew", "--keep", "nothing").stdout
    assert told(tmp_path, "show", "crew")["rules"]["keep"] == "nothing"


def test_a_name_comes_before_the_beginning_of_an_id(tmp_path: Path) -> None:
    first = told(tmp_path, "new", "team")["id"]
    named = told(tmp_path, "new", first[:10])["id"]
    assert told(tmp_path, "show", first[:10])["id"] == named
    assert told(tmp_path, "show", first)["id"] == first
    with pytest.raises(UnknownModel, match="no key"):
        run(tmp_path, "show", "key_")


def test_changes_that_cannot_be(tmp_path: Path) -> None:
    run(tmp_path, "new", "team", "--share")
    for arguments, said in (
        (("--without", "money"), "allowed: requests"),
        (("--requests", "0"), "rules"),
        (("--inherit",), "two pools"),
        (("--name", ""), "name"),
    ):
        with pytest.raises(SettingsError, match=said):
            run(tmp_path, "change", "team", *arguments)
    with pytest.raises(UnknownModel, match="no key"):
        run(tmp_path, "change", "nobody", "--requests", "5")
    assert told(tmp_path, "show", "team")["rules"] == {"scopes": ["chat", "embeddings"], "share": True}


def test_what_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no store"):
        run(tmp_path, "list")
    for arguments in (("--scope", "root"), ("--requests", "0"), ("--days", "-1"), ("--keep", "all"), ("--model", "")):
        with pytest.raises(SettingsError):
            run(tmp_path, "new", "x", *arguments)
    run(tmp_path, "new", "twin")
    run(tmp_path, "new", "twin")
    with pytest.raises(UnknownModel, match="2 keys"):
        run(tmp_path, "revoke", "twin")
    with pytest.raises(UnknownModel, match="no key"):
        run(tmp_path, "show", "nobody")


def test_a_node_that_runs_sees_it(tmp_path: Path, big: BigModel) -> None:
    with keyed(tmp_path, big.url) as node:
        assert node.chat().status_code == 200
        made = told(tmp_path, "new", "team")
        wait_until(lambda: node.chat().status_code == 401)
        assert node.chat(made["key"]).status_code == 200
        assert told(tmp_path, "show", "team")["spent"]["day"]["requests"] == 1
        run(tmp_path, "revoke", "team")
        wait_until(lambda: node.chat(made["key"]).status_code == 401)
