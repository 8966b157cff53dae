"""What tests in several rooms share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from serving import BigModel, serving

from puhui.store.database import Store, open_store, sqlite_url

settings.register_profile("puhui", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
settings.load_profile("puhui")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A fresh store in a file."""
    opened = open_store(sqlite_url(tmp_path / "puhui.db"))
    yield opened
    opened.close()


@pytest.fixture
def big() -> Iterator[BigModel]:
    """A big model that shouts the last message back, served at `big.url`."""
    model = BigModel()
    with serving(model.app) as url:
        model.url = f"{url}/v1"
        yield model
