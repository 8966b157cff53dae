"""Headless Chromium for the pages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from bench.headless import chromium, what_is_missing


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium, one for all tests."""
    missing = what_is_missing()
    if missing:
        pytest.skip(missing)
    with chromium(more=("--lang=en-GB",)) as opened:
        yield opened
