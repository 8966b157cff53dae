"""The house rules that a program can check: floors, circles, names, sizes, silence at import."""

from __future__ import annotations

import ast
import importlib
import json
import os
import pkgutil
import subprocess
import sys
import types
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import puhui

SOURCE = Path(puhui.__file__).parent
FLOORS: tuple[tuple[str, ...], ...] = (
    ("core",),
    ("models", "sense", "energy", "trust", "store", "browser"),
    ("cascade", "knowledge", "quantisation", "upstreams"),
    ("teachers", "bundles"),
    ("compress",),
    ("evolve",),
    ("node",),
    ("gateway", "scale"),
    ("demo", "dashboard"),
    ("cli",),
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(SOURCE.rglob("*.py"))
MODULES = sorted(name for _, name, _ in pkgutil.walk_packages(puhui.__path__, "puhui."))
PACKAGES = sorted(name for _, name, package in pkgutil.walk_packages(puhui.__path__, "puhui.") if package)
MOST_LINES, MOST_FUNCTION_LINES = 500, 60
MAY_REPEAT = {"__init__.py", "__main__.py", "base.py"}


def module_of(path: Path) -> str:
    parts = ("puhui", *path.relative_to(SOURCE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> Iterator[tuple[str, int]]:
    """Every module of ours that a file imports, wherever in it, with the line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names if alias.name.split(".")[0] == "puhui")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively; write puhui.…"
            if node.module and node.module.split(".")[0] == "puhui":
                whole = (f"{node.module}.{alias.name}" for alias in node.names)
                yield from ((name if name in MODULES else node.module, node.lineno) for name in whole)


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_there_is_something_to_check() -> None:
    assert len(FILES) > 30
    assert sum(1 for path in FILES for _ in imports_of(path)) > 100


def test_every_room_has_a_floor() -> None:
    rooms = {room_of(module) for module in MODULES if module in PACKAGES or module.count(".") > 1}
    assert rooms <= FLOOR_OF.keys(), f"no floor for {sorted(rooms - FLOOR_OF.keys())}"
    loose = [module for module in MODULES if module not in PACKAGES and module.count(".") == 1]
    assert loose in ([], ["puhui.__main__"]), f"modules in no room: {loose}"


def test_files_import_from_lower_floors_or_their_own_room_only() -> None:
    wrong = []
    for path in FILES:
        here = room_of(module_of(path))
        for module, line in imports_of(path):
            there = room_of(module)
            # The package itself is the public face: it may show any room, and no room may look at it.
            below = bool(there) and (not here or FLOOR_OF[there] < FLOOR_OF[here])
            if there != here and not below:
                wrong.append(f"{path.relative_to(SOURCE)}:{line} ({here}) imports {module}")
    assert not wrong, "\n".join(wrong)


def test_no_import_circle() -> None:
    graph: dict[str, set[str]] = defaultdict(set)
    for path in FILES:
        graph[module_of(path)] |= {module for module, _ in imports_of(path)} - {module_of(path)}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, "a circle: " + " → ".join((*trail[trail.index(module) :], module))
        if module not in done:
            for other in graph.get(module, ()):
                visit(other, (*trail, module))
            done.add(module)

    for module in list(graph):
        visit(module, ())


def test_file_names() -> None:
    names = Counter(path.name for path in FILES if path.name not in MAY_REPEAT)
    assert {name: count for name, count in names.items() if count > 1} == {}
    assert not {path.stem for path in FILES} & {"utils", "util", "helpers", "misc", "common"}


def test_sizes() -> None:
    long_files = {str(path): lines for path in FILES if (lines := len(path.read_text().splitlines())) > MOST_LINES}
    assert long_files == {}
    functions = {  # without the signature: the options of a command are declared in it
        f"{path.relative_to(SOURCE)}:{node.name}": (node.end_lineno or 0) - node.body[0].lineno + 1
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: lines for name, lines in functions.items() if lines > MOST_FUNCTION_LINES} == {}


@pytest.mark.parametrize("name", ["puhui", *PACKAGES])
def test_all_is_what_is_there(name: str) -> None:
    module = importlib.import_module(name)
    offered = {
        key
        for key, value in vars(module).items()
        if not key.startswith("_") and not isinstance(value, types.ModuleType) and key != "annotations"
    }
    declared = getattr(module, "__all__", [])
    assert sorted(offered) == sorted(set(declared) - {"__version__"})
    assert len(set(declared)) == len(declared)
    assert module.__doc__


def test_every_module_says_what_it_is_for() -> None:
    assert [str(path) for path in FILES if not ast.get_docstring(ast.parse(path.read_text()))] == []


LOOK = """
import sys, os, json
reads = []
def note(key):
    if sys._getframe(2).f_globals.get("__name__", "").startswith("puhui"):
        reads.append(key)
class Watched(dict):
    def __getitem__(self, key): note(key); return dict.__getitem__(self, key)
    def get(self, key, default=None): note(key); return dict.get(self, key, default)
    def __contains__(self, key): note(key); return dict.__contains__(self, key)
os.environ = Watched(os.environ)
import {module}
print(json.dumps([sorted({{name.split(".")[0] for name in sys.modules}}), reads]), file=sys.stderr)
"""


def fresh(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)


def test_importing_is_silent_and_light() -> None:
    ran = fresh(LOOK.format(module="puhui"))
    loaded, read = json.loads(ran.stderr)
    assert ran.stdout == ""
    assert read == []
    assert not {"torch", "sqlalchemy", "starlette", "scipy", "transformers", "typer"} & set(loaded)


def test_an_expert_answers_without_any_extra() -> None:
    loaded, _ = json.loads(fresh(LOOK.format(module="puhui.models.static")).stderr)
    heavy = {"torch", "sqlalchemy", "starlette", "scipy", "transformers", "typer", "uvicorn", "httpx", "aiohttp"}
    assert not heavy & set(loaded)


def test_importing_is_quick() -> None:
    def seconds(code: str) -> float:
        """CPU seconds: on a busy machine, time on the clock says little of an import."""
        before = os.times()
        fresh(code)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    bare = min(seconds("pass") for _ in range(3))
    assert min(seconds("import puhui") for _ in range(3)) - bare < 0.5
