"""A browser, an expert distilled from real text, and another origin that has both."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from bench.headless import chromium, what_is_missing

from browsing import Bundle, elsewhere, page_expert
from serving import serving


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """An expert that says which page of the documents a line is from."""
    return page_expert(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium, one for all tests."""
    missing = what_is_missing()
    if missing:
        pytest.skip(missing)
    with chromium() as opened:
        yield opened


@pytest.fixture
def cdn(bundle: Bundle) -> Iterator[str]:
    """The URL of an origin with our scripts, and the bundle under /files/ and its folder's name."""
    with serving(elsewhere(bundle.place.parent)) as url:
        yield url
