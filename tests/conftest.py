"""What tests in several rooms share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from puhui.store.database import Store, open_store, sqlite_url
from serving import BigModel, serving

# Tiny networks on busy cores: threads that wait for each other cost more than they save.
os.environ.setdefault("OMP_NUM_THREADS", "1")

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
