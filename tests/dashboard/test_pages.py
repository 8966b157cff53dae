"""The pages' files: what a browser is given, and that both languages say everything."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette

from puhui.dashboard.pages import PAGES, dashboard_routes
from serving import serving

FOLDER = Path(str(files("puhui.dashboard")))
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.js"))
WORDS = (FOLDER / "words.js").read_text()


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with (
        serving(Starlette(routes=dashboard_routes())) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=20.0) as client,
    ):
        yield client


def words(language: str) -> set[str]:
    part = WORDS.split(f"const {language} = {{")[1].split("\n};")[0]
    bare = re.sub(r'"(?:[^"\\]|\\.)*"|`[^`]*`', '""', part)  # names alone, without what they say
    return set(re.findall(r"(?:^|[{,\n])\s*(\w+): ", bare))


@pytest.mark.parametrize("page", PAGES)
def test_each_page(http: httpx.Client, page: str) -> None:
    response = http.get(f"/{page}")
    assert response.status_code == 200
    policy = dict(part.strip().split(" ", 1) for part in response.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cache-control"] == "no-cache"
    text = response.text
    assert text.count('aria-current="page"') == 1
    assert f'<a href="{page}" aria-current="page"' in text
    assert f"pages/{page}.js" in text
    assert "{page}" not in text
    assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|style=|https?://(?!www\.w3\.org/2000/svg)", text)
    again = http.get(f"/{page}", headers={"if-none-match": response.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_home_is_the_bill(http: httpx.Client) -> None:
    response = http.get("/")
    assert (response.status_code, response.headers["location"]) == (307, "/bill")
    assert http.get("/pages/frame.html").status_code == 404
    assert http.get("/pages/../pages.py").status_code == 404


@pytest.mark.parametrize("name", [*SCRIPTS, "pages.css"])
def test_each_file(http: httpx.Client, name: str) -> None:
    response = http.get(f"/pages/{name}")
    assert response.content == (FOLDER / name).read_bytes()
    assert response.headers["content-encoding"] == "gzip"
    assert "://" not in response.text.replace('"http://www.w3.org/2000/svg"', "")
    assert "innerHTML" not in response.text  # nothing that was sent is ever read as HTML


def test_pages_are_light() -> None:
    """Everything that a page needs, unpacked: a phone has it in a moment, and then keeps it."""
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.suffix in (".js", ".css", ".html")) < 120_000


def test_both_languages_say_everything() -> None:
    assert words("en") == words("zh")
    assert len(words("en")) > 200


def test_what_is_said_has_words() -> None:
    known = words("en")
    for path in FOLDER.glob("*.html"):
        said = set(re.findall(r'data-say(?:-label)?="(\w+)"', path.read_text()))
        assert said <= known, path.name
    for path in FOLDER.glob("*.js"):
        said = set(re.findall(r'\bsay\("(\w+)"', path.read_text()))
        assert said <= known, path.name
