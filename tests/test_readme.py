"""What the documents say is so: their Python runs, their commands and files exist, both READMEs are in step."""

from __future__ import annotations

import contextlib
import io
import linecache
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import experts as sample
import puhui
from puhui.bundles.bundle import seal
from puhui.cli.main import app
from puhui.evolve.discovery import task_of_group
from puhui.gateway.server import ServeSettings, node_app
from puhui.store.database import sqlite_url
from puhui.trust.keys import load_or_create_key
from serving import BigModel, serving

ROOT = Path(__file__).parents[1]
README, CHINESE = ROOT / "README.md", ROOT / "README.zh.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [README, CHINESE, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "examples" / "README.md", *PAGES]
SOURCE = ROOT / "src" / "puhui"
ROOMS = sorted(path.name for path in SOURCE.iterdir() if (path / "__init__.py").is_file())

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
TO_COME = "<!-- DEMO OUTPUT -->"


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def blocks(path: Path, language: str) -> list[str]:
    return [code for found, code in BLOCK.findall(read(path)) if found == language]


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a real expert at `path/to/expert`, as the documents have it."""
    task = task_of_group("context:0", "m", sample.SYSTEM)
    key = load_or_create_key(tmp_path / "node.key")
    _, place = seal(tmp_path / "path" / "to", sample.card(task), sample.model(), key)
    place.rename(place.with_name("expert"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(code: str, where: str) -> str:
    """What the code prints."""
    printed = io.StringIO()
    # A function's source is looked up by this name and by its line in the code, not on the page.
    linecache.cache[where] = (len(code), None, code.splitlines(keepends=True), where)
    with contextlib.redirect_stdout(printed):
        exec(compile(code, where, "exec"), {"__name__": "__main__"})
    return printed.getvalue()


def python_block(path: Path, holds: str) -> str:
    (found,) = [code for code in blocks(path, "python") if holds in code]
    return found


def test_readme_client_is_answered_by_a_node(here: Path, big: BigModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-caller")
    code = python_block(README, "from openai import")
    assert "http://127.0.0.1:8000/v1" in code
    upstream = f"openai:gpt-4o-mini@{big.url}"
    settings = ServeSettings(
        upstream=upstream, store=sqlite_url(here / "puhui.db"), folder=here, learn=False, access_log=False
    )
    with serving(node_app(settings)) as url:
        said = run(code.replace("http://127.0.0.1:8000", url), "README.md")
    assert said == "IS THIS SPAM: FREE CASH big:gpt-4o-mini\n"
    assert big.headers[0]["authorization"] == "Bearer sk-of-the-caller"


def test_examples(here: Path, big: BigModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-caller")
    monkeypatch.setenv("OPENAI_BASE_URL", big.url)
    assert "the big model itself" in run(read(ROOT / "examples" / "openai_client.py"), "openai_client.py")
    monkeypatch.setattr("sys.argv", ["device.py", "path/to/expert"])
    monkeypatch.setattr("sys.stdin", io.StringIO("my bank balance\n发票\n"))
    said = run(read(ROOT / "examples" / "device.py"), "device.py").splitlines()
    assert [line.count("\t") for line in said] == [2, 2]
    assert said[0].split("\t")[0] == "money"


def test_readme_expert_answers(here: Path) -> None:
    said = run(python_block(README, "open_expert"), "README.md")
    assert re.fullmatch(r"(money|travel|food|ask the big model) [01]\.\d+\n", said)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=named)
def test_python_of_a_page_runs(page: Path, here: Path) -> None:
    run("\n".join(blocks(page, "python")), named(page))


def test_damage_is_named_as_the_page_says(here: Path) -> None:
    assert "weights.safetensors" in run(python_block(ROOT / "docs" / "bundles.md", "damaged"), "bundles.md")


def commands() -> dict[tuple[str, ...], set[str]]:
    """Every command of the CLI, by its words after `puhui`, with its options."""
    found: dict[tuple[str, ...], set[str]] = {}

    def walk(command: Any, words: tuple[str, ...]) -> None:
        options = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
        found[words] = {name for name in options if name.startswith("--")}
        for name, inner in getattr(command, "commands", {}).items():
            walk(inner, (*words, name))

    walk(typer.main.get_command(app), ())
    return found


def environment() -> dict[str, str]:
    """The option of each environment variable that the CLI reads."""
    found: dict[str, str] = {}

    def walk(command: Any) -> None:
        for param in command.params:
            if param.envvar:
                found[str(param.envvar)] = param.opts[0]
        for inner in getattr(command, "commands", {}).values():
            walk(inner)

    walk(typer.main.get_command(app))
    return found


def mentions(path: Path) -> Iterator[str]:
    """Every line of shell in a document, and every inline code."""
    for code in blocks(path, "sh"):
        yield from code.splitlines()
    yield from INLINE.findall(BLOCK.sub("", read(path)))


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_commands_exist(document: Path) -> None:
    known = commands()
    targets = re.findall(r"^(\w+):", read(ROOT / "Makefile"), re.MULTILINE)
    for line in mentions(document):
        words = re.sub(r"^(\w+=\S+ )+", "", line).split()
        match words[:3]:
            case ["puhui", *_]:
                path = tuple(words[1:3]) if tuple(words[1:3]) in known else tuple(words[1:2])
                assert path in known, f"{line!r} is no command"
                assert set(OPTION.findall(line)) <= known[path] | {"--help"}, line
            case ["make", target, *_]:
                assert target in targets, line
            case ["python", "-m", module] if module.startswith("bench."):
                file = ROOT / f"{module.replace('.', '/')}.py"
                assert all(f'"{option}"' in read(file) for option in OPTION.findall(line)), line


def test_cli_page_has_every_option_and_no_other() -> None:
    parts = re.split(r"^## puhui (\w+)$", read(ROOT / "docs" / "cli.md"), flags=re.MULTILINE)
    known = commands()
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert set(sections) == {words[0] for words in known if words}
    for name, text in sections.items():
        options = set().union(*(options for words, options in known.items() if words[:1] == (name,)))
        assert set(OPTION.findall(text.split("\n## ")[0])) == options - {"--help"}, name


@pytest.mark.parametrize("document", [README, CHINESE], ids=named)
def test_environment_table(document: Path) -> None:
    rows = re.findall(r"^\| `((?:PUHUI|OTEL)_\w+)` \| `(--[a-z-]+)`", read(document), re.MULTILINE)
    assert dict(rows) == environment()


@pytest.mark.parametrize("document", [*DOCUMENTS, ROOT / "src" / "puhui" / "__init__.py"], ids=named)
def test_no_other_environment_variable_is_named(document: Path) -> None:
    assert set(re.findall(r"\bPUHUI_[A-Z_]+\b", read(document))) <= environment().keys()


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_links_and_files_exist(document: Path) -> None:
    text = read(document)
    for link in LINK.findall(text):
        if link.startswith(("https://", "#")) or (link == "docs/demo.png" and TO_COME in text):
            continue
        assert (document.parent / link.partition("#")[0]).exists(), link
    for code in INLINE.findall(BLOCK.sub("", text)):
        top, _, rest = code.partition("/")
        if top in ("bench", "docs", "tests", "examples", "src") and rest and " " not in code:
            assert (ROOT / code).exists(), code
        elif top in ROOMS and re.fullmatch(r"\w+\.py", rest):
            assert (SOURCE / code).exists(), code


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_has_a_page_with_its_files(room: str) -> None:
    files = read(ROOT / "docs" / f"{room}.md").partition("\n## Files\n")[2]
    there = {path.name for path in (SOURCE / room).glob("*.py")} - {"__init__.py"}
    assert set(re.findall(r"`(\w+\.py)`", files)) == there


def test_every_page_can_be_reached() -> None:
    linked = {
        (document.parent / link.partition("#")[0]).resolve()
        for document in (README, *PAGES)
        for link in LINK.findall(read(document))
        if not link.startswith("https://")
    }
    assert [named(page) for page in PAGES if page not in linked] == []


def sections(path: Path) -> list[tuple[int, str]]:
    """Level and text of each section, the head included."""
    parts = re.split(r"^(#+) .*$", BLOCK.sub("", read(path)), flags=re.MULTILINE)
    return [(0, parts[0]), *((len(level), text) for level, text in zip(parts[1::2], parts[2::2], strict=True))]


def numbers(text: str) -> Counter[str]:
    return Counter(re.findall(r"[0-9](?:[0-9,.]*[0-9])?", text))


def test_readmes_have_the_same_sections() -> None:
    english, chinese = sections(README), sections(CHINESE)
    assert [level for level, _ in english] == [level for level, _ in chinese]
    for (_, ours), (_, theirs) in zip(english, chinese, strict=True):
        assert numbers(ours) == numbers(theirs), theirs
        assert Counter(re.findall(r"^(\||- |\d\. )", ours, re.MULTILINE)) == Counter(
            re.findall(r"^(\||- |\d\. )", theirs, re.MULTILINE)
        ), theirs
        assert set(re.findall(r"<!--.*?-->", ours)) == set(re.findall(r"<!--.*?-->", theirs))
        assert Counter(LINK.findall(ours)) - Counter(["README.zh.md"]) == Counter(LINK.findall(theirs)) - Counter(
            ["README.md"]
        )


def test_readmes_have_the_same_code() -> None:
    english, chinese = BLOCK.findall(read(README)), BLOCK.findall(read(CHINESE))
    assert [block for block in english if block[0] != "text"] == [block for block in chinese if block[0] != "text"]
    drawings = ([code.count("\n") for kind, code in found if kind == "text"] for found in (english, chinese))
    assert next(drawings) == next(drawings)
    codes = [set(INLINE.findall(BLOCK.sub("", read(path)))) for path in (README, CHINESE)]
    assert codes[0] == codes[1]


def test_readme_is_short_and_of_this_version() -> None:
    assert read(README).count("\n") < 260  # the demo's output is 35 of them
    version = re.search(r'^version = "(.+)"$', read(ROOT / "pyproject.toml"), re.MULTILINE)
    assert version is not None
    assert f"## [{version[1]}]" in read(ROOT / "CHANGELOG.md")


def test_doors_named_in_the_readme_are_there() -> None:
    names = set(re.findall(r"puhui\.([a-z_]+)\(", read(README)))
    assert names <= set(puhui.__all__)
