"""The configuration file: what it may say, and what is told of one that says something else."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from puhui.cli import serve_command
from puhui.cli.main import app
from puhui.cli.serve_file import ServeFile, read_serve_file
from puhui.core.errors import SettingsError
from puhui.core.settings import Promise
from puhui.gateway.server import ServeSettings

EXAMPLE = Path(__file__).parents[2] / "examples" / "gateway" / "puhui.toml"
BIG = '[[upstream]]\nref = "openai:no-such-model@http://127.0.0.1:9/v1"\n'


def written(folder: Path, text: str) -> Path:
    path = folder / "puhui.toml"
    path.write_text(text)
    return path


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[ServeSettings]:
    """What `puhui serve` would have served."""
    given: list[ServeSettings] = []
    monkeypatch.setattr(serve_command, "run", lambda settings, **_: given.append(settings))
    for name in ("PUHUI_UPSTREAM", "PUHUI_CONFIG", "PUHUI_HOST", "PUHUI_PORT", "PUHUI_STORE", "PUHUI_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    return given


def serve(*words: str) -> None:
    app(["serve", *words], standalone_mode=False)


def test_the_example_says_what_it_looks_like() -> None:
    file = read_serve_file(EXAMPLE)
    assert [(each.rank, each.weight, each.site, each.hedge) for each in file.upstream] == [
        (0, 3.0, None, False),
        (0, 1.0, None, True),
        (1, 1.0, True, False),
    ]
    assert file.serve.data_dir == str(EXAMPLE.parent / "data")
    commented = re.sub(r"^#( ?\w+ = )", r"\1", EXAMPLE.read_text(), flags=re.MULTILINE)
    assert commented != EXAMPLE.read_text()
    msgspec.toml.decode(commented)


def test_an_empty_file_says_nothing(tmp_path: Path) -> None:
    assert read_serve_file(written(tmp_path, "")) == ServeFile()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[serve]\nhst = "x"', r"there is no serve\.hst; did you mean 'host'\? \(allowed: .*port.*\)$"),
        ("[sever]\nport = 1", r"there is no sever; did you mean 'serve'\? \(allowed: .*upstream"),
        (BIG + "wieght = 2", r"there is no upstream 1\.wieght; did you mean 'weight'\? \(allowed: .*whole_s\)$"),
        (BIG + BIG + "n = 2", r"there is no upstream 2\.n \(allowed: "),
        (BIG + 'key = "sk-1"', r"upstream 1\.key is not allowed: name an environment variable"),
        ('[serve]\nport = "80"', r"Expected `int`, got `str` - at `\$\.serve\.port`"),
        ("[serve]\nport = 65536", r"port is 65536, but must be 0 to 65535"),
        ('[serve]\nlog_level = "loud"', r"log_level is 'loud'; allowed: DEBUG"),
        (BIG + "weight = 0", r"weight is 0\.0, but must be greater than 0"),
        ("[[upstream]]\nrank = 1", r"missing required field `ref` - at `\$\.upstream\[0\]`"),
        ("[promise]\nepsilon = 2", r"epsilon is 2\.0, but must lie strictly"),
        ("[promise]\nepsilom = 0.1", r"there is no promise\.epsilom; did you mean 'epsilon'"),
        ("[audit_rate]\nsteady = 0", r"audit rate steady is 0\.0"),
        ("[limits]\nmax_body_mb = 0", r"max_body_mb is 0, but must be 1 or more"),
        ("[limits]\nstop_within_s = 0", r"stop_within_s is 0, but must be whole seconds, 1 or more"),
        ("upstream = 3", r"Expected `array`, got `int`"),
        ("serve = 3", r"Expected `object`, got `int`"),
        ("[serve", r"is not TOML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, told: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(SettingsError, match=told) as caught:
        read_serve_file(path)
    assert str(caught.value).startswith(f"the configuration file {path}")
    assert "sk-1" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        read_serve_file(tmp_path / "nothing.toml")
    (tmp_path / "odd.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="is not TOML"):
        read_serve_file(tmp_path / "odd.toml")


def test_the_file_is_served(tmp_path: Path, served: list[ServeSettings], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIG_KEY", "sk-1")
    serve("--config", str(written(tmp_path, _WHOLE)))
    (settings,) = served
    assert (settings.host, settings.port, settings.learn) == ("127.0.0.2", 8123, False)
    assert settings.folder == tmp_path / "data"
    assert settings.store.endswith(f"{tmp_path}/data/puhui.db")
    assert settings.promise == Promise(0.01, 0.1)
    assert settings.keys_required
    assert settings.tariff.carbon_g_per_kwh == 582.0
    assert (settings.tariff.price_in, settings.tariff.price_out) == (2.0, 0.0), "the first upstream's"
    assert [(each.key, each.rank, each.whole_s) for each in settings.big_models] == [("sk-1", 0, 5.0), (None, 1, 600.0)]


_WHOLE = """
[serve]
host = "127.0.0.2"
port = 8123
data_dir = "data"
learn = false
[promise]
epsilon = 0.01
delta = 0.1
[tariff]
country = "CHN"
[keys]
required = true
[[upstream]]
ref = "openai:a@http://127.0.0.1:9/v1"
key_env = "BIG_KEY"
whole_s = 5
price_in = 2
[[upstream]]
ref = "openai:b@http://127.0.0.1:9/v1"
rank = 1
"""


def test_the_command_line_overrules_the_file(
    tmp_path: Path, served: list[ServeSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BIG_KEY", "sk-1")
    monkeypatch.setenv("PUHUI_HOST", "127.0.0.3")
    config = str(written(tmp_path, _WHOLE))
    serve("--config", config, "--port", "9", "--learn", "--risk", "0.03", "--carbon", "7", "--timeout", "3")
    serve("--config", config, "--country", "FRA", "--price-tokens", "1,2", "--data-dir", str(tmp_path / "other"))
    serve("--config", config, "--upstream", "openai:c@http://127.0.0.1:9/v1", "--upstream", "http://127.0.0.1:8/v1")
    first, second, third = served
    assert (first.host, first.port, first.learn) == ("127.0.0.3", 9, True)
    assert first.promise == Promise(0.03, 0.1)
    assert first.tariff.carbon_g_per_kwh == 7.0
    assert [each.first_token_s for each in first.big_models] == [3.0, 3.0]
    assert (second.tariff.carbon_g_per_kwh, second.tariff.price_in, second.tariff.price_out) == (56.0, 1.0, 2.0)
    assert second.folder == tmp_path / "other"
    assert [(each.ref[:8], each.rank, each.key) for each in third.big_models] == [
        ("openai:c", 0, None),
        ("http://1", 1, None),
    ]


def test_how_long_a_body_may_be_is_said_in_each_way(
    tmp_path: Path, served: list[ServeSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PUHUI_MAX_BODY_MB", raising=False)
    config = str(written(tmp_path, BIG + "[limits]\nmax_body_mb = 20"))
    serve("--upstream", "http://127.0.0.1:9/v1")
    serve("--config", config)
    monkeypatch.setenv("PUHUI_MAX_BODY_MB", "30")
    serve("--config", config)
    serve("--config", config, "--max-body-mb", "40")
    assert [settings.max_body_mb for settings in served] == [8, 20, 30, 40]


def test_each_upstream_has_its_own_key(served: list[ServeSettings], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_A", "a")
    monkeypatch.setenv("KEY_B", "b")
    both = ["--upstream", "http://127.0.0.1:9/v1", "--upstream", "http://127.0.0.1:8/v1"]
    serve(*both, "--key-env", "KEY_A", "--key-env", "KEY_B")
    assert [each.key for each in served[0].big_models] == ["a", "b"]
    with pytest.raises(SettingsError, match="given 1 times for 2 --upstream"):
        serve(*both, "--key-env", "KEY_A")


def test_a_node_needs_a_big_model(tmp_path: Path, served: list[ServeSettings]) -> None:
    for words in ([], ["--config", str(written(tmp_path, "[serve]\nport = 1"))]):
        with pytest.raises(SettingsError, match=r"there is no big model: give --upstream .* \[\[upstream\]\]"):
            serve(*words)
    with pytest.raises(SettingsError, match="--key-env needs an --upstream"):
        serve("--key-env", "HOME", "--config", str(written(tmp_path, BIG)))
    assert served == []
